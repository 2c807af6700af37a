"""Build encoders by name: the 3D EfficientNet, MONAI's ResNet-18 with an anisotropic stem, or a user's network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from gradcamo_assets.errors import BundleError
from gradcamo_assets.importing import IMPORT_PATH, import_function

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
    """Return the names of the built-in encoders."""
    return sorted(_BUILT_IN)


def build_encoder(
    name: str,
    in_channels: int,
    classes: int,
    *,
    weights: Path | str | None = None,
    layer: str | None = None,
    modules: Collection[str] = (),
) -> tuple[nn.Module, str]:
    """Build a network and return it with the dotted name of the layer to explain.

    Args:
        name: a built-in name, or ``module:function`` where ``function(in_channels, classes)`` returns ``(network,
            layer)``. The module is imported, so it must be one of ``modules``.
        in_channels: number of stains.
        classes: number of treatment classes.
        weights: safetensors file with initial weights; None keeps the network's own initialisation. The last layer
            keeps it too if the file has another number of classes.
        layer: dotted name of another layer to explain.
        modules: modules whose functions may be called, by their full names: those of ``[encoders]`` in the settings.

    Raises:
        BundleError: if the name is unknown, its module is not listed, the function cannot be imported, the weights
            cannot be read or do not fit, or the network does not have the layer.
    """
    if name in _BUILT_IN:
        model, default = _BUILT_IN[name](in_channels, classes)
    else:
        remedy = f"Use one of {', '.join(encoder_names())}, or 'module:function' of an installed module."
        _check_module(name, modules, remedy)
        model, default = import_function(name, "encoder", remedy, BundleError)(in_channels, classes)
    layer = layer or default
    layers = [layer_name for layer_name, _ in model.named_modules(remove_duplicate=False) if layer_name]
    if layer not in layers:
        nearest = ", ".join(get_close_matches(layer, layers, 5, 0.0))
        remedy = f"Choose one of its {len(layers)} layers, for example {nearest}."
        raise BundleError(f"encoder {name} has no layer {layer!r}", remedy)
    if weights:
        _load_initial_weights(model, Path(weights), classes)
    return model, layer


def _check_module(name: str, modules: Collection[str], remedy: str) -> None:
    """Check that the module of an import path is listed, since bundles may come from others."""
    if not IMPORT_PATH.fullmatch(name):
        raise BundleError(f"unknown encoder {name!r}", remedy)
    module = name.partition(":")[0]
    if module not in modules:
        raise BundleError(
            f"module {module!r} of encoder {name!r} is not listed in the settings",
            f"If you trust its code, add {module!r} to the list modules of [encoders] in gradcamo.toml.",
        )


def is_2d(model: nn.Module) -> bool:
    """Return whether a network has 2D convolutions, so that it takes single planes (B, C, Y, X)."""
    from torch import nn

    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _load_initial_weights(model: nn.Module, path: Path, classes: int) -> None:
    """Load weights in place, except those of a last layer with another number of classes."""
    from safetensors import SafetensorError

    from gradcamo_assets.networks.weights import read_weights

    remedy = "Use a safetensors file of the same architecture, trained on as many stains."
    try:
        loaded = read_weights(model, path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"the weights cannot be read ({error})", remedy, path=path) from error
    current = model.state_dict()
    last_weight = [name for name in current if name.endswith("weight") and len(current[name]) == classes][-1:]
    head = {*last_weight, *(name.removesuffix("weight") + "bias" for name in last_weight)}
    differing = {name for name in current.keys() & loaded.keys() if current[name].shape != loaded[name].shape}
    # A head that differs only in its number of classes keeps its current weights.
    kept = {name for name in differing & head if current[name].shape[1:] == loaded[name].shape[1:]}
    for problem, names in (
        ("lack", current.keys() - loaded.keys()),
        ("have unknown", loaded.keys() - current.keys()),
        ("have other shapes for", differing - kept),
    ):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise BundleError(f"the weights {problem} {listed}", remedy, path=path)
    model.load_state_dict({**loaded, **{name: current[name] for name in kept}})
