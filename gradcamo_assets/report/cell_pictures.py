"""Draw single cells: stains, masks and Grad-CAM maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from gradcamo_assets.report.colours import binned, composite, intensity_limits
from gradcamo_assets.report.style import COLOURS, GREY, dose_name, empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_CELLS = 9
_ACROSS = 8
_CROP_PIXELS = 64
_OUTLINES = [(1, "white", "solid"), (2, "#56B4E9", "dashed")]


def crops_with_maps(
    images: np.ndarray, labels: np.ndarray, cams: np.ndarray, titles: Sequence[str], across: int = 2
) -> Figure:
    """Draw two panels per cell: its channels, and its Grad-CAM map on a grey image, both with outlines.

    The slice with the largest target area is shown. Intensities have one scale for all crops; each map is scaled by its
    maximum over the whole crop. The target's outline is solid, those of neighbours are dashed.

    Args:
        images: (N, C, Z, Y, X), raw intensities. The first 9 cells are drawn.
        labels: (N, Z, Y, X); 0 background, 1 target, 2 neighbour.
        cams: (N, z, y, x), non-negative, at the layer's resolution.
        titles: one per cell, for example class, score and ``looks_at``; line breaks are kept.
        across: cells per row.
    """
    count = min(len(images), _MAX_CELLS)
    if not count:
        return empty_figure("No cells to show")
    columns, rows = min(count, across), -(-count // across)
    figure = new_figure(3.5 * columns, 2.05 * rows + 0.35)
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    image_options, step = _image_options(labels)
    limits = intensity_limits(binned(images[:count], step, step))
    for cell, (image_axes, map_axes) in enumerate(grid.reshape(-1, 2)[:count]):
        z = _largest_slice(labels[cell])
        picture = composite(binned(images[cell, :, z], step, step), limits)
        image_axes.imshow(picture, **image_options)
        drawn_map, peak = _draw_map(map_axes, picture, cams[cell], labels[cell], image_options)
        for axes in (image_axes, map_axes):
            _draw_outlines(axes, labels[cell, z])
        image_axes.set_title(titles[cell], fontsize=8, loc="left")
        slice_name = f"slice {z + 1} of {labels.shape[1]}" if labels.shape[1] > 1 else ""
        map_axes.set_title(slice_name if peak else "empty map", fontsize=8, loc="right")
    bar = figure.colorbar(drawn_map, ax=list(grid.ravel()), location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("Grad-CAM, share of the map's maximum   (target solid, neighbours dashed)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def pipeline_on_one_cell(image: np.ndarray, labels: np.ndarray, cam: np.ndarray, score: Mapping[str, Any]) -> Figure:
    """Draw the steps from a crop to its score: four images and one bar per region.

    Args:
        image: (C, Z, Y, X), raw intensities.
        labels, cam: of one cell, see ``crops_with_maps``.
        score: ``gradcamo``, ``neighbour_share`` and ``background_share`` of the map, ``mask_fraction`` and
            ``gradcamo_max``. Values of None are not drawn.
    """
    from matplotlib.colors import to_rgb

    figure = new_figure(10, 2.5)
    *panels, bars = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.3])
    image_options, step = _image_options(labels[None])
    z = _largest_slice(labels)
    pixels = binned(image[:, z], step, step)
    picture = composite(pixels, intensity_limits(pixels[None]))
    crop, masks, map_axes, overlap = panels
    crop.imshow(picture, **image_options)
    masks.imshow(np.array([[0.15] * 3, to_rgb(COLOURS[1]), to_rgb(COLOURS[4])])[labels[z]], **image_options)
    _draw_map(map_axes, picture, cam, labels, image_options)
    _draw_map(overlap, picture, cam, labels, image_options, only_target=True)
    names = ("1 crop", "2 mask and neighbours", "3 Grad-CAM map", "4 the map inside the mask")
    for axes, name in zip(panels, names, strict=True):
        _draw_outlines(axes, labels[z])
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    regions = [("cell", "gradcamo"), ("neighbours", "neighbour_share"), ("background", "background_share")]
    shares = [score.get(column) for _, column in regions]
    bars.barh(range(3), [share or 0 for share in shares], color=[COLOURS[1], COLOURS[4], GREY], height=0.55)
    for row, share in enumerate(shares):
        text = "no value" if share is None else f"{share:.2f}"
        bars.text((share or 0) + 0.02, row, text, va="center", fontsize=8)
    for column, style, label in (("mask_fraction", ":", "chance"), ("gradcamo_max", "--", "ceiling")):
        if (value := score.get(column)) is not None:
            bars.plot([value] * 2, [-0.42, 0.42], color="black", linestyle=style, linewidth=1.5, label=label)
    bars.set_yticks(range(3), [name for name, _ in regions], fontsize=8)
    bars.set(xlim=(0, 1.18), ylim=(2.5, -0.6), xticks=[0, 0.5, 1])
    bars.tick_params(axis="x", labelsize=8)
    bars.set_title("5 share of the map by region", fontsize=9)
    bars.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def crops_by_treatment(
    images: np.ndarray, labels: np.ndarray, channels: Sequence[str], treatments: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw one cell of each treatment, such as a typical one, with one intensity scale per stain.

    Up to 8 cells have one column each, with one row per stain in grey. More cells have one panel each, with all stains
    in colours; every compound with several doses has a row.

    Args:
        images: (N, C, Z, Y, X), raw intensities.
        labels: (N, Z, Y, X), see ``crops_with_maps``.
        channels: C names.
        treatments: compound, dose and unit of each cell; doses of a compound are next to each other.
    """
    if not len(images):
        return empty_figure("No cells to show")
    image_options, step = _image_options(labels)
    slices = [_largest_slice(cell) for cell in labels]
    outlined = [cell[z] for cell, z in zip(labels, slices, strict=True)]
    pixels = binned(np.stack([image[:, z] for image, z in zip(images, slices, strict=True)]), step, step)
    limits = intensity_limits(pixels)
    if len(images) > _ACROSS:
        pictures = [composite(cell, limits) for cell in pixels]
        return _cells_in_rows(pictures, outlined, _rows_of_treatments(treatments), treatments, image_options)
    figure = new_figure(1.35 * len(images) + 0.3, 1.35 * len(channels) + 0.3)
    grid = figure.subplots(len(channels), len(images), squeeze=False)
    for (channel, cell), axes in np.ndenumerate(grid):
        low, high = limits[channel]
        axes.imshow(pixels[cell, channel], cmap="gray", vmin=low, vmax=max(high, low + 1e-9), **image_options)
        _draw_outlines(axes, outlined[cell])
        axes.set(xticks=[], yticks=[])
        if channel == 0:
            axes.set_title(_title(treatments[cell]), fontsize=8)
        if cell == 0:
            axes.set_ylabel(channels[channel], fontsize=8)
    return figure


