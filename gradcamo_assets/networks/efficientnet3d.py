"""Anisotropic 3D EfficientNet whose last map has enough resolution to locate a cell.

The building blocks are those of EfficientNetV2 (Tan & Le, ICML 2021, arXiv 2104.00298): fused inverted bottlenecks
first, depthwise ones later. Differences:

- Strides are (z, y, x) tuples, 8 in plane and 2 in z, since a stack has only about 21 slices.
- Early stages work in plane only, later ones factor kernels into (1, k, k) and (k, 1, 1): dense 3D kernels are slow on
  CPUs.
- Strided kernels are even and padded evenly, so a map voxel lies at the centre of the pixels it represents, as linear
  upsampling with align_corners=False assumes. Odd kernels would shift the map by half its stride.
- No kernel reaches along z and in plane at once, so convolutions run in 2D with channels last, of one slice or many. A
  training step takes 0.7 to 0.8 of the processor's time in 3D.
- Few layers follow the last stride, and squeeze-excitation is absent: both would mix distant pixels into a voxel.
- The last stage receives the distance from the crop's axis (after CoordConv, Liu et al., NeurIPS 2018). The target is
  at the centre; local features alone cannot distinguish it from its neighbours.
- Global average pooling and one linear layer follow the last activation, so that Grad-CAM has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Stage:
    """A sequence of equal blocks; only the first one has the stride."""

    kind: Literal["fused", "factored"]
    width: int
    depth: int
    expansion: int
    stride: Triple


SIZES: dict[str, tuple[int, tuple[Stage, ...], int]] = {
    # Stem width, stages, head width.
    "small": (
        16,
        (Stage("fused", 24, 1, 3, (1, 2, 2)), Stage("factored", 48, 1, 3, (2, 2, 2))),
        96,
    ),
    "base": (
        24,
        (Stage("fused", 48, 2, 4, (1, 2, 2)), Stage("factored", 96, 2, 4, (2, 2, 2))),
        192,
    ),
    "large": (
        32,
        (Stage("fused", 64, 4, 4, (1, 2, 2)), Stage("factored", 160, 2, 6, (2, 2, 2))),
        384,
    ),
}
"""Larger networks are wider, and deeper only before the last stride: later layers blur the map."""


class EvenStridedConv(nn.Conv3d):
    """A convolution with kernel 2 * stride on strided axes, padded as needed: output = ceil(input / stride).

    Kernels of one slice, or along z only, are convolved in 2D, and so is a single slice, with the one slice of the
    kernel that meets it. Results are equal; with channels last, 2D needs no copy and takes less time.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, groups: int = 1):
        size = tuple(2 * s if s > 1 else k for k, s in zip(kernel, stride, strict=True))
        super().__init__(in_channels, out_channels, size, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to (B, K, ceil(Z / sz), ceil(Y / sy), ceil(X / sx))."""
        total = [k - s + (-n) % s for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        # A runtime that is given the traced network arranges 3D convolutions itself, and views only get in its way.
        is_traced = torch.jit.is_tracing() and x.shape[2] > 1
        in_plane = 1 in (x.shape[2], self.kernel_size[0]) and not is_traced
        if any(odd := [part % 2 for part in (0 if in_plane else total[0], *total[1:])]):
            x = F.pad(x, [side for part in reversed(odd) for side in (0, part)])
        # Padding inside the convolution is free; a padded copy costs a third of a forward pass.
        padding = [part // 2 for part in total]
        if in_plane:
            planes, weight = x.transpose(1, 2).flatten(0, 1), self.weight[:, :, padding[0]]
            out = F.conv2d(planes, weight, self.bias, self.stride[1:], padding[1:], 1, self.groups)
            return out.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
        if self.kernel_size[1:] == (1, 1) and not is_traced:
            weight, stride = self.weight[..., 0], (self.stride[0], 1)
            out = F.conv2d(x.flatten(3), weight, self.bias, stride, (padding[0], 0), 1, self.groups)
            return out.unflatten(3, x.shape[3:])
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def _conv_norm_activation(conv: nn.Module, width: int, activation: nn.Module | None) -> list[nn.Module]:
    return [conv, nn.BatchNorm3d(width), *([activation] if activation else [])]


class Block(nn.Module):
    """Inverted bottleneck, with a residual connection if input and output shapes are equal."""

    def __init__(self, stage: Stage, width_in: int, stride: Triple):
        super().__init__()
        hidden, out = width_in * stage.expansion, stage.width
        in_plane, through = (1, stride[1], stride[2]), (stride[0], 1, 1)
        layers: list[nn.Module] = []
        if stage.kind == "fused":
            layers += _conv_norm_activation(EvenStridedConv(width_in, hidden, (1, 3, 3), stride), hidden, nn.SiLU(True))
        else:
            layers += _conv_norm_activation(
                EvenStridedConv(width_in, hidden, (1, 1, 1), (1, 1, 1)), hidden, nn.SiLU(True)
            )
            layers += [EvenStridedConv(hidden, hidden, (1, 3, 3), in_plane, groups=hidden)]
            layers += _conv_norm_activation(
                EvenStridedConv(hidden, hidden, (3, 1, 1), through, groups=hidden), hidden, nn.SiLU(True)
            )
        layers += _conv_norm_activation(EvenStridedConv(hidden, out, (1, 1, 1), (1, 1, 1)), out, None)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == (1, 1, 1) and width_in == out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to the stage's width and stride."""
        out = self.layers(x)
        return x + out if self.residual else out


class AppendRadius(nn.Module):
    """Append a channel with the squared in-plane distance from the crop's axis, 1 at the middle of an edge."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to (B, C + 1, Z, Y, X)."""
        y, x_ = ((torch.arange(n, device=x.device) + 0.5) * (2 / n) - 1 for n in x.shape[-2:])
        radius = (y[:, None] ** 2 + x_**2).to(x.dtype)
        # Without the layout of x, the copy and all that follows would have channels first.
        layout = torch.channels_last_3d if x.stride(1) == 1 else torch.contiguous_format
        return torch.cat([x, radius.expand(len(x), 1, *x.shape[2:]).contiguous(memory_format=layout)], dim=1)


class EfficientNet3D(nn.Module):
    """Map crops to class logits.

    The layer to explain is ``activation``, the input of global average pooling. ``forward`` returns only logits, as CAM
    libraries expect. ``forward_features`` returns the feature maps; the embedding is their mean.

    Args:
        in_channels: number of stains.
        classes: number of treatment classes.
        size: a key of ``SIZES``.
    """

    layer = "activation"

    def __init__(self, in_channels: int, classes: int, size: str = "small"):
        super().__init__()
        stem, stages, head = SIZES[size]
        layers = _conv_norm_activation(EvenStridedConv(in_channels, stem, (1, 3, 3), (1, 2, 2)), stem, nn.SiLU(True))
        width = stem
        for stage in stages:
            if stage is stages[-1]:
                layers.append(AppendRadius())
                width += 1
            for index in range(stage.depth):
                layers.append(Block(stage, width, stage.stride if index == 0 else (1, 1, 1)))
                width = stage.width
        self.body = nn.Sequential(*layers)
        self.project = EvenStridedConv(width, head, (1, 1, 1), (1, 1, 1))
        self.norm = nn.BatchNorm3d(head)
        self.activation = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.head = nn.Linear(head, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map standardised intensities (B, C, Z, Y, X) to the last activation (B, K, z, y, x)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return self.activation(self.norm(self.project(self.body(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised intensities (B, C, Z, Y, X) to logits (B, classes)."""
        return self.head(torch.flatten(self.pool(self.forward_features(x)), 1))
