"""The compact network: a small U-Net that predicts Cellpose's flows, and loading of its weights.

``segmentation_training.train`` trains it; ``segment`` runs it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.openvino_runtime import CompiledNetwork

_BFLOAT16_TOLERANCE, _FLOAT32_TOLERANCE = 0.05, 1e-5
"""Largest allowed difference of the outputs from those of torch in float32, relative to the largest output."""

INPUTS = {"cells": 2, "nuclei": 1}
"""Number of input channels of each set of weights: (cytoplasm, nucleus) and (nucleus)."""


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = _conv(inputs, outputs), _conv(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.second(self.first(x))


class CompactNetwork(nn.Module):
    """A residual U-Net of about 0.4 M parameters that replaces Cellpose's network.

    Input: (B, C, Y, X) float32, normalised as by ``intensities.combine_stains``; C is at least ``inputs`` (further
    channels are ignored, since Cellpose pads to three); Y and X are multiples of 16. Output: (B, 3, Y, X), the flows in
    y and x (times 5) and the logit of being inside an object, and a style (B, 256) of zeros, as in Cellpose 4. Both are
    float32 whatever the type of the weights.
    Source: the targets of Stringer et al., Nature Methods 18, 100 (2021).

    Attributes:
        compiled: what computes the first output instead of torch (``use_openvino``), or None.
    """

    compiled: CompiledNetwork | None = None

    def __init__(self, inputs: int, widths: Sequence[int] = (16, 32, 48, 64, 96)):
        super().__init__()
        self.inputs = inputs
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip((inputs, *widths[:-1]), widths, strict=True))
        pairs = list(pairwise(widths))
        self.reduce = nn.ModuleList(_conv(wide, narrow) for narrow, wide in pairs)
        self.up = nn.ModuleList(_conv(narrow, narrow) for narrow, _ in pairs)
        self.head = nn.Conv2d(widths[0], 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x[:, : self.inputs]
        outputs = self.compiled(x) if self.compiled else self.predict(x)
        return outputs, torch.zeros(len(x), 256, device=x.device)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the first output with torch, from the channels that the network uses."""
        x = x.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last)
        skips = []
        for depth, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if depth else x)
            skips.append(x)
        for depth in reversed(range(len(self.up))):
            x = self.up[depth](F.interpolate(self.reduce[depth](x), scale_factor=2.0) + skips[depth])
        return self.head(x).float()

    def fold_batch_norm(self) -> CompactNetwork:
        """Switch to eval mode and fold every batch normalisation into its convolution, in place; return the network."""
        self.eval()
        for module in self.modules():
            if isinstance(module, nn.Sequential) and isinstance(module[1], nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
        return self.to(memory_format=torch.channels_last)


def load_network(kind: str, path: Path, device: torch.device | str = "cpu") -> CompactNetwork:
    """Load the compact network for ``cells`` or ``nuclei``, ready to run.

    On a CPU that computes in bfloat16, its weights are bfloat16, which takes half of the time.

    Raises:
        SegmentationError: the weights are missing or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = CompactNetwork(INPUTS[kind])
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        remedy = "Reinstall the package, or train them: python -m segmentation_training.train --out DIR."
        raise SegmentationError(
            f"the compact network's weights cannot be loaded: {error}", remedy, path=path
        ) from error
    network = network.fold_batch_norm().to(device)
    if torch.device(device).type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16"):
        network = _use_bfloat16(network)
    # Cellpose reads these attributes of a network.
    network.device, network.dtype = network.head.weight.device, torch.float32
    return network


def _use_bfloat16(network: CompactNetwork) -> CompactNetwork:
    """A copy of the network in bfloat16, or the network itself if the outputs differ by more than rounding."""
    half = copy.deepcopy(network).to(torch.bfloat16)
    return half if _outputs_agree(network, half.predict, _BFLOAT16_TOLERANCE) else network


def use_openvino(network: CompactNetwork) -> None:
    """Run the network with OpenVINO from now on, in the precision of its weights, which must not change afterwards.

    It stays on torch without OpenVINO, or if the outputs differ by more than rounding.
    """
    precision = "bfloat16" if network.head.weight.dtype == torch.bfloat16 else "float32"
    exact = copy.deepcopy(network).float()
    try:
        compiled = CompiledNetwork(_Predict(exact).eval(), _noise(network), precision, any_shape=True)
    except Exception:  # torch gives the same masks, only later.
        return
    if _outputs_agree(exact, compiled, _BFLOAT16_TOLERANCE if precision == "bfloat16" else _FLOAT32_TOLERANCE):
        network.compiled = compiled


class _Predict(nn.Module):
    """A compact network with its first output only."""

    def __init__(self, network: CompactNetwork):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.predict(x)


def _outputs_agree(network: CompactNetwork, other: Callable[[torch.Tensor], torch.Tensor], tolerance: float) -> bool:
    image = _noise(network)
    with torch.inference_mode():
        exact, coarse = network.predict(image), other(image)
        return bool((coarse - exact).abs().max() <= tolerance * exact.abs().max())


def _noise(network: CompactNetwork) -> torch.Tensor:
    return torch.rand((1, network.inputs, 64, 64), generator=torch.Generator().manual_seed(0))
