"""Masks of one field, and what makes them of masks of single slices: checking, stitching along z, dropping specks.

Not here: networks and images (``segment``), the table of cells (``cells``), files (``store``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

CONFIDENCE_SCHEMA: dict[str, type[pl.DataType]] = {
    "label": pl.Int32,
    "cell_probability": pl.Float64,
    "flow_error": pl.Float64,
    "stitch_breaks": pl.Int32,
}
"""How far each cell can be believed; ``confidence_of`` says what the columns are."""


@dataclass(frozen=True)
class Masks:
    """Labels of one field's cells and nuclei, each (Z, Y, X) uint32, 0 outside; the two are numbered independently.

    ``confidence``: one row a cell, ``CONFIDENCE_SCHEMA``; no rows where the masks were not made by a ``Segmenter``.
    """

    cells: np.ndarray
    nuclei: np.ndarray
    confidence: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CONFIDENCE_SCHEMA))


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of labels that share a voxel: label in ``first``, label in ``second``, shared voxels; all int64."""
    both = (first > 0) & (second > 0)
    width = int(second.max(initial=0)) + 1
    pairs, shared = np.unique(first[both].astype(np.int64) * width + second[both], return_counts=True)
    return pairs // width, pairs % width, shared


def consistent(planes: np.ndarray, flows: np.ndarray, threshold: float) -> np.ndarray:
    """Slices (Z, Y, X) without the objects whose pixels do not flow to the object's middle.

    The error of an object is the mean squared difference between the predicted flows (2, Z, Y, X) and unit vectors
    towards its centroid. Cellpose takes the flow that diffusion inside the mask gives, at a hundred times the cost.
    """
    kept = planes.copy()
    for z, plane in enumerate(planes):
        y, x = np.nonzero(plane)
        if not len(y):
            continue
        label = plane[y, x]
        area = np.maximum(np.bincount(label), 1)
        to_y = (np.bincount(label, y) / area)[label] - y
        to_x = (np.bincount(label, x) / area)[label] - x
        length = np.maximum(np.hypot(to_y, to_x), 1e-6)
        error = (to_y / length - flows[0, z, y, x]) ** 2 + (to_x / length - flows[1, z, y, x]) ** 2
        kept[z][(np.bincount(label, error) / area)[plane] > threshold] = 0
    return kept


def stitched(planes: np.ndarray, threshold: float) -> np.ndarray:
    """Slices segmented one by one (Z, Y, X) joined along z, uint32.

    Two objects in neighbouring slices are one where each is the other's best partner and their intersection over union
    reaches the threshold, as in Cellpose's ``stitch3D``, which may give two objects one label after
    an empty slice. An object missed in a single slice is joined across it, and that slice is filled with what both
    sides share.
    """
    out = np.zeros(planes.shape, np.uint32)
    used = 0
    for z, plane in enumerate(planes):
        labels = np.zeros(int(plane.max(initial=0)) + 1, np.uint32)
        present = np.unique(plane[plane > 0])
        for back in (1, 2):
            if z < back:
                continue
            before = out[z - back]
            taken = set(labels.tolist()) | (set(np.unique(out[z - 1]).tolist()) if back == 2 else set())
            for now, then in _partners(plane, before, threshold):
                if labels[now] == 0 and then not in taken:
                    labels[now] = then
                    taken.add(then)
                    if back == 2:
                        gap = (plane == now) & (before == then) & (out[z - 1] == 0)
                        out[z - 1][gap] = then
        new = present[labels[present] == 0]
        labels[new] = np.arange(used + 1, used + len(new) + 1)
        used += len(new)
        out[z] = labels[plane]
    return out


def _partners(plane: np.ndarray, before: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs of labels (in ``plane``, in ``before``) that are each other's best by intersection over union."""
    now, then, shared = overlaps(plane, before)
    if not len(shared):
        return []
    iou = shared / (np.bincount(plane.ravel())[now] + np.bincount(before.ravel())[then] - shared)
    best_now, best_then = np.zeros(now.max() + 1), np.zeros(then.max() + 1)
    np.maximum.at(best_now, now, iou)
    np.maximum.at(best_then, then, iou)
    mutual = (iou >= threshold) & (iou == best_now[now]) & (iou == best_then[then])
    return list(zip(now[mutual].tolist(), then[mutual].tolist(), strict=True))


def without_specks(labels: np.ndarray, least: int) -> np.ndarray:
    """Objects of at least ``least`` voxels, numbered 1, 2, ... in the old order, uint32."""
    sizes = np.bincount(labels.ravel())
    keep = sizes >= max(least, 1)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.uint32)[labels]
