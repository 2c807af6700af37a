"""Class activation maps from a network's own activations: finding layers, capturing them, weighing their channels.

Two ways lead to the Grad-CAM map ReLU(sum_k alpha_k A_k), alpha_k = mean over voxels of d logit / d A_k (arXiv
1610.02391): the closed form alpha_k = W_yk / n where the layer feeds global average pooling and one linear layer, and
one truncated backward, from the chosen scalar to the chosen layers, everywhere else.

Here: whatever touches an ``nn.Module``. Not here: masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError

Layer: TypeAlias = nn.Module | str
Target: TypeAlias = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""How far W mean(A) + b may lie from the logits, relative to the largest logit; 5e-2 for half precisions."""


def find_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """A layer's dotted name and module, given either; ExplainError where the model has no such layer."""
    for name, module in model.named_modules(remove_duplicate=False):
        if layer is module or layer == name:
            return name, module
    if isinstance(layer, nn.Module):
        remedy = "Pass a module of this very model (not of a copy of it), or its dotted name."
        raise ExplainError(f"the layer {type(layer).__name__} is no part of the model", remedy)
    known = ", ".join([name for name, _ in model.named_modules() if name and name.count(".") < 2][:12])
    remedy = f"Pass a name from model.named_modules(), for example {known}."
    raise ExplainError(f"the model has no layer {layer!r}", remedy)


def captured(
    model: nn.Module, images: Tensor, layers: Mapping[str, nn.Module], graph: bool = True
) -> tuple[Any, dict[str, Tensor]]:
    """One forward pass: what the model returns, and what the layers put out, by name, each (B, K, \\*grid).

    With ``graph`` each activation begins a new autograd graph, unless it depends on another captured one or on a
    trained weight, and the model goes on with a copy of it, so that a later in-place ReLU cannot change it. Without, a
    copy is made only where that happened. Of several runs the last counts.

    Raises:
        ExplainError: where a layer did not run, or put out something else than a tensor with the images' axes.
    """
    outputs: dict[str, Any] = {}
    versions: dict[str, int] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            outputs[name] = output
            return None
        if graph and not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs[name], versions[name] = output, output._version
        return output.clone() if graph else None

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        returned = model(images)
    for name in layers:
        if name not in outputs:
            remedy = "Pass a layer that the model's forward calls."
            raise ExplainError(f"the layer {name!r} did not run in the forward pass", remedy)
        output = outputs[name]
        if not isinstance(output, Tensor) or output.ndim != images.ndim:
            what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            remedy = f"Pass a convolutional layer whose output is (B, K, *grid), {images.ndim} axes."
            raise ExplainError(f"the layer {name!r} puts out {what}, no feature map", remedy)
    if not graph and any(outputs[name]._version != version for name, version in versions.items()):
        return captured(model, images, layers)
    return returned, {name: outputs[name] for name in layers}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch off ``requires_grad`` of all parameters, and restore each as it was."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, the first of a tuple, or what is called ``logits``.

    Raises:
        ExplainError: where there is no such tensor.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        remedy = "Return logits, a tuple that begins with them or a mapping that names them; or pass target=callable."
        raise ExplainError(f"the model returns no logits but {type(output).__name__}", remedy)
    return output


def class_targets(target: Any, logits: Tensor) -> Tensor:
    """The explained class of each cell, (B,) int64: the predicted class, one class for all, or one a sample.

    Raises:
        ExplainError: for classes that the model does not have, or a wrong number of them.
    """
    if logits.ndim != 2:
        what = f"the model's output has shape {tuple(logits.shape)}, not (B, classes)"
        raise ExplainError(what, "Pass target=callable that makes one scalar a sample of it.")
    if target is None:
        return logits.argmax(1)
    chosen = torch.as_tensor(target, device=logits.device)
    if chosen.is_floating_point() or chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != len(logits)):
        what = f"target has shape {tuple(chosen.shape)} and type {chosen.dtype} for {len(logits)} samples"
        raise ExplainError(what, "Pass None, one integer class for all, one integer class a sample, or a callable.")
    if bool(((chosen < 0) | (chosen >= logits.shape[1])).any()):
        what = f"target names a class outside 0 to {logits.shape[1] - 1}"
        raise ExplainError(what, "Pass class indices that the model's head has.")
    return chosen.long().expand(len(logits))


