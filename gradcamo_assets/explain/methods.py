"""CAM methods of pytorch-grad-cam, and its scaling and resampling of maps.

This is the only module that imports pytorch-grad-cam.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.eager import run_eagerly
from gradcamo_assets.explain.layout import was_channels_last
from gradcamo_assets.explain.maps import frozen_parameters
from gradcamo_assets.explain.targets import class_logits, extract_logits, resolve_target

METHODS = {
    name.lower().replace("plusplus", "++").replace("_", ""): name
    for name in (
        "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise", "EigenCAM", "EigenGradCAM",
        "SegEigenCAM", "KPCA_CAM", "ShapleyCAM", "FinerCAM", "FEM", "RandomCAM", "ScoreCAM", "AblationCAM",
    )
}  # fmt: skip
"""Class of pytorch-grad-cam for each method name.

FullGrad, RefineCAM and SESS are left out: they produce full-resolution maps, not a map of one layer.
"""

METHODS_2D_ONLY = frozenset({"scorecam", "ablationcam"})
"""Methods that pytorch-grad-cam 1.5.7 supports for 2D images only."""


def check_method(method: str, axes: int) -> None:
    """Check that a method supports images with this number of spatial axes.

    Raises:
        ExplainError: if it does not; the message lists the methods that do.
    """
    supported = [name for name in ("gradcam", *METHODS) if axes == 2 or name not in METHODS_2D_ONLY]
    if method in supported:
        return
    if method in METHODS:
        problem = f"pytorch-grad-cam runs {METHODS[method]} on 2D images only"
    else:
        problem = f"unknown method {method!r}"
    raise ExplainError(problem, f"For {axes}D images choose one of {', '.join(supported)}.")


class _SingleOutputModel(nn.Module):
    """Wrap a model so that it returns one tensor (B, classes) and keeps the gradients stored on its weights."""

    def __init__(self, model: nn.Module, target: Any):
        super().__init__()
        self.model, self.target = model, target
        self.channels_first = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        output = run_eagerly(self.model, images)
        if not callable(self.target):
            return class_logits(extract_logits(output))
        scalars, _, _ = resolve_target(self.target, output)
        return scalars[:, None]

    @contextmanager
    def putting_channels_first(self, layer: nn.Module) -> Iterator[nn.Module]:
        """Yield the module to explain: the layer, or one that its output passes through with channels first."""
        if not was_channels_last(layer):
            yield layer
            return

        def pass_through(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return self.channels_first(output.movedim(-1, 1)).movedim(1, -1)

        with layer.register_forward_hook(pass_through):
            yield self.channels_first

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the weights are frozen, and clearing their gradients would be a side effect."""


def compute_library_map(
    model: nn.Module, images: Tensor, layer: nn.Module, grid: Sequence[int], method: str, target: Any, classes: Tensor
) -> Tensor:
    """Compute the rectified low-resolution map of one layer, (B, *grid) on the images' device, with pytorch-grad-cam.

    The library's upsampling is bypassed by reporting the map's size as the image's size.

    Args:
        model, images, layer, target: as in ``gradcamo``; only a callable target is used.
        grid: shape of the layer's map.
        method: a key of ``METHODS``.
        classes: (B,) explained classes, used without a callable target.

    Raises:
        ExplainError: for FinerCAM with a callable target, or if the library is not installed or returned no map.
    """
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ExplainError(f"method {method!r} needs pytorch-grad-cam", "Install it: pip install grad-cam") from error
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget

    wrapped = _SingleOutputModel(model, target).eval()
    chosen = [0] * len(images) if callable(target) else classes.tolist()
    targets: list[Any] = [ClassifierOutputTarget(label) for label in chosen]
    if method == "finercam":
        if callable(target):
            raise ExplainError("FinerCAM compares classes, but the target is a callable", "Choose another method.")
        with torch.no_grad():
            logits = wrapped(images)
        nearest = (logits - logits.gather(1, classes[:, None])).abs().scatter(1, classes[:, None], -1).argsort(1)
        targets = [FinerWeightedTarget(row[0], row[1:4], 1.0) for row in nearest.tolist()]
    layer_maps: list[np.ndarray] = []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        # ShapleyCAM differentiates twice, which needs a linear head's weights in the graph. It writes no gradients.
        nullcontext() if method == "shapleycam" else frozen_parameters(model),
        wrapped.putting_channels_first(layer) as explained,
        getattr(pytorch_grad_cam, METHODS[method])(wrapped, [explained]) as cam,
    ):
        engine = getattr(cam, "base_cam", cam)
        get_cam_image = engine.get_cam_image

        def record_map(*args: Any, **kwargs: Any) -> np.ndarray:
            image = get_cam_image(*args, **kwargs)
            layer_maps.append(np.asarray(image))
            return image

        engine.get_cam_image = record_map
        engine.get_target_width_height = lambda _images: tuple(grid)[::-1]
        cam(images.detach().clone().requires_grad_(), targets)
        # On exit the library detaches its stored tensors in place, which fails for ShapleyCAM if a gradient is a view.
        engine.activations_and_grads.activations, engine.activations_and_grads.gradients = [], []
    # The library swallows an IndexError on exit.
    if not layer_maps:
        problem = f"pytorch-grad-cam returned no map for {METHODS[method]}"
        raise ExplainError(problem, "Choose another method or layer.")
    return torch.as_tensor(layer_maps[0], device=images.device).clamp_min(0)


def resample_maps(maps: Sequence[Tensor], crop: Sequence[int]) -> Tensor:
    """Resample low-resolution maps as pytorch-grad-cam does, to (B, *crop) float32 on the first map's device.

    Each map is shifted to a minimum of 0, divided by its maximum, resampled (2D bilinear, 3D cubic spline,
    corner-aligned) and clipped at 0. The maps are averaged over layers and scaled again
    (``BaseCAM.compute_cam_per_layer``, ``aggregate_multi_layers``).
    """
    from pytorch_grad_cam.utils.image import scale_cam_image

    scaled = [scale_cam_image(values.detach().float().cpu().numpy(), tuple(crop)[::-1]) for values in maps]
    mean = np.maximum(np.stack(scaled), 0).mean(0)
    return torch.as_tensor(scale_cam_image(mean), device=maps[0].device)
