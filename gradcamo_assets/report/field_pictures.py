"""Pictures of fields and plates in pixels: a field with its segmentation, and the light of a plate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from gradcamo_assets.report.colours import binned, composite, intensity_limits
from gradcamo_assets.report.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIELD_PIXELS = 500
_CROSS = ndimage.generate_binary_structure(2, 1)


def segmentation_overlay(
    image: np.ndarray,
    cells: np.ndarray,
    nuclei: np.ndarray | None = None,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    title: str = "",
) -> Figure:
    """Outlines of cells (white) and nuclei (blue) over the channels: the slice, and the xz cut, with most cell voxels.

    Args:
        image: (C, Z, Y, X), raw intensities.
        cells, nuclei: (Z, Y, X) labels, 0 is background.
        voxel_size: (z, y, x) in micrometres.
    """
    z = int((cells > 0).sum(axis=(1, 2)).argmax())
    y = int((cells > 0).sum(axis=(0, 2)).argmax())
    step = max(1, -(-max(cells.shape[1:]) // _FIELD_PIXELS))
    dz, dy, dx = voxel_size
    depth, height, width = np.multiply(cells.shape, voxel_size)
    # Thin stacks are drawn at four times their depth at most, or nothing would be seen in them.
    stretch = float(np.clip(0.15 * height / depth, 1, 4))
    # One row a screen pixel, so that outlines in the cut are as thin as in the slice.
    rows = np.minimum((np.arange(0, depth, dx * step / stretch) / dz).astype(int), len(cells) - 1)
    limits = intensity_limits(binned(image[None, :, z], step, step))

    figure = new_figure(6.5, 6.5 * 0.85 * (height + depth * stretch) / width + 0.9)
    above, side = figure.subplots(2, 1, height_ratios=[height, depth * stretch], sharex=True)
    for axes, pixels, cut, bottom, aspect in (
        (above, binned(image[:, z], step, step), np.s_[z, ::step, ::step], height, 1),
        (side, binned(image[:, rows, y], 1, step), np.s_[rows, y, ::step], depth, stretch),
    ):
        picture = composite(pixels, limits)
        for labels, colour in ((nuclei, (0.34, 0.71, 0.91)), (cells, (1.0, 1.0, 1.0))):
            if labels is not None:
                part = labels[cut][: picture.shape[0], : picture.shape[1]]
                picture[(part > 0) & (ndimage.morphological_gradient(part, footprint=_CROSS) != 0)] = colour
        axes.imshow(picture, extent=(0, width, bottom, 0), aspect=aspect, interpolation="nearest")
    above.axhline((y + 0.5) * dy, color="#E69F00", linewidth=1, linestyle=":")
    count = np.count_nonzero(np.unique(cells))
    above.set(ylabel="y (µm)", title=f"{title}\nslice {z + 1} of {len(cells)}, {count} cells".strip())
    drawn = "" if stretch == 1 else f", drawn {stretch:.2g} times as deep"
    side.set(xlabel=f"x (µm); xz cut along the dotted line{drawn}", ylabel="z (µm)")
    return figure


def illumination_maps(illumination: np.ndarray, channels: Sequence[str]) -> Figure:
    """Where a plate's light is brighter or darker than its mean, a panel a channel, all on one scale.

    Args:
        illumination: (C, y, x) around 1.
        channels: their names.
    """
    figure = new_figure(1.9 * len(channels) + 0.9, 2.2)
    panels = figure.subplots(1, len(channels), squeeze=False)[0]
    reach = max(0.05, float(np.abs(illumination - 1).max()))
    for axes, channel, light in zip(panels, channels, illumination, strict=True):
        shown = axes.imshow(light, cmap="PuOr_r", vmin=1 - reach, vmax=1 + reach, interpolation="bilinear")
        axes.set_title(f"{channel}\n{light.min():.2f} to {light.max():.2f}", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(shown, ax=list(panels), label="light / mean", shrink=0.8)
    return figure
