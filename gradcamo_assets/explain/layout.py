"""Find out whether a layer puts its channels first, (B, K, \\*grid), or last, (B, \\*grid, K).

Blocks of Swin and ConvNeXt networks put them last. Shapes often fit both layouts, so the network is asked: noise in a
corner of the crop changes the activations in the same corner of the grid, but changes channels alike in all corners.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from gradcamo_assets.explain.eager import run_eagerly

_MIN_SHIFT = 0.1
"""Smallest shift of the response, as a share of the grid and summed over its axes, that decides the layout."""

_LAYOUTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a layer puts its channels last, for layers of which this is known."""

_MAX_MEASUREMENTS = 3
"""A layer that these leave open, each on another batch, counts as channels first; a blank batch decides nothing."""

_OPEN: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Number of measurements that left a layer's layout open."""


_CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd)
"""Layers that put their channels first by definition."""


def may_be_channels_last(images: Tensor, layer: nn.Module, shape: Sequence[int]) -> bool:
    """Tell whether a layer may put its channels last, by its type, by the shape of its output and by what is known.

    Args:
        images: (B, C, *crop).
        shape: of the layer's output for these images, with as many axes.
    """
    if layer in _LAYOUTS or isinstance(layer, _CHANNELS_FIRST):
        return was_channels_last(layer)
    # A grid is not finer than its crop.
    return max(shape[2:]) > 1 and _fits(shape[1:-1], images)


def _fits(grid: Sequence[int], images: Tensor) -> bool:
    return all(size <= length for size, length in zip(grid, images.shape[2:], strict=True))


def is_channels_last(model: nn.Module, images: Tensor, layer: nn.Module, shape: Sequence[int]) -> bool:
    """Tell whether a layer of the model puts its channels last.

    The model runs once on three crops, unless ``may_be_channels_last`` rules it out or it was measured before.

    Args:
        images: (B, C, *crop).
        shape: of the layer's output for these images, with as many axes.
    """
    if layer in _LAYOUTS or not may_be_channels_last(images, layer, shape):
        return was_channels_last(layer)
    shift_if_first, shift_if_last = _measure_shifts(model, images, layer)
    if max(shift_if_first, shift_if_last) > _MIN_SHIFT:
        remember_layout(layer, shift_if_last > shift_if_first)
    elif not _fits(shape[2:], images):
        # The layer does not respond to the corners, and this grid would be finer than the crop.
        remember_layout(layer, True)
    else:
        _OPEN[layer] = _OPEN.get(layer, 0) + 1
        if _OPEN[layer] == _MAX_MEASUREMENTS:
            remember_layout(layer, False)
    return was_channels_last(layer)


def remember_layout(layer: nn.Module, is_last: bool) -> None:
    """Remember what was found out about a layer."""
    _LAYOUTS[layer] = is_last


def was_channels_last(layer: nn.Module) -> bool:
    """Tell whether it is known that the layer puts its channels last."""
    return _LAYOUTS.get(layer, False)


def _measure_shifts(model: nn.Module, images: Tensor, layer: nn.Module) -> tuple[float, float]:
    """Measure how far the layer's response follows noise to the opposite corner, if channels are first and if last.

    Shifts are shares of the grid, summed over its axes. The corners alternate between the low and the high end of the
    axes, so the response moves against the noise if axes are mistaken for each other.
    """
    crop = images.shape[2:]
    corners = [
        tuple(
            slice(0, -(-n // 3)) if (axis + end) % 2 == 0 else slice(n - -(-n // 3), n) for axis, n in enumerate(crop)
        )
        for end in (0, 1)
    ]
    # Both corners get the same noise on a uniform image, so that the channels respond alike.
    uniform = images[:1].mean(tuple(range(2, images.ndim)), keepdim=True)
    probes = uniform.expand(1, -1, *crop).repeat(3, *[1] * (images.ndim - 1))
    noise = torch.randn(probes[0][:, *corners[0]].shape, generator=torch.Generator().manual_seed(0))
    spread = float(images[:1].std())
    for probe, corner in zip(probes[1:], corners, strict=True):
        probe[:, *corner] += (noise * (spread or 1.0)).to(probes)
    outputs: list[Tensor] = []
    with _evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        handle = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.clone()))
        try:
            run_eagerly(model, probes)
        finally:
            handle.remove()
    without_noise, *with_noise = outputs[-1].float().cpu()
    centres = [_find_centre((values - without_noise).abs()) for values in with_noise]
    shifts = [(high - low) * (-1) ** axis for axis, (low, high) in enumerate(zip(*centres, strict=True))]
    # From the second axis on, the grid follows the crop's axes from the first; their directions alternate.
    return -sum(shifts[1:]), sum(shifts[:-1])


def _find_centre(values: Tensor) -> list[float]:
    """Return the centre of mass along every axis, as a share of its length; NaN without mass."""
    centres = []
    for axis, size in enumerate(values.shape):
        profile = values.movedim(axis, 0).flatten(1).sum(1)
        positions = (torch.arange(size).to(profile) + 0.5) / size
        centres.append(float((profile * positions).sum() / profile.sum()))
    return centres


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside the block, so that its batch statistics do not change."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
