"""Encoders by name: ours, MONAI's ResNet-18 with an anisotropic stem, or a user's own by import path."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from gradcamo_assets.errors import BundleError
from gradcamo_assets.importing import import_function

if TYPE_CHECKING:
    from torch import nn


def _efficientnet3d(size: str) -> Callable[[int, int], tuple[nn.Module, str]]:
    def build(in_channels: int, classes: int) -> tuple[nn.Module, str]:
        from gradcamo_assets.networks.efficientnet3d import EfficientNet3D

        return EfficientNet3D(in_channels, classes, size), EfficientNet3D.layer

    return build


def _monai_resnet18(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    from monai.networks.nets import resnet18

    model = resnet18(
        spatial_dims=3,
        n_input_channels=in_channels,
        num_classes=classes,
        conv1_t_size=(3, 7, 7),
        conv1_t_stride=(1, 2, 2),
        no_max_pool=True,
    )
    return model, "layer4"


_BUILT_IN: dict[str, Callable[[int, int], tuple[nn.Module, str]]] = {
    "efficientnet3d-small": _efficientnet3d("small"),
    "efficientnet3d-base": _efficientnet3d("base"),
    "efficientnet3d-large": _efficientnet3d("large"),
    "monai-resnet18": _monai_resnet18,
}


def encoder_names() -> list[str]:
    """The built-in names."""
    return sorted(_BUILT_IN)


def build_encoder(
    name: str, in_channels: int, classes: int, *, weights: Path | str | None = None, layer: str | None = None
) -> tuple[nn.Module, str]:
    """A network and the dotted name of the layer to explain.

    Args:
        name: a built-in name, or ``module:function`` where ``function(in_channels, classes)`` returns ``(network,
            layer)``. The module is import_function, so name only code you trust.
        in_channels: stains. classes: treatment classes.
        weights: safetensors file to start from; by default the network's own fresh weights. Only the last layer may
            have another number of classes: it stays fresh then.
        layer: dotted name of another layer to explain.

    Raises:
        BundleError: for a name that is neither, a function that cannot be imported, weights that cannot be read or do
            not fit, or a layer that the network does not have.
    """
    if name in _BUILT_IN:
        model, default = _BUILT_IN[name](in_channels, classes)
    else:
        remedy = f"Use one of {', '.join(encoder_names())}, or 'module:function' of an installed module."
        model, default = import_function(name, "encoder", remedy, BundleError)(in_channels, classes)
    layer = layer or default
    layers = [known for known, _ in model.named_modules() if known]
    if layer not in layers:
        near = get_close_matches(layer, layers, 5, 0.0)
        raise BundleError(f"encoder {name} has no layer {layer!r}", f"It has {len(layers)}, as {', '.join(near)}.")
    if weights:
        _start_from(model, Path(weights), classes)
    return model, layer


def is_2d(model: nn.Module) -> bool:
    """Whether a network takes single planes (B, C, Y, X), as one with 2D convolutions does."""
    from torch import nn

    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _start_from(model: nn.Module, path: Path, classes: int) -> None:
    """Load weights in place; a last layer of another number of classes stays as it is."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = "Give the safetensors file of a network of this kind, trained on as many stains."
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"the weights cannot be read ({error})", remedy, path=path) from error
    own = model.state_dict()
    last = [known for known in own if known.endswith("weight") and len(own[known]) == classes][-1:]
    head = {*last, *(known.removesuffix("weight") + "bias" for known in last)}
    odd = {known for known in own.keys() & given.keys() if own[known].shape != given[known].shape}
    fresh = {known for known in odd & head if own[known].shape[1:] == given[known].shape[1:]}
    for what, names in (
        ("lack", own.keys() - given.keys()),
        ("have unknown", given.keys() - own.keys()),
        ("have other shapes for", odd - fresh),
    ):
        if names:
            some = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise BundleError(f"the weights {what} {some}", remedy, path=path)
    model.load_state_dict({**given, **{known: own[known] for known in fresh}})
