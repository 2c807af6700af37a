"""Crop single cells from a field, with labels for target, neighbours and background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from gradcamo_assets.errors import CropError
from gradcamo_assets.settings import section, setting

BACKGROUND, TARGET, NEIGHBOUR = 0, 1, 2

_Voxels = Annotated[int, Field(ge=1)]


@section
class CropConfig:
    """Size of crops, selection of cells and storage: section ``[crops]`` of ``gradcamo.toml``."""

    shape: tuple[_Voxels, _Voxels, _Voxels] = setting(
        (21, 128, 128), "(z, y, x) in voxels; the default is the paper's."
    )
    keep_border: bool = setting(False, "Keep cells that touch the field's border in x or y.")
    pad: bool = setting(
        True,
        "Keep cells whose crop leaves the field in x or y, padded with the plate's centre. Padding in z is always on.",
    )
    store: Literal["always", "training", "never"] = setting(
        "training",
        "When to store the pixels of crops, instead of cutting them from the field each time: `always` (1.8 MB a cell "
        "of the default shape), of plates used in a `training` from then on, or `never` (a training stores them while "
        "it lasts).",
    )


def qc_flag(config: CropConfig, field_shape: Sequence[int] | None = None) -> pl.Expr:
    """Return an expression for ``qc_flag``: the reason why a cell is not cropped, or NULL.

    Args:
        field_shape: (z, y, x) of the field in voxels; required without ``pad``.

    Raises:
        CropError: if ``field_shape`` is required but missing.
    """
    leaves_field = pl.lit(False)
    if not config.pad:
        if field_shape is None:
            raise CropError("crops without padding need the field's shape", "Pass field_shape, or set pad = true.")
        for axis, length, size in list(zip("zyx", config.shape, field_shape, strict=True))[1:]:
            start = (pl.col(f"centroid_{axis}") + 0.5 - length / 2).round(mode="half_to_even")
            leaves_field |= (start < 0) | (start + length > size)
    return (
        pl.when(pl.col("qc_flag").is_not_null())
        .then(pl.col("qc_flag"))
        .when(pl.col("touches_xy_border") & pl.lit(not config.keep_border))
        .then(pl.lit("touches the field's border"))
        .when(leaves_field)
        .then(pl.lit("the crop leaves the field"))
    )


def crop_window(centre: float, length: int, size: int) -> tuple[slice, int]:
    """Return the part of an axis of ``size`` voxels that a crop of ``length`` around ``centre`` covers.

    An axis that is not longer than the crop is taken whole and centred, so that all cells of a thin stack have their
    slices in the same places.

    Returns:
        Slice of the axis, and the padding before it.
    """
    start = round(centre + 0.5 - length / 2) if size > length else -((length - size) // 2)
    low, high = max(start, 0), min(start + length, size)
    return slice(low, high), low - start


def cut_crops(
    image: np.ndarray, cells: np.ndarray, table: pl.DataFrame, config: CropConfig, fill: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a crop and its labels for each row of ``table``.

    Args:
        image: (C, Z, Y, X) uint16.
        cells: (Z, Y, X) instance labels.
        table: ``label`` and ``centroid_z``, ``centroid_y``, ``centroid_x`` in voxels.
        fill: (C,) intensity outside the field: the plate's centre, which becomes 0 after standardisation.

    Yields:
        (C, z, y, x) uint16, which may be a view of the image, and (z, y, x) uint8 of ``BACKGROUND``, ``TARGET`` and
        ``NEIGHBOUR``.

    Raises:
        CropError: if image and labels differ in shape, or a crop contains no voxel of its cell.
    """
    if image.shape[1:] != cells.shape:
        raise CropError(f"image {image.shape[1:]} and masks {cells.shape} differ in shape", "Segment the field again.")
    padding = np.asarray(fill, dtype=image.dtype)[:, None, None, None]
    columns = table.select("label", "centroid_z", "centroid_y", "centroid_x").iter_rows()
    for label, *centroid in columns:
        windows = [crop_window(c, n, size) for c, n, size in zip(centroid, config.shape, cells.shape, strict=True)]
        source = tuple(part for part, _ in windows)
        instances, intensities = cells[source], image[(slice(None), *source)]
        is_target = instances == label
        if not is_target.any():
            raise CropError(f"cell {label} has no voxel in its crop", "Make the cell table from these masks again.")
        regions = (instances > 0).view(np.uint8) * np.uint8(NEIGHBOUR)
        regions -= is_target.view(np.uint8) * np.uint8(NEIGHBOUR - TARGET)
        if instances.shape == config.shape:
            yield intensities, regions
            continue
        destination = tuple(slice(before, before + part.stop - part.start) for part, before in windows)
        crop = np.broadcast_to(padding, (len(image), *config.shape)).copy()
        labels = np.full(config.shape, BACKGROUND, np.uint8)
        crop[(slice(None), *destination)], labels[destination] = intensities, regions
        yield crop, labels
