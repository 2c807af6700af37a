"""What pytorch-grad-cam does: its other CAM methods, and its way to scale and resample a map.

Here: every import of that library. Not here: the overlap, which takes any map.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.maps import explained, frozen, logits_of

METHODS = {
    name.lower().replace("plusplus", "++").replace("_", ""): name
    for name in (
        "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise", "EigenCAM", "EigenGradCAM",
        "SegEigenCAM", "KPCA_CAM", "ShapleyCAM", "FinerCAM", "FEM", "RandomCAM", "ScoreCAM", "AblationCAM",
    )
}  # fmt: skip
"""Our name of each method that runs through pytorch-grad-cam, and its class there.

FullGrad, RefineCAM and SESS are left out: they make full-resolution maps and none of the layer's own.
"""

FLAT_ONLY = frozenset({"scorecam", "ablationcam"})
"""Methods that pytorch-grad-cam 1.5.7 runs on 2D images only."""


def check_method(method: str, axes: int) -> None:
    """Whether a method can be run on images with so many spatial axes.

    Raises:
        ExplainError: where it cannot; with those that can.
    """
    able = [name for name in ("gradcam", *METHODS) if axes == 2 or name not in FLAT_ONLY]
    if method not in able:
        what = f"pytorch-grad-cam runs {METHODS[method]} on 2D images only" if method in METHODS else ""
        what = what or f"there is no method {method!r}"
        raise ExplainError(what, f"For {axes}D images choose one of {', '.join(able)}.")


class _Explained(nn.Module):
    """The model with one tensor (B, classes) as its output; gradients that a user keeps on its weights stay."""

    def __init__(self, model: nn.Module, target: Any):
        super().__init__()
        self.model, self.target = model, target

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        return explained(self.target, output)[0][:, None] if callable(self.target) else logits_of(output)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the weights are frozen, and clearing their gradients would be a side effect."""


def library_map(
    model: nn.Module, images: Tensor, layer: nn.Module, grid: Sequence[int], method: str, target: Any, classes: Tensor
) -> Tensor:
    """The rectified low-resolution map of one layer by a method of pytorch-grad-cam: (B, *grid) on the images' device.

    The library's own upsampling is left out: it is told that the image has the map's size.

    Args:
        model, images, layer, target: as in ``gradcamo``; a target that is no callable is not looked at.
        grid: shape of the layer's map. method: a key of ``METHODS``. classes: (B,) explained classes.

    Raises:
        ExplainError: for FinerCAM without classes to compare with, or where the library made no map.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget

    wrapped = _Explained(model, target).eval()
    chosen = [0] * len(images) if callable(target) else classes.tolist()
    targets: list[Any] = [ClassifierOutputTarget(label) for label in chosen]
    if method == "finercam":
        with torch.no_grad():
            logits = wrapped(images)
        if logits.shape[1] < 2:
            raise ExplainError("FinerCAM compares classes and there is one only", "Choose another method.")
        nearest = (logits - logits.gather(1, classes[:, None])).abs().scatter(1, classes[:, None], -1).argsort(1)
        targets = [FinerWeightedTarget(row[0], row[1:4], 1.0) for row in nearest.tolist()]
    found: list[np.ndarray] = []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        # ShapleyCAM differentiates twice, which at a linear head needs weights in the graph; it writes no gradients.
        nullcontext() if method == "shapleycam" else frozen(model),
        getattr(pytorch_grad_cam, METHODS[method])(wrapped, [layer]) as cam,
    ):
        engine = getattr(cam, "base_cam", cam)
        image_of = engine.get_cam_image

        def keep(*args: Any, **kwargs: Any) -> np.ndarray:
            image = image_of(*args, **kwargs)
            found.append(np.asarray(image))
            return image

        engine.get_cam_image = keep
        engine.get_target_width_height = lambda _images: tuple(grid)[::-1]
        cam(images.detach().clone().requires_grad_(), targets)
        # What it keeps it detaches in place on leaving, which fails for ShapleyCAM's where a gradient is a view.
        engine.activations_and_grads.activations, engine.activations_and_grads.gradients = [], []
    # The library swallows an IndexError on leaving its context.
    if not found:
        raise ExplainError(f"pytorch-grad-cam made no map with {METHODS[method]}", "Choose another method or layer.")
    return torch.as_tensor(found[0], device=images.device).clamp_min(0)


def resampled_maps(maps: Sequence[Tensor], crop: Sequence[int]) -> Tensor:
    """What a user of pytorch-grad-cam gets from low-resolution maps, (B, *crop) float32, on the first map's device.

    Each map less its minimum and divided by its maximum, resampled (2D bilinear, 3D cubic spline, corner-aligned),
    clipped at 0, averaged over layers, scaled again (``BaseCAM.compute_cam_per_layer``, ``aggregate_multi_layers``).
    """
    from pytorch_grad_cam.utils.image import scale_cam_image

    scaled = [scale_cam_image(values.detach().float().cpu().numpy(), tuple(crop)[::-1]) for values in maps]
    mean = np.maximum(np.stack(scaled), 0).mean(0)
    return torch.as_tensor(scale_cam_image(mean), device=maps[0].device)
