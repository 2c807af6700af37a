"""Cutting one cell at a time out of a field, with what belongs to it, to its neighbours and to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from gradcamo_assets.common.errors import CropError

BACKGROUND, TARGET, NEIGHBOUR = 0, 1, 2


@dataclass(frozen=True)
class CropConfig:
    """What is cut, and which cells.

    Attributes:
        shape: (z, y, x) of a crop in voxels. The paper's is (21, 128, 128).
        keep_border: keep cells that the field's edge in x or y cuts through; a part of them was never imaged.
    """

    shape: tuple[int, int, int] = (21, 128, 128)
    keep_border: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise CropError(f"a crop of shape {self.shape} cannot be cut", "Give (z, y, x), each at least 1.")


def qc_flag(config: CropConfig) -> pl.Expr:
    """Why a cell of the cell table is left out of the crops, or NULL for a cell that is kept."""
    return (
        pl.when(pl.col("qc_flag").is_not_null())
        .then(pl.col("qc_flag"))
        .when(pl.col("touches_xy_border") & pl.lit(not config.keep_border))
        .then(pl.lit("touches the field's border"))
    )


def window(centre: float, length: int, size: int) -> tuple[slice, int]:
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
        windows = [window(c, n, size) for c, n, size in zip(centroid, config.shape, cells.shape, strict=True)]
        source = tuple(part for part, _ in windows)
        place = tuple(slice(before, before + part.stop - part.start) for part, before in windows)
        crop = np.broadcast_to(padding, (len(image), *config.shape)).copy()
        crop[(slice(None), *place)] = image[(slice(None), *source)]
        found = cells[source]
        labels = np.zeros(config.shape, dtype=np.uint8)
        labels[place] = np.where(found == label, TARGET, np.where(found > 0, NEIGHBOUR, BACKGROUND))
        if not (labels == TARGET).any():
            raise CropError(f"cell {label} has no voxel in its crop", "Make the cell table from these masks again.")
        yield crop, labels