def explained(target: Any, output: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is explained of a model's output: scalars (B,), logits, and classes (B,).

    The scalar is the logit of the target class, or what a callable makes of the output. With a callable the classes are
    None, and the logits the scalars as one column where the output holds none.

    Raises:
        ExplainError: for an unusable target, or where a callable does not return one value a sample.
    """
    if not callable(target):
        logits = logits_of(output)
        classes = class_targets(target, logits)
        return logits.gather(1, classes[:, None])[:, 0], logits, classes
    scalars = target(output)
    if not isinstance(scalars, Tensor) or scalars.ndim != 1:
        what = tuple(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise ExplainError(f"the target callable returned {what}", "Return one scalar a sample, a tensor (B,).")
    try:
        return scalars, logits_of(output), None
    except ExplainError:
        return scalars, scalars[:, None], None


def similarity_to(reference: Any) -> Callable[[Tensor], Tensor]:
    """A target for ``gradcamo`` where there are no classes: the cosine similarity of embeddings (B, K) to one, (K,).

    For networks whose output is the embedding. A reference is, say, a treatment's centroid less the controls'.
    """

    def target(output: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(output, torch.as_tensor(reference).to(output)[None])

    return target


@dataclass(frozen=True)
class PooledHead:
    """A linear layer that feeds on an activation's averages: (B, K) ``pooled``, and its own (B, classes) ``logits``."""

    linear: nn.Linear
    pooled: Tensor
    logits: Tensor

    def bias(self, classes: Tensor) -> Tensor:
        """The bias of each cell's class, (B,)."""
        bias = self.linear.bias
        return torch.zeros_like(self.logits[:, 0]) if bias is None else bias.detach()[classes]


def pooled_head(model: nn.Module, activations: Tensor, logits: Tensor) -> PooledHead | None:
    """The linear layer that the activations feed through global average pooling, or None.

    Found by its sizes, believed only where W mean(A) + b, in float32 or better, equals the logits of the whole batch.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(activations.device.type, enabled=False):
        pooled = activations.flatten(2).mean(2, dtype=dtype)
        allowed = _TOLERANCE.get(logits.dtype, 5e-2) * logits.abs().max().clamp_min(1e-6)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.shape == (logits.shape[-1], pooled.shape[1]):
                bias = None if module.bias is None else module.bias.to(dtype)
                made = nn.functional.linear(pooled, module.weight.to(dtype), bias)
                if bool((made - logits).abs().max() <= allowed):
                    return PooledHead(module, pooled, made)
    return None


def signed_map(activations: Tensor, weight: Tensor) -> Tensor:
    """The un-rectified CAM at such a head, w_y . A_i / n: (B, \\*grid); its sum over voxels is the logit less its bias.

    Args:
        activations: (B, K, *grid) that enter the pooling. weight: (B, K), the linear layer's row of each cell's class.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    grid = activations.shape[2:]
    scaled = weight.to(dtype) / grid.numel()
    values = activations.to(dtype)
    if torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled(values.device.type):
        return torch.bmm(scaled[:, None], values.flatten(2)).reshape(len(values), *grid)
    # A matrix product would run in TF32 or bfloat16.
    return (values * scaled.reshape(*scaled.shape, *(1,) * len(grid))).sum(1)


def gradient_maps(scalars: Tensor, activations: Sequence[Tensor], graph: bool = False) -> list[Tensor]:
    """Grad-CAM maps by one truncated backward: each (B, \\*grid), rectified.

    Args:
        scalars: (B,), of a graph that reaches the activations; in eval mode sample b depends on its own image only.
        activations: each (B, K, *grid), from ``captured``. graph: whether the maps can be differentiated in turn.

    Raises:
        ExplainError: where the scalar does not depend on a layer.
    """
    gradients: Sequence[Tensor | None] = (None,) * len(activations)
    if activations and scalars.requires_grad:
        gradients = torch.autograd.grad(scalars.sum(), list(activations), allow_unused=True, create_graph=graph)
    maps = []
    for values, gradient in zip(activations, gradients, strict=True):
        if gradient is None:
            remedy = "Pass a layer between the image and the output, and a target that is differentiable."
            raise ExplainError("what is explained does not depend on the layer", remedy)
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.to(dtype).flatten(2).sum(2)  # signed_map divides it by n: alpha.
        maps.append(signed_map(values if graph else values.detach(), total).clamp_min(0))
    return maps