def _rows_of_treatments(treatments: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the indices of treatments by row: every compound with several has a row, others share rows of 8."""
    compounds = [list(group) for _, group in groupby(range(len(treatments)), lambda n: _compound(treatments[n]))]
    single = [group[0] for group in compounds if len(group) == 1]
    rows = [single[start : start + _ACROSS] for start in range(0, len(single), _ACROSS)]
    return rows + [group for group in compounds if len(group) > 1]


def _compound(treatment: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Return whether a treatment is a control, and its compound."""
    return treatment["Metadata_Dose"] == 0, treatment["Metadata_Compound"]


def _cells_in_rows(
    pictures: Sequence[np.ndarray],
    outlined: Sequence[np.ndarray],
    rows: Sequence[Sequence[int]],
    treatments: Sequence[Mapping[str, Any]],
    image_options: dict[str, Any],
) -> Figure:
    across = max(map(len, rows))
    figure = new_figure(1.05 * across + 1.0, sum(1.2 if len(row) == 1 else 1.1 for row in rows) + 0.2)
    grid = figure.subplots(len(rows), across, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[], frame_on=False)
    for row, panels in zip(rows, grid, strict=True):
        is_series = len({_compound(treatments[cell]) for cell in row}) < len(row)
        for cell, axes in zip(row, panels, strict=False):
            treatment = treatments[cell]
            axes.imshow(pictures[cell], **image_options)
            _draw_outlines(axes, outlined[cell])
            axes.set_title(dose_name(treatment) if is_series else _title(treatment), fontsize=7, pad=2)
        if is_series:
            panels[0].set_ylabel(
                _in_lines(treatments[row[0]]["Metadata_Compound"]), fontsize=8, rotation=0, ha="right", va="center"
            )
    return figure


def _title(treatment: Mapping[str, Any]) -> str:
    return f"{_in_lines(treatment['Metadata_Compound'])}\n{dose_name(treatment)}".strip()


def _in_lines(compound: str | None) -> str:
    """Break the name of a compound into at most two short lines."""
    return textwrap.fill(compound or "untreated", 18, max_lines=2, placeholder=" ...")


def _image_options(labels: np.ndarray) -> tuple[dict[str, Any], int]:
    """Return the options of ``imshow`` for crops (N, Z, Y, X), and the edge of the pixel blocks to average."""
    height, width = labels.shape[-2:]
    step = max(1, max(height, width) // _CROP_PIXELS)
    return {"extent": (-0.5, width - 0.5, height - 0.5, -0.5), "interpolation": "nearest"}, step


def _largest_slice(labels: np.ndarray) -> int:
    """Return the index of the slice with the largest target area in labels (Z, Y, X)."""
    return int((labels == 1).sum(axis=(1, 2)).argmax())


def _draw_map(
    axes: Any,
    picture: np.ndarray,
    cam: np.ndarray,
    labels: np.ndarray,
    image_options: dict[str, Any],
    only_target: bool = False,
) -> tuple[Any, float]:
    """Draw the map over a grey picture in the slice with the largest target; return the drawn map and its maximum."""
    z = _largest_slice(labels)
    heat = upsampled(cam, labels.shape)
    peak = float(heat.max())
    share = heat[z] / (peak or 1)
    visible = (labels[z] == 1 if only_target else np.ones_like(labels[z])) * (peak > 0)
    alpha = (0.15 + 0.6 * share) * visible
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1, **image_options)
    return axes.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=alpha, **image_options), peak


def _draw_outlines(axes: Any, labels: np.ndarray) -> None:
    """Outline target and neighbours in the labels of a slice (Y, X)."""
    from matplotlib.patheffects import withStroke

    for region, colour, style in _OUTLINES:
        mask = labels == region
        if mask.any() and not mask.all():
            lines = axes.contour(mask.astype(float), [0.5], colors=colour, linestyles=style, linewidths=1.2)
            lines.set_path_effects([withStroke(linewidth=2.4, foreground="black")])


def upsampled(cam: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Upsample a map (z, y, x) to the crop's grid (Z, Y, X), linearly with align_corners=False, as in scoring."""
    factors = np.divide(shape, cam.shape)
    return scipy.ndimage.zoom(np.asarray(cam, np.float64), factors, order=1, mode="nearest", grid_mode=True)
