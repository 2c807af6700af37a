"""The table of cells: where each cell lies, how large it is, which nucleus it has, and which true cell it matches.

Takes label arrays, returns polars frames. Not here: how the labels were made.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import ndimage as ndi

from gradcamo_assets.segmentation.masks import overlaps

CELL_SCHEMA: dict[str, type[pl.DataType]] = {
    "label": pl.Int32,
    **dict.fromkeys(("centroid_z", "centroid_y", "centroid_x"), pl.Float64),
    **dict.fromkeys(("bbox_z0", "bbox_z1", "bbox_y0", "bbox_y1", "bbox_x0", "bbox_x1"), pl.Int32),
    "volume_voxels": pl.Int64,
    **dict.fromkeys(("touches_xy_border", "touches_z_border"), pl.Boolean),
    **dict.fromkeys(("nucleus_label", "n_nuclei"), pl.Int32),
}
_MATCH_SCHEMA = {"label": pl.Int32, "true_label": pl.Int32, "overlap": pl.Float64, "iou": pl.Float64}


def cell_table(cells: np.ndarray, nuclei: np.ndarray) -> pl.DataFrame:
    """One row a cell, by label: ``CELL_SCHEMA``.

    Args:
        cells, nuclei: labels (Z, Y, X) of whole numbers, 0 outside.

    Centroids are means of voxel indices; boxes are half-open. A nucleus belongs to the one cell that holds most of it;
    ``nucleus_label`` is the one with the largest overlap (NULL without any), ``n_nuclei`` counts them.
    ``touches_z_border`` is False where Z is 1, since a single slice has no border in z.
    """
    boxes = ndi.find_objects(cells.astype(np.int32, copy=False))
    labels = np.array([label for label, box in enumerate(boxes, start=1) if box is not None], np.int64)
    if not len(labels):
        return pl.DataFrame(schema=CELL_SCHEMA)
    corners = np.array([[(part.start, part.stop) for part in box] for box in boxes if box is not None])
    where = np.nonzero(cells)
    label = cells[where].astype(np.int64)
    volume = np.bincount(label)[labels]
    columns: dict[str, np.ndarray] = {"label": labels, "volume_voxels": volume}
    for axis, name in enumerate("zyx"):
        columns[f"centroid_{name}"] = np.bincount(label, where[axis])[labels] / volume
        columns[f"bbox_{name}0"], columns[f"bbox_{name}1"] = corners[:, axis, 0], corners[:, axis, 1]
    touches = (corners[:, :, 0] == 0) | (corners[:, :, 1] == cells.shape)
    columns["touches_xy_border"] = touches[:, 1] | touches[:, 2]
    columns["touches_z_border"] = touches[:, 0] & (cells.shape[0] > 1)
    return (
        pl.DataFrame(columns)
        .join(_nuclei_of_cells(cells, nuclei), on="label", how="left", maintain_order="left")
        .with_columns(pl.col("n_nuclei").fill_null(0))
        .select([pl.col(name).cast(kind) for name, kind in CELL_SCHEMA.items()])
    )


def _pairs(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(dict(zip((*names, "shared"), overlaps(first, second), strict=True)))


def _nuclei_of_cells(cells: np.ndarray, nuclei: np.ndarray) -> pl.DataFrame:
    """For each cell with a nucleus: ``label``, ``nucleus_label``, ``n_nuclei``. Ties go to the smaller label."""
    pairs = _pairs(cells, nuclei, ("label", "nucleus_label"))
    owned = pairs.sort(["shared", "label"], descending=[True, False]).unique("nucleus_label", keep="first")
    ranked = owned.sort(["label", "shared", "nucleus_label"], descending=[False, True, False])
    return ranked.group_by("label").agg(pl.col("nucleus_label").first(), pl.len().alias("n_nuclei"))


def match_labels(predicted: np.ndarray, truth: np.ndarray) -> pl.DataFrame:
    """For each predicted label the true label that covers most of it.

    Columns: ``label``, ``true_label`` (NULL if none), ``overlap`` (share of the predicted object's voxels that
    lie in the true one), ``iou`` (intersection over union of the two); the last two are 0 without a partner. Several
    predicted labels may match one true label. Ties go to the smaller true label.

    Args:
        predicted, truth: labels of one shape, 0 outside.
    """
    predicted_size, true_size = np.bincount(predicted.ravel()), np.bincount(truth.ravel())
    labels = np.flatnonzero(predicted_size[1:]) + 1
    if not len(labels):
        return pl.DataFrame(schema=_MATCH_SCHEMA)
    pairs = _pairs(predicted, truth, ("label", "true_label"))
    best = pairs.sort(["shared", "true_label"], descending=[True, False]).unique("label", keep="first")
    sizes = pl.DataFrame({"label": labels, "size": predicted_size[labels]})
    true_sizes = pl.DataFrame({"true_label": np.arange(len(true_size)), "true_size": true_size})
    union = pl.col("size") + pl.col("true_size") - pl.col("shared")
    return (
        sizes.join(best, on="label", how="left")
        .join(true_sizes, on="true_label", how="left")
        .with_columns(overlap=pl.col("shared") / pl.col("size"), iou=pl.col("shared") / union)
        .with_columns(pl.col("overlap", "iou").fill_null(0.0))
        .sort("label")
        .select([pl.col(name).cast(kind) for name, kind in _MATCH_SCHEMA.items()])
    )
