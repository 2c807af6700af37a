"""Measure cells in label arrays: position, size, shape, nuclei, and the matching true cell, as polars frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import scipy

from gradcamo_assets.segmentation import shapes
from gradcamo_assets.segmentation.masks import CONFIDENCE_SCHEMA, count_overlaps

CELL_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "label": pl.Int32,
    **dict.fromkeys(("centroid_z", "centroid_y", "centroid_x"), pl.Float64),
    **dict.fromkeys(("bbox_z0", "bbox_z1", "bbox_y0", "bbox_y1", "bbox_x0", "bbox_x1"), pl.Int32),
    "volume_voxels": pl.Int64,
    **dict.fromkeys(("touches_xy_border", "touches_z_border"), pl.Boolean),
    **dict.fromkeys(("nucleus_label", "n_nuclei"), pl.Int32),
    **dict.fromkeys(("nucleus_share", "sphericity", "solidity"), pl.Float64),
    "mean_intensity": pl.List(pl.Float64),
    "n_slices": pl.Int32,
    "stitch_breaks": pl.Int32,
    **dict.fromkeys(("nearest_neighbour_um", "cell_probability", "flow_error"), pl.Float64),
    "qc_warning": pl.String,
}
_MATCH_SCHEMA = {"label": pl.Int32, "true_label": pl.Int32, "overlap": pl.Float64, "iou": pl.Float64}


def cell_table(
    cells: np.ndarray,
    nuclei: np.ndarray | None,
    voxel_size: Sequence[float | None] = (None, None, None),
    *,
    image: np.ndarray | None = None,
    confidence: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Measure each cell and return one row per cell, ordered by label, with the schema ``CELL_SCHEMA``.

    Centroids are means of voxel indices; bounding boxes are half-open. A nucleus belongs to the cell that contains most
    of it. ``nucleus_label`` is the cell's nucleus with the largest overlap (NULL without nuclei), ``n_nuclei`` their
    number, and ``nucleus_share`` the share of the cell that they fill; all are NULL if ``nuclei`` is None.
    ``touches_z_border`` is False if Z is 1, since a single slice has no border in z. ``shapes`` defines ``sphericity``,
    ``solidity`` and ``nearest_neighbour_um``; the last is NULL for the only cell of a field. ``qc_warning`` reports
    cells without a nucleus or with several.

    Without the voxel size, ``nearest_neighbour_um`` is NULL for cells that touch no other, and ``sphericity`` is
    NULL in stacks. A single slice needs only y and x; its pixels count as square if they are unknown.

    Args:
        cells: integer labels (Z, Y, X), 0 outside.
        nuclei: the same, or None if there is no nucleus stain.
        voxel_size: (z, y, x) in um, None where unknown.
        image: (C, Z, Y, X); None leaves ``mean_intensity`` NULL.
        confidence: ``Masks.confidence``; cells that it lacks get NULL in its columns.
    """
    boxes = scipy.ndimage.find_objects(
        cells.view(np.int32) if cells.dtype == np.uint32 else cells.astype(np.int32, copy=False)
    )
    labels = np.array([label for label, box in enumerate(boxes, start=1) if box is not None], np.int64)
    if not len(labels):
        return pl.DataFrame(schema=CELL_SCHEMA)
    boxes = [box for box in boxes if box is not None]
    corners = np.array([[(part.start, part.stop) for part in box] for box in boxes])
    sums, intensity = _sum_by_cell(cells, labels, image)
    volume = sums["volume"].astype(np.int64)
    columns: dict[str, np.ndarray] = {"label": labels, "volume_voxels": volume, "n_slices": sums["slices"]}
    for axis, name in enumerate("zyx"):
        columns[f"centroid_{name}"] = sums[name] / volume
        columns[f"bbox_{name}0"], columns[f"bbox_{name}1"] = corners[:, axis, 0], corners[:, axis, 1]
    touches = (corners[:, :, 0] == 0) | (corners[:, :, 1] == cells.shape)
    columns["touches_xy_border"] = touches[:, 1] | touches[:, 2]
    columns["touches_z_border"] = touches[:, 0] & (cells.shape[0] > 1)
    is_flat = len(cells) == 1
    is_known = None not in voxel_size[is_flat:]
    # Without a size, lengths are in voxels. The z of a single slice is not used.
    voxel = [size or 1.0 for size in voxel_size] if is_known else [1.0, 1.0, 1.0]
    outlines = shapes.measure_outlines(cells, voxel)
    size = volume * float(np.prod(voxel[is_flat:]))
    sphericity = shapes.sphericity(size, outlines.surface[labels], is_flat)
    columns["solidity"] = shapes.solidity(volume, outlines.corners)
    touches_cell = outlines.touching[labels]
    gaps = np.where(touches_cell, 0.0, np.nan)
    if is_known:
        gaps = shapes.distance_to_nearest(cells, boxes, labels, ~touches_cell, voxel)
    n_nuclei = pl.col("n_nuclei")
    return (
        pl.DataFrame(columns)
        .with_columns(
            pl.Series("sphericity", sphericity if is_known or is_flat else [None] * len(labels), pl.Float64),
            pl.Series("nearest_neighbour_um", gaps, nan_to_null=True),
            pl.Series("mean_intensity", intensity, pl.List(pl.Float64)),
        )
        .join(_nuclei_of_cells(cells, nuclei), on="label", how="left", maintain_order="left")
        .join(
            (pl.DataFrame(schema=CONFIDENCE_SCHEMA) if confidence is None else confidence).cast({"label": pl.Int64}),
            on="label", how="left", maintain_order="left",
        )
        .with_columns(pl.col("n_nuclei", "nucleus_voxels").fill_null(pl.lit(None if nuclei is None else 0)))
        .with_columns(nucleus_share=pl.col("nucleus_voxels") / volume)
        .with_columns(
            qc_warning=pl.when(n_nuclei == 0)
            .then(pl.lit("no nucleus"))
            .when(n_nuclei > 1)
            .then(pl.format("{} nuclei", n_nuclei))
        )
        .select([pl.col(name).cast(kind) for name, kind in CELL_SCHEMA.items()])
    )  # fmt: skip


