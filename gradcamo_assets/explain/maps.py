"""Find layers of a network, capture their activations and compute Grad-CAM maps from them.

The Grad-CAM map is ReLU(sum_k alpha_k A_k) with alpha_k = mean over voxels of d logit / d A_k (arXiv 1610.02391). Where
the layer feeds global average pooling and one linear layer, alpha_k has the closed form W_yk / n. Elsewhere one
truncated backward pass runs from the explained scalar to the layers.

Everything that touches an ``nn.Module`` is here; masks are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.eager import run_eagerly
from gradcamo_assets.explain.layout import (
    is_channels_last,
    may_be_channels_last,
    remember_layout,
    was_channels_last,
)
from gradcamo_assets.explain.targets import extract_logits

Layer: TypeAlias = nn.Module | str

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest allowed difference between W mean(A) + b and the logits, relative to the largest logit."""

_HALF_PRECISION_TOLERANCE = 5e-2
"""The same for float16 and bfloat16."""


def find_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """Find a layer by its module or its dotted name. A module that stands under two names has both.

    Returns:
        Dotted name and module.

    Raises:
        ExplainError: if the model has no such layer.
    """
    # The wrapper of torch.compile adds a level to the names.
    modules = [(name.replace("_orig_mod.", ""), module) for name, module in model.named_modules(remove_duplicate=False)]
    for name, module in modules:
        if layer is module or layer == name:
            return name, module
    if isinstance(layer, nn.Module):
        remedy = "Pass a module of this model (not of a copy of it), or its dotted name."
        raise ExplainError(f"the layer {type(layer).__name__} is not part of the model", remedy)
    examples = ", ".join([name for name, _ in modules if name and name.count(".") < 2][:12])
    remedy = f"Pass a name from model.named_modules(), for example {examples}."
    raise ExplainError(f"the model has no layer {layer!r}", remedy)


