"""A field and its segmentation, from above and from the side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradcamo_assets.figures.style import binned, composite, intensity_limits, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELLS, _NUCLEI = (1.0, 1.0, 1.0), (0.34, 0.71, 0.91)
_PIXELS = 500


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
    step = max(1, -(-max(cells.shape[1:]) // _PIXELS))
    dz, dy, dx = voxel_size
    width, height, depth = cells.shape[2] * dx, cells.shape[1] * dy, cells.shape[0] * dz
    # Thin stacks are drawn at four times their depth at most, or nothing would be seen in them.
    stretch = float(np.clip(0.15 * height / depth, 1, 4))
    # One row a screen pixel, so that outlines in the cut are as thin as in the slice.
    rows = np.minimum((np.arange(0, depth, dx * step / stretch) / dz).astype(int), cells.shape[0] - 1)
    limits = intensity_limits(binned(image[None, :, z], step, step))

    figure = new_figure(6.5, 6.5 * 0.85 * (height + depth * stretch) / width + 0.9)
    above, side = figure.subplots(2, 1, height_ratios=[height, depth * stretch], sharex=True)
    for axes, pixels, cut, extent in (
        (above, binned(image[:, z], step, step), np.s_[z, ::step, ::step], (0, width, height, 0)),
        (side, binned(image[:, rows, y], 1, step), np.s_[rows, y, ::step], (0, width, depth, 0)),
    ):
        picture = composite(pixels, limits)
        shown = np.s_[: picture.shape[0], : picture.shape[1]]
        if nuclei is not None:
            picture[_borders(nuclei[cut][shown])] = _NUCLEI
        picture[_borders(cells[cut][shown])] = _CELLS
        axes.imshow(picture, extent=extent, aspect=stretch if axes is side else 1, interpolation="nearest")
    above.axhline((y + 0.5) * dy, color="#E69F00", linewidth=1, linestyle=":")
    above.set(ylabel="y (µm)", title=f"{title}\nslice {z + 1} of {len(cells)}, {_count(cells)} cells".strip())
    drawn = "" if stretch == 1 else f", drawn {stretch:.2g} times as deep"
    side.set(xlabel=f"x (µm); xz cut along the dotted line{drawn}", ylabel="z (µm)")
    return figure


def _count(labels: np.ndarray) -> int:
    return int(np.count_nonzero(np.unique(labels)))


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels of an object whose neighbour below or to the right, or above or to the left, is not of it."""
    differs = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    differs[1:] |= down
    differs[:-1] |= down
    differs[:, 1:] |= right
    differs[:, :-1] |= right
    return differs & (labels > 0)