def _sum_by_cell(
    cells: np.ndarray, labels: np.ndarray, image: np.ndarray | None
) -> tuple[dict[str, np.ndarray], list[list[float] | None]]:
    """Sum each cell's voxels, slices and voxel indices, and compute its mean intensities, slice by slice.

    Returns:
        Sums by name, (cells,) each; and per cell the mean intensity of each channel, or None without an image.
    """
    size = int(labels[-1]) + 1
    sums = {name: np.zeros(size) for name in ("volume", "slices", "z", "y", "x")}
    intensity_sums = None if image is None else np.zeros((len(image), size))
    width = cells.shape[2]
    for z, plane in enumerate(cells.reshape(len(cells), -1)):
        inside = np.flatnonzero(plane)
        label = plane[inside].astype(np.int64)
        area = np.bincount(label, minlength=size)
        sums["volume"] += area
        sums["slices"] += area > 0
        sums["z"] += area * z
        sums["y"] += np.bincount(label, inside // width, size)
        sums["x"] += np.bincount(label, inside % width, size)
        if image is not None and intensity_sums is not None:
            for total, channel in zip(intensity_sums, image, strict=True):
                total += np.bincount(label, channel[z].reshape(-1)[inside], size)
    sums = {name: values[labels] for name, values in sums.items()}
    if intensity_sums is None:
        return sums, [None] * len(labels)
    return sums, (intensity_sums[:, labels] / sums["volume"]).T.tolist()


def _count_shared_voxels(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> pl.DataFrame:
    """Count the voxels that each pair of labels shares (``shared``), slice by slice to bound the memory."""
    parts = (count_overlaps(one[None], other[None]) for one, other in zip(first, second, strict=True))
    frames = [pl.DataFrame(dict(zip((*names, "shared"), part, strict=True))) for part in parts]
    return pl.concat(frames).group_by(names).agg(pl.col("shared").sum())


def _nuclei_of_cells(cells: np.ndarray, nuclei: np.ndarray | None) -> pl.DataFrame:
    """Assign each nucleus to a cell: ``label``, ``nucleus_label``, ``n_nuclei`` and the total ``nucleus_voxels``.

    Cells without a nucleus are left out. Ties go to the smaller label.
    """
    if nuclei is None:
        return pl.DataFrame(schema=dict.fromkeys(("label", "nucleus_label", "n_nuclei", "nucleus_voxels"), pl.Int64))
    pairs = _count_shared_voxels(cells, nuclei, ("label", "nucleus_label"))
    owned = pairs.sort(["shared", "label"], descending=[True, False]).unique("nucleus_label", keep="first")
    ranked = owned.sort(["label", "shared", "nucleus_label"], descending=[False, True, False])
    return ranked.group_by("label").agg(
        pl.col("nucleus_label").first(), pl.len().alias("n_nuclei"), pl.col("shared").sum().alias("nucleus_voxels")
    )


def match_labels(predicted: np.ndarray, truth: np.ndarray) -> pl.DataFrame:
    """Match each predicted label with the true label that covers most of it.

    Several predicted labels may match one true label. Ties go to the smaller true label.

    Args:
        predicted, truth: label arrays of the same shape, 0 outside.

    Returns:
        Columns ``label``; ``true_label``, NULL without a match; ``overlap``, the share of the predicted object inside
        the true one; and ``iou``, the intersection over union. The last two are 0 without a match.
    """
    predicted_size, true_size = np.bincount(predicted.ravel()), np.bincount(truth.ravel())
    labels = np.flatnonzero(predicted_size[1:]) + 1
    if not len(labels):
        return pl.DataFrame(schema=_MATCH_SCHEMA)
    pairs = _count_shared_voxels(predicted, truth, ("label", "true_label"))
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