def capture_activations(
    model: nn.Module, images: Tensor, layers: Mapping[str, nn.Module], graph: bool = True
) -> tuple[Any, dict[str, Tensor]]:
    """Run the model and keep the output of some layers, with channels first.

    A layer that puts its channels last is noticed at its first run (``explain.layout``), which takes more passes. If a
    layer runs several times, its last output is kept. A later in-place activation cannot change a captured output:
    with ``graph`` the model continues with a copy of it; without, the model runs again with copies if an output was
    modified.

    Args:
        layers: module by name.
        graph: start a new autograd graph at each activation, unless it depends on another captured activation or on a
            trainable weight.

    Returns:
        The model's output, and the activations (B, K, \\*grid) by layer name.

    Raises:
        ExplainError: if a layer did not run, or its output is not a tensor with as many axes as the images.
    """
    outputs: dict[str, Any] = {}
    versions: dict[str, int] = {}

    def keep(name: str, module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            outputs[name] = output
            return None
        is_last = was_channels_last(module)
        output = output.movedim(-1, 1) if is_last else output
        if graph and not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs[name], versions[name] = output, output._version
        if not graph:
            return None
        return output.movedim(1, -1).clone() if is_last else output.clone()

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        returned = run_eagerly(model, images)
    for name, module in layers.items():
        if name not in outputs:
            remedy = "Pass a layer that the model's forward calls; exported and scripted networks call none."
            raise ExplainError(f"the layer {name!r} did not run in the forward pass", remedy)
        output = outputs[name]
        if not isinstance(output, Tensor) or output.ndim != images.ndim:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            remedy = f"Pass a convolutional layer whose output is (B, K, *grid), {images.ndim} axes."
            raise ExplainError(f"the output of layer {name!r} is no feature map: {found}", remedy)
        if not was_channels_last(module) and _is_channels_last(model, images, module, output, returned):
            return capture_activations(model, images, layers, graph)
    if not graph and any(outputs[name]._version != version for name, version in versions.items()):
        return capture_activations(model, images, layers)
    return returned, {name: outputs[name] for name in layers}


def _is_channels_last(model: nn.Module, images: Tensor, module: nn.Module, output: Tensor, returned: Any) -> bool:
    """Tell whether a layer puts its channels last; what feeds a pooled head with channels first is not measured."""
    if not may_be_channels_last(images, module, output.shape):
        return False
    with suppress(ExplainError):
        if find_pooled_head(model, output, extract_logits(returned)):
            remember_layout(module, False)
    return is_channels_last(model, images, module, output.shape)


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Switch off ``requires_grad`` of all parameters inside the block, then restore it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()


@dataclass(frozen=True)
class PooledHead:
    """A linear layer after global average pooling of an activation.

    Attributes:
        pooled: (B, K), the activation's means over voxels.
        logits: (B, classes), the layer's output in float32 or better.
    """

    linear: nn.Linear
    pooled: Tensor
    logits: Tensor

    def weight(self, classes: Tensor) -> Tensor:
        """Return the weights of each sample's class, (B, K)."""
        return _select_rows(self.linear.weight, classes)

    def bias(self, classes: Tensor) -> Tensor:
        """Return the bias of each sample's class, (B,); 0 if the layer has no bias."""
        bias = self.linear.bias
        return torch.zeros_like(self.logits[:, 0]) if bias is None else _select_rows(bias.detach(), classes)


def _select_rows(values: Tensor, classes: Tensor) -> Tensor:
    """Select the values of each sample's class; ``class_logits`` of a single logit has two classes with one row."""
    return (torch.cat([-values, values]) if len(values) == 1 else values)[classes]


def find_pooled_head(model: nn.Module, activations: Tensor, logits: Tensor) -> PooledHead | None:
    """Find the linear layer that the activations feed through global average pooling, or return None.

    Candidates have matching sizes. One is accepted only if W mean(A) + b, in float32 or better, equals the logits of
    the whole batch.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(activations.device.type, enabled=False):
        pooled = activations.flatten(2).mean(2, dtype=dtype)
        allowed = _TOLERANCE.get(logits.dtype, _HALF_PRECISION_TOLERANCE) * logits.abs().max().clamp_min(1e-6)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.shape == (logits.shape[-1], pooled.shape[1]):
                bias = None if module.bias is None else module.bias.to(dtype)
                head_logits = nn.functional.linear(pooled, module.weight.to(dtype), bias)
                if bool((head_logits - logits).abs().max() <= allowed):
                    return PooledHead(linear=module, pooled=pooled, logits=head_logits)
    return None


def compute_signed_map(activations: Tensor, weight: Tensor) -> Tensor:
    """Compute the map before rectification at a pooled head, w_y . A_i / n: (B, \\*grid).

    Its sum over voxels is the logit minus its bias.

    Args:
        activations: (B, K, *grid), the input of the pooling.
        weight: (B, K), the linear layer's row for each sample's class.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    grid = activations.shape[2:]
    scaled = weight.to(dtype) / grid.numel()
    values = activations.to(dtype)
    if torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled(values.device.type):
        return torch.bmm(scaled[:, None], values.flatten(2)).reshape(len(values), *grid)
    # A matrix product would run in TF32 or bfloat16 here.
    return (values * scaled.reshape(*scaled.shape, *(1,) * len(grid))).sum(1)


def compute_gradient_maps(scalars: Tensor, activations: Sequence[Tensor], graph: bool = False) -> list[Tensor]:
    """Compute rectified Grad-CAM maps, each (B, \\*grid), by one truncated backward pass.

    Args:
        scalars: (B,), with a graph that reaches the activations. In eval mode sample b depends on its own image only.
        activations: each (B, K, *grid), from ``capture_activations``.
        graph: keep the graph, so that the maps can be differentiated.

    Raises:
        ExplainError: if the scalars do not depend on a layer.
    """
    gradients: Sequence[Tensor | None] = (None,) * len(activations)
    if activations and scalars.requires_grad:
        gradients = torch.autograd.grad(scalars.sum(), list(activations), allow_unused=True, create_graph=graph)
    maps = []
    for values, gradient in zip(activations, gradients, strict=True):
        if gradient is None:
            remedy = "Pass a layer between the image and the output, and a differentiable target."
            raise ExplainError("the explained scalar does not depend on the layer", remedy)
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        # compute_signed_map divides by n, which makes alpha the mean gradient.
        gradient_sums = gradient.to(dtype).flatten(2).sum(2)
        maps.append(compute_signed_map(values if graph else values.detach(), gradient_sums).clamp_min(0))
    return maps
