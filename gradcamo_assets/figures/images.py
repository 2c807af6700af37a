"""Pictures of pixels: single cells and where the model looked, and a field with its segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gradcamo_assets.figures.style import COLOURS, empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CELLS = 8
_CROP_PIXELS, _FIELD_PIXELS = 64, 500
_OUTLINES = [(1, "white", "solid"), (2, "#56B4E9", "dashed")]
_CROSS = ndimage.generate_binary_structure(2, 1)


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
    from matplotlib.patheffects import withStroke

    count = min(len(images), _MOST_CELLS)
    if not count:
        return empty_figure("No cells to show")
    pairs, rows = min(count, 2), -(-count // 2)
    figure = new_figure(3.5 * pairs, 2.05 * rows + 0.35)
    grid = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    depth, height, width = labels.shape[1:]
    step = max(1, max(height, width) // _CROP_PIXELS)
    limits = _intensity_limits(_binned(images[:count], step, step))
    frame: dict[str, Any] = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5), "interpolation": "nearest"}
    for cell, (plain, mapped) in enumerate(grid.reshape(-1, 2)[:count]):
        z = int((labels[cell] == 1).sum(axis=(1, 2)).argmax())
        picture = _composite(_binned(images[cell, :, z], step, step), limits)
        heat = upsampled(cams[cell], labels.shape[1:])
        peak = float(heat.max())
        share = heat[z] / (peak or 1)
        plain.imshow(picture, **frame)
        mapped.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1, **frame)
        shown = mapped.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=(0.15 + 0.6 * share) * (peak > 0), **frame)
        for axes, (region, colour, style) in product((plain, mapped), _OUTLINES):
            mask = labels[cell, z] == region
            if mask.any() and not mask.all():
                lines = axes.contour(mask.astype(float), [0.5], colors=colour, linestyles=style, linewidths=1.2)
                lines.set_path_effects([withStroke(linewidth=2.4, foreground="black")])
        plain.set_title(titles[cell], fontsize=8, loc="left")
        mapped.set_title(f"slice {z + 1} of {depth}" if peak > 0 else "empty map", fontsize=8, loc="right")
    bar = figure.colorbar(shown, ax=list(grid.ravel()), location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("Grad-CAM, share of the map's maximum   (target solid, neighbours dashed)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def upsampled(cam: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map (z, y, x) on the crop's grid (Z, Y, X), linear with align_corners=False, as scored."""
    factors = np.divide(shape, cam.shape)
    return ndimage.zoom(np.asarray(cam, np.float64), factors, order=1, mode="nearest", grid_mode=True)


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
    limits = _intensity_limits(_binned(image[None, :, z], step, step))

    figure = new_figure(6.5, 6.5 * 0.85 * (height + depth * stretch) / width + 0.9)
    above, side = figure.subplots(2, 1, height_ratios=[height, depth * stretch], sharex=True)
    for axes, pixels, cut, bottom, aspect in (
        (above, _binned(image[:, z], step, step), np.s_[z, ::step, ::step], height, 1),
        (side, _binned(image[:, rows, y], 1, step), np.s_[rows, y, ::step], depth, stretch),
    ):
        picture = _composite(pixels, limits)
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


def _binned(image: np.ndarray, step_y: int, step_x: int) -> np.ndarray:
    """Block means over the last two axes, incomplete blocks left out: less shot noise, and so a smaller PNG."""
    y, x = image.shape[-2] // step_y, image.shape[-1] // step_x
    blocks = image[..., : y * step_y, : x * step_x].reshape(*image.shape[:-2], y, step_y, x, step_x)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def _intensity_limits(images: np.ndarray) -> np.ndarray:
    """Black and white points (C, 2) from images (N, C, Y, X): the same for all, so that intensities can be compared."""
    return np.percentile(np.moveaxis(images, 1, 0).reshape(images.shape[1], -1), [25, 99.8], axis=1).T


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


def _composite(image: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Channels (C, Y, X) as one picture (Y, X, 3) in 0..1: grey for one channel, else one colour a channel, added."""
    from matplotlib.colors import to_rgb

    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.array([to_rgb(COLOURS[c % 6]) for c in range(len(image))] if len(image) > 1 else [(1.0, 1.0, 1.0)])
    # Where all channels are bright the sum would be white, and outlines invisible.
    colours *= min(1.0, 1.1 / colours.sum(axis=0).max())
    return np.clip(np.einsum("cyx,cr->yxr", scaled, colours), 0, 1)
