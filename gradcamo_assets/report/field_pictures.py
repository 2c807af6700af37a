"""Draw a field with its segmentation, and the illumination of a plate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from gradcamo_assets.report.colours import binned, composite, intensity_limits
from gradcamo_assets.report.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIELD_PIXELS = 500
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def segmentation_overlay(
    image: np.ndarray,
    cells: np.ndarray,
    nuclei: np.ndarray | None = None,
    voxel_size: Sequence[float | None] = (None, None, None),
    title: str = "",
) -> Figure:
    """Outline cells (white) and nuclei (blue) in the slice and in the xz section with the most cell voxels.

    A single plane has no section.

    Args:
        image: (C, Z, Y, X), raw intensities.
        cells, nuclei: (Z, Y, X) labels; 0 is background.
        voxel_size: (z, y, x) in micrometres, None where unknown. Without y and x, and z of a stack, axes are in pixels.
    """
    is_plane = len(cells) == 1
    z = int((cells > 0).sum(axis=(1, 2)).argmax())
    y = int((cells > 0).sum(axis=(0, 2)).argmax())
    step = max(1, -(-max(cells.shape[1:]) // _FIELD_PIXELS))
    is_known = None not in voxel_size[is_plane:]
    dz, dy, dx = [size or 1.0 for size in voxel_size] if is_known else [1.0, 1.0, 1.0]
    depth, height, width = np.multiply(cells.shape, (dz, dy, dx))
    unit = "µm" if is_known else "pixels"
    z_unit = "slices" if voxel_size[0] is None or not is_known else unit
    # Thin stacks are stretched, by at most 4, to be visible.
    stretch = float(np.clip(0.15 * height / depth, 1, 4))
    # One row per screen pixel, so that outlines are as thin in the section as in the slice.
    rows = np.minimum((np.arange(0, depth, dx * step / stretch) / dz).astype(int), len(cells) - 1)
    limits = intensity_limits(binned(image[None, :, z], step, step))

    heights = [height] if is_plane else [height, depth * stretch]
    figure = new_figure(6.5, 6.5 * 0.85 * sum(heights) / width + 0.9)
    panels = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0]
    views: list[tuple[np.ndarray, Any, float, float]] = [
        (binned(image[:, z], step, step), np.s_[z, ::step, ::step], height, 1),
        (binned(image[:, rows, y], 1, step), np.s_[rows, y, ::step], depth, stretch),
    ]
    for axes, (pixels, cut, bottom, aspect) in zip(panels, views, strict=False):
        picture = composite(pixels, limits)
        for labels, colour in ((nuclei, (0.34, 0.71, 0.91)), (cells, (1.0, 1.0, 1.0))):
            if labels is not None:
                part = labels[cut][: picture.shape[0], : picture.shape[1]]
                picture[(part > 0) & (scipy.ndimage.morphological_gradient(part, footprint=_CROSS) != 0)] = colour
        axes.imshow(picture, extent=(0, width, bottom, 0), aspect=aspect, interpolation="nearest")
    count = f"{np.count_nonzero(np.unique(cells))} cells"
    subtitle = count if is_plane else f"slice {z + 1} of {len(cells)}, {count}"
    panels[0].set(ylabel=f"y ({unit})", title=f"{title}\n{subtitle}".strip())
    panels[-1].set_xlabel(f"x ({unit})")
    if not is_plane:
        panels[0].axhline((y + 0.5) * dy, color="#E69F00", linewidth=1, linestyle=":")
        note = "" if stretch == 1 else f", depth stretched {stretch:.2g} times"
        panels[1].set(xlabel=f"x ({unit}); xz section along the dotted line{note}", ylabel=f"z ({z_unit})")
    return figure


def illumination_maps(illumination: np.ndarray, channels: Sequence[str]) -> Figure:
    """Draw illumination relative to its mean, one panel per channel, all on one scale.

    Args:
        illumination: (C, y, x), with mean 1 per channel.
        channels: C names.
    """
    figure = new_figure(1.9 * len(channels) + 0.9, 2.2)
    panels = figure.subplots(1, len(channels), squeeze=False)[0]
    deviation = max(0.05, float(np.abs(illumination - 1).max()))
    for axes, channel, light in zip(panels, channels, illumination, strict=True):
        picture = axes.imshow(light, cmap="PuOr_r", vmin=1 - deviation, vmax=1 + deviation, interpolation="bilinear")
        axes.set_title(f"{channel}\n{light.min():.2f} to {light.max():.2f}", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(picture, ax=list(panels), label="illumination / mean", shrink=0.8)
    return figure
