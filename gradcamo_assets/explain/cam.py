"""Class activation maps from a network's own activations: finding layers, capturing them, weighing their channels.

Two ways lead to the Grad-CAM map ReLU(sum_k alpha_k A_k), alpha_k = mean over voxels of d logit / d A_k (arXiv
1610.02391): the closed form alpha_k = W_yk / n where the layer feeds global average pooling and one linear layer, and
one truncated backward, from the chosen scalar to the chosen layers, everywhere else.

Here: whatever touches an ``nn.Module``. Not here: masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gradcamo_assets.common.errors import ExplainError

Layer: TypeAlias = nn.Module | str
Target: TypeAlias = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""How far W mean(A) + b may lie from the logits, relative to the largest logit; 5e-2 for half precisions."""


def find_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """A layer's dotted name and module, given either.

    Raises:
        ExplainError: where the model has no such layer.
    """
    names = {module: name for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        if layer in names:
            return names[layer], layer
        raise ExplainError(
            f"the layer {type(layer).__name__} is no part of the model",
            "Pass a module of this very model (not of a copy of it), or its dotted name.",
        )
    for module, name in names.items():
        if name == layer:
            return name, module
    known = [name for name in names.values() if name and name.count(".") < 2]
    raise ExplainError(
        f"the model has no layer {layer!r}",
        f"Pass a name from model.named_modules(), for example {', '.join(known[:12])}.",
    )


class Hooked:
    """Captures what layers put out while the context is open; leaves no hook behind.

    The model goes on with a copy, so that a later in-place ReLU cannot change what was captured. Where a layer runs
    several times in one forward, the last run counts.

    Args:
        model: the network.
        layers: modules of it or their dotted names.
        leaves: cut the autograd graph at each captured activation and begin a new one there (a layer downstream of
            another captured one stays connected to it). Under ``torch.no_grad`` this changes nothing.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], leaves: bool = False):
        self._layers = dict(find_layer(model, layer) for layer in layers)
        self._leaves = leaves
        self._handles: list[Any] = []
        self._captured: dict[str, Any] = {}

    def __enter__(self) -> Hooked:
        for name, module in self._layers.items():
            self._handles.append(module.register_forward_hook(self._keeper(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                self._captured[name] = output
                return None
            if self._leaves and torch.is_grad_enabled() and not output.requires_grad:
                output = output.detach().requires_grad_()
            self._captured[name] = output
            return output.clone()

        return keep

    def __getitem__(self, name: str) -> Tensor:
        return self.activations()[name]

    def activations(self, axes: int | None = None) -> dict[str, Tensor]:
        """The activations by layer name, each (B, K, \\*grid).

        Args:
            axes: how many axes they must have (that of the images), or None.

        Raises:
            ExplainError: where a layer did not run, or put out something else than such a tensor.
        """
        for name in self._layers:
            if name not in self._captured:
                raise ExplainError(
                    f"the layer {name!r} did not run in the forward pass",
                    "Pass a layer that the model's forward calls.",
                )
            output = self._captured[name]
            if not isinstance(output, Tensor) or (axes is not None and output.ndim != axes):
                what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise ExplainError(
                    f"the layer {name!r} puts out {what}, no feature map",
                    f"Pass a convolutional layer whose output is (B, K, *grid){f', {axes} axes' if axes else ''}.",
                )
        return {name: self._captured[name] for name in self._layers}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch off ``requires_grad`` of all parameters, and restore each as it was."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


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
        raise ExplainError(
            f"the model returns no logits but {type(output).__name__}",
            "Return logits, a tuple that begins with them or a mapping that names them; or pass target=callable.",
        )
    return output


def class_targets(target: Any, logits: Tensor) -> Tensor:
    """The explained class of each cell, (B,) int64: the predicted class, one class for all, or one a sample.

    Raises:
        ExplainError: for classes that the model does not have, or a wrong number of them.
    """
    if logits.ndim != 2:
        raise ExplainError(
            f"the model's output has shape {tuple(logits.shape)}, not (B, classes)",
            "Pass target=callable that makes one scalar a sample of it.",
        )
    if target is None:
        return logits.argmax(1)
    chosen = torch.as_tensor(target, device=logits.device)
    if chosen.is_floating_point() or chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != len(logits)):
        raise ExplainError(
            f"target has shape {tuple(chosen.shape)} and type {chosen.dtype} for {len(logits)} samples",
            "Pass None, one integer class for all, one integer class a sample, or a callable on the output.",
        )
    chosen = chosen.long().expand(len(logits))
    if not isinstance(target, Tensor) and not bool(((chosen >= 0) & (chosen < logits.shape[1])).all()):
        raise ExplainError(
            f"target names a class outside 0 to {logits.shape[1] - 1}", "Pass class indices that the model's head has."
        )
    return chosen


def chosen_scalars(target: Any, output: Any) -> Tensor:
    """The scalar that is explained, (B,): the logit of the target class, or what a callable makes of the output.

    Raises:
        ExplainError: where a callable does not return one value a sample.
    """
    if not callable(target):
        logits = logits_of(output)
        return logits.gather(1, class_targets(target, logits)[:, None])[:, 0]
    scalars = target(output)
    if not isinstance(scalars, Tensor) or scalars.ndim != 1:
        what = tuple(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise ExplainError(f"the target callable returned {what}", "Return one scalar a sample, a tensor (B,).")
    return scalars


def head_tolerance(dtype: torch.dtype) -> float:
    """How far, relative to the largest logit, W mean(A) + b may lie from logits of this precision."""
    return _TOLERANCE.get(dtype, 5e-2)


def head_logits(activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W mean(A) + b in float32 or better, (B, classes)."""
    dtype = torch.promote_types(activations.dtype, torch.float32)
    with torch.autocast(activations.device.type, enabled=False):
        pooled = activations.to(dtype).flatten(2).mean(2)
        return torch.nn.functional.linear(pooled, weight.to(dtype), None if bias is None else bias.to(dtype))


def pooled_head(model: nn.Module, activations: Tensor, logits: Tensor) -> nn.Linear | None:
    """The linear layer that the activations feed through global average pooling, or None.

    Found by its sizes, believed only where W mean(A) + b equals the logits of the whole batch.
    """
    if logits.ndim != 2:
        return None
    sizes = (activations.shape[1], logits.shape[1])
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, nn.Linear) or (module.in_features, module.out_features) != sizes:
                continue
            difference = (head_logits(activations, module.weight, module.bias) - logits).abs().max()
            if bool(difference <= head_tolerance(logits.dtype) * logits.abs().max().clamp_min(1e-6)):
                return module
    return None


def gradient_maps(scalars: Tensor, activations: Sequence[Tensor]) -> list[Tensor]:
    """Grad-CAM maps by one truncated backward: each (B, \\*grid), rectified.

    Args:
        scalars: (B,), of a graph that reaches the activations; in eval mode sample b depends on its own image only.
        activations: each (B, K, *grid), captured with ``Hooked(..., leaves=True)``.

    Raises:
        ExplainError: where the scalar does not depend on a layer.
    """
    gradients: Sequence[Tensor | None] = (None,) * len(activations)
    if activations and scalars.requires_grad:
        gradients = torch.autograd.grad(scalars.sum(), list(activations), allow_unused=True)
    maps = []
    for values, gradient in zip(activations, gradients, strict=True):
        if gradient is None:
            raise ExplainError(
                "what is explained does not depend on the layer",
                "Pass a layer between the image and the output, and a target that is differentiable.",
            )
        alpha = gradient.float().flatten(2).mean(2) if gradient.dtype != torch.float64 else gradient.flatten(2).mean(2)
        scaled = alpha.reshape(*alpha.shape, *(1,) * (values.ndim - 2)) * values.detach().to(alpha.dtype)
        maps.append(scaled.sum(1).clamp_min(0))
    return maps
