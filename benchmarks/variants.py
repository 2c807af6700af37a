"""The shipped encoder with one choice of its design undone each: what ``planted_truth --design`` compares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradcamo_assets.networks.efficientnet3d import SIZES, AppendRadius, EfficientNet3D, Stage

_STEM, _STAGES, _HEAD = SIZES["small"]


class Gate(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018): every voxel is scaled by what the whole crop holds."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width // 4), nn.SiLU(), nn.Linear(width // 4, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x.mean((2, 3, 4)))[:, :, None, None, None]


class PerCrop(nn.Module):
    """Divides each channel of a crop by the crop's own mean and deviation."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3, 4), keepdim=True)
        return self.model(centred / centred.std((2, 3, 4), keepdim=True).clamp_min(1e-3))


def _sized(stages: tuple[Stage, ...], in_channels: int, classes: int) -> EfficientNet3D:
    SIZES["variant"] = (_STEM, stages, _HEAD)
    return EfficientNet3D(in_channels, classes, "variant")


def stride16(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A further stage of stride 2 in plane."""
    return _sized((*_STAGES, Stage("factored", 64, 1, 3, (1, 2, 2))), in_channels, classes), "activation"


def gates(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A squeeze-and-excitation gate behind each block."""
    model = EfficientNet3D(in_channels, classes)
    widths = iter([_STAGES[0].width, _STAGES[1].width])
    layers = []
    for layer in model.body:
        layers.append(layer)
        if type(layer).__name__ == "Block":
            layers.append(Gate(next(widths)))
    model.body = nn.Sequential(*layers)
    return model, "activation"


def deep(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """Three blocks more after the last stride."""
    last = _STAGES[-1]
    stages = (*_STAGES[:-1], Stage(last.kind, last.width, 4, last.expansion, last.stride))
    return _sized(stages, in_channels, classes), "activation"


def no_radius(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """No channel that tells the distance from the middle: it holds zeros."""
    model = EfficientNet3D(in_channels, classes)
    for layer in model.body:
        if isinstance(layer, AppendRadius):
            layer.register_forward_hook(_without)
    return model, "activation"


def _without(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return torch.cat([output[:, :-1], torch.zeros_like(output[:, -1:])], 1)


def per_crop(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """Intensities standardised by each crop's own."""
    return PerCrop(EfficientNet3D(in_channels, classes)), "model.activation"
