"""Cutting one cell at a time out of a field, with what belongs to it, to its neighbours and to nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from gradcamo_assets.errors import CropError
from gradcamo_assets.settings import section, setting

BACKGROUND, TARGET, NEIGHBOUR = 0, 1, 2


_Voxels = Annotated[int, Field(ge=1)]


@section
class CropConfig:
    """What is cut, and which cells: section ``[crops]`` of ``gradcamo.toml``."""

    shape: tuple[_Voxels, _Voxels, _Voxels] = setting((21, 128, 128), "(z, y, x) in voxels; these are the paper's.")
    keep_border: bool = setting(False, "Keep cells that the field's edge in x or y cuts through.")
    pad: bool = setting(
        True, "Keep cells whose crop leaves the field in x or y, filled with the plate's centre; in z always padded."
    )


def qc_flag(config: CropConfig, field_shape: Sequence[int] | None = None) -> pl.Expr:
    """Why a cell of the cell table is left out of the crops, or NULL for a cell that is kept.

    Args:
        field_shape: (z, y, x) of the field in voxels; needed without ``pad``.

    Raises:
        CropError: where it is needed and not given.
    """
    leaves = pl.lit(False)
    if not config.pad:
        if field_shape is None:
            raise CropError("crops without padding need the field's shape", "Give the field's shape, or set pad.")
        for axis, length, size in list(zip("zyx", config.shape, field_shape, strict=True))[1:]:
            start = (pl.col(f"centroid_{axis}") + 0.5 - length / 2).round(mode="half_to_even")
            leaves |= (start < 0) | (start + length > size)
    return (
        pl.when(pl.col("qc_flag").is_not_null())
        .then(pl.col("qc_flag"))
        .when(pl.col("touches_xy_border") & pl.lit(not config.keep_border))
        .then(pl.lit("touches the field's border"))
        .when(leaves)
        .then(pl.lit("the crop leaves the field"))
    )


def crop_window(centre: float, length: int, size: int) -> tuple[slice, int]:
    """The part of an axis of ``size`` voxels that a crop of ``length`` around ``centre`` takes, and the padding.

    Where the axis is no longer than the crop the whole of it is taken and centred, so that every cell of a thin stack
    has its slices in the same places.
    """
    start = round(centre + 0.5 - length / 2) if size > length else -((length - size) // 2)
    low, high = max(start, 0), min(start + length, size)
    return slice(low, high), low - start


def cut_crops(
    image: np.ndarray, cells: np.ndarray, table: pl.DataFrame, config: CropConfig, fill: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a crop and its labels for each row of ``table``.

    Args:
        image: (C, Z, Y, X) uint16. cells: (Z, Y, X) instance labels.
        table: ``label`` and ``centroid_z``, ``centroid_y``, ``centroid_x`` in voxels.
        fill: (C,) intensity that stands where the crop leaves the field: the plate's own centre, so that it is 0 once
            standardised.

    Yields:
        (C, z, y, x) uint16 and (z, y, x) uint8 of ``BACKGROUND``, ``TARGET`` and ``NEIGHBOUR``.

    Raises:
        CropError: if image and labels do not lie on one grid, or a label is not in the mask.
    """
    if image.shape[1:] != cells.shape:
        raise CropError(f"image {image.shape[1:]} and masks {cells.shape} differ in shape", "Segment the field again.")
    padding = np.asarray(fill, dtype=image.dtype)[:, None, None, None]
    columns = table.select("label", "centroid_z", "centroid_y", "centroid_x").iter_rows()
    for label, *centroid in columns:
        windows = [crop_window(c, n, size) for c, n, size in zip(centroid, config.shape, cells.shape, strict=True)]
        source = tuple(part for part, _ in windows)
        found = cells[source]
        inside, mine = image[(slice(None), *source)], found == label
        seen = (found > 0).view(np.uint8) * np.uint8(NEIGHBOUR) - mine.view(np.uint8) * np.uint8(NEIGHBOUR - TARGET)
        if not mine.any():
            raise CropError(f"cell {label} has no voxel in its crop", "Make the cell table from these masks again.")
        if found.shape == config.shape:
            yield inside.copy(), seen
            continue
        place = tuple(slice(before, before + part.stop - part.start) for part, before in windows)
        crop = np.broadcast_to(padding, (len(image), *config.shape)).copy()
        labels = np.full(config.shape, BACKGROUND, np.uint8)
        crop[(slice(None), *place)], labels[place] = inside, seen
        yield crop, labels
