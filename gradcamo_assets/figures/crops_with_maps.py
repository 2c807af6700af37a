"""The contact sheet: single cells and where the model looked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradcamo_assets.figures.style import binned, composite, empty_figure, intensity_limits, new_figure, outline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 8
_PIXELS = 64


def crops_with_maps(images: np.ndarray, labels: np.ndarray, cams: np.ndarray, titles: list[str]) -> Figure:
    """A pair of panels a cell: its channels, and its Grad-CAM map on grey, with the cells' outlines.

    Shown is the slice in which the target is largest. Intensities are scaled alike in all crops, each map by its own
    maximum over the whole crop. The target's outline is solid, the neighbours' are dashed.

    Args:
        images: (N, C, Z, Y, X), raw intensities. The first 8 cells are drawn.
        labels: (N, Z, Y, X); 0 background, 1 target, 2 neighbour.
        cams: (N, z, y, x), non-negative, at the layer's resolution.
        titles: one a cell, such as class, score and ``looks_at``; a line break is kept.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    count = min(len(images), _MOST)
    if not count:
        return empty_figure("No cells to show")
    pairs = min(count, 2)
    rows = -(-count // pairs)
    figure = new_figure(3.5 * pairs, 2.05 * rows + 0.35)
    grid = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    step = max(1, max(labels.shape[2:]) // _PIXELS)
    limits = intensity_limits(binned(images[:count], step, step))
    for cell in range(count):
        plain, mapped = grid[cell // pairs, 2 * (cell % pairs) : 2 * (cell % pairs) + 2]
        z = int((labels[cell] == 1).sum(axis=(1, 2)).argmax())
        label, extent = labels[cell, z], (-0.5, labels.shape[3] - 0.5, labels.shape[2] - 0.5, -0.5)
        picture = composite(binned(images[cell, :, z], step, step), limits)
        heat = upsampled(cams[cell], labels.shape[1:])
        peak = float(heat.max())
        plain.imshow(picture, extent=extent, interpolation="nearest")
        grey = picture.mean(axis=2, keepdims=True)
        mapped.imshow(np.repeat(grey, 3, axis=2), extent=extent, interpolation="nearest")
        if peak > 0:
            share = heat[z] / peak
            mapped.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.6 * share, interpolation="nearest")
        for axes in (plain, mapped):
            outline(axes, label == 1, "white")
            outline(axes, label == 2, "#56B4E9", "dashed")
        plain.set_title(titles[cell], fontsize=8, loc="left")
        mapped.set_title(f"slice {z + 1} of {len(labels[cell])}" if peak > 0 else "empty map", fontsize=8, loc="right")
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "inferno"),
        ax=list(grid.ravel()),
        location="bottom",
        shrink=0.5,
        aspect=40,
        pad=0.02,
    )
    bar.set_label("Grad-CAM, share of the map's maximum   (target solid, neighbours dashed)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def upsampled(cam: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map (z, y, x) on the crop's grid (Z, Y, X), linear with align_corners=False, as scored."""
    from scipy.ndimage import zoom

    factors = [new / old for new, old in zip(shape, cam.shape, strict=True)]
    return zoom(np.asarray(cam, np.float64), factors, order=1, mode="nearest", grid_mode=True)
