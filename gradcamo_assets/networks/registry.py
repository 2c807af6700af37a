"""Encoders by name: ours, MONAI's ResNet-18 with an anisotropic stem, or a user's own by import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradcamo_assets.common.errors import BundleError
from gradcamo_assets.common.importing import imported

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
    "monai-resnet18": _monai_resnet18,
}


def encoder_names() -> list[str]:
    """The built-in names."""
    return sorted(_BUILT_IN)


def build_encoder(name: str, in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A fresh network and the dotted name of the layer to explain.

    Args:
        name: a built-in name, or ``module:function`` where ``function(in_channels, classes)`` returns ``(network,
            layer)``. The module is imported, so name only code you trust.
        in_channels: stains. classes: treatment classes.

    Raises:
        BundleError: for a name that is neither, or a function that cannot be imported.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name](in_channels, classes)
    remedy = f"Use one of {', '.join(encoder_names())}, or 'module:function' of an installed module."
    return imported(name, "encoder", remedy, BundleError)(in_channels, classes)


def is_planar(model: nn.Module) -> bool:
    """Whether a network takes single planes (B, C, Y, X), as one with 2D convolutions does."""
    from torch import nn

    return any(isinstance(module, nn.Conv2d) for module in model.modules())
