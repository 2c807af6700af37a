"""Masks of one field, and what makes them of single slices: quality, stitching along z, dropping specks.

Not here: networks and images (``segment``), the table of cells (``cells``), files (``store``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from scipy.special import expit

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
    pair = first[both].astype(np.int64) * width + second[both]
    # Objects are runs of voxels: sorting the runs takes a twentieth of sorting the voxels.
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    pairs, which = np.unique(pair[starts], return_inverse=True)
    shared = np.bincount(which, np.diff(starts, append=len(pair)), len(pairs)).astype(np.int64)
    return pairs // width, pairs % width, shared


def object_quality(labels: np.ndarray, flows: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Sums over the voxels of every object (3, n + 1), by label: voxels, probability of being inside, flow error.

    The flow error of a voxel is the squared difference between the predicted flow and the unit vector towards the
    centroid of its object. Cellpose takes the flow that diffusion inside the mask gives, at a hundred times the cost.

    Args:
        labels: (Y, X) or (Z, Y, X), 0 outside. flows: one unit component an axis. logits: of the labels' shape.
    """
    where = np.nonzero(labels)
    label = labels[where]
    count = int(label.max(initial=0)) + 1
    size = np.bincount(label, minlength=count)
    towards = [(np.bincount(label, at, count) / np.maximum(size, 1))[label] - at for at in where]
    length = np.maximum(np.sqrt(sum(part**2 for part in towards)), 1e-6)
    error = sum((part / length - flow[where]) ** 2 for part, flow in zip(towards, flows, strict=True))
    return np.stack([size, np.bincount(label, expit(logits[where]), count), np.bincount(label, error, count)])


def confidence_of(
    before: np.ndarray, labels: np.ndarray, quality: Sequence[np.ndarray], threshold: float
) -> pl.DataFrame:
    """One row a cell: ``CONFIDENCE_SCHEMA``.

    ``cell_probability`` and ``flow_error`` are means over the voxels that were segmented. ``stitch_breaks`` counts the
    links between neighbouring slices of a cell whose intersection over union is below twice ``threshold`` (that of
    ``stitched``), and the slices in which it was missed.

    Args:
        before: objects as they were segmented (Z, Y, X), numbered anew in every slice. labels: what became of them.
        quality: ``object_quality`` of each slice, or of the whole stack where it was segmented as one.
    """
    count = int(labels.max(initial=0)) + 1
    sums = np.zeros((3, count))
    pieces = (len(quality), -1)
    for was, now, found in zip(before.reshape(pieces), labels.reshape(pieces), quality, strict=True):
        became = np.zeros(found.shape[1], np.int64)
        became[was] = now
        sums += [np.bincount(became, row, count) for row in found]
    kept = np.flatnonzero(sums[0, 1:]) + 1
    columns = (kept, *(sums[1:, kept] / sums[0, kept]), _breaks(before, labels, threshold, count)[kept])
    return pl.DataFrame(dict(zip(CONFIDENCE_SCHEMA, columns, strict=True))).cast(CONFIDENCE_SCHEMA)  # type: ignore[arg-type]


def _breaks(before: np.ndarray, labels: np.ndarray, threshold: float, count: int) -> np.ndarray:
    sizes = np.zeros((len(labels), count), np.int64)
    weak = np.zeros(count, np.int64)
    last = np.zeros_like(labels[0])
    for z, (was, now) in enumerate(zip(before, labels, strict=True)):
        seen = np.where(was > 0, now, 0)  # Without what was filled in.
        sizes[z] = np.bincount(seen.ravel(), minlength=count)
        if z:
            shared = np.bincount(seen[seen == last], minlength=count)
            union = sizes[z] + sizes[z - 1] - shared
            weak += (sizes[z] > 0) & (sizes[z - 1] > 0) & (shared < 2 * threshold * union)
        last = seen
    there = sizes > 0
    spanned = np.maximum.accumulate(there) & np.maximum.accumulate(there[::-1])[::-1]
    return weak + (spanned & ~there).sum(axis=0)


def stitched(planes: np.ndarray, threshold: float) -> np.ndarray:
    """Slices segmented one by one (Z, Y, X) joined along z, uint32.

    Two objects in neighbouring slices are one where each is the other's best partner and their intersection over union
    reaches the threshold, as in Cellpose's ``stitch3D`` (which may give two objects one label after an empty slice). An
    object missed in a single slice is joined across it, and that slice is filled with what both sides share.
    """
    out = np.zeros(planes.shape, np.uint32)
    used = 0
    for z, plane in enumerate(planes):
        sizes = np.bincount(plane.ravel())
        present = np.flatnonzero(sizes[1:]) + 1
        labels = np.zeros(len(sizes), np.uint32)
        taken = np.zeros(used + 1, bool)
        for back in (1, 2):
            if z < back or labels[present].all():
                continue
            before = out[z - back]
            if back == 2:
                taken[out[z - 1]] = True
            now, then = _partners(plane, before, threshold)
            free = (labels[now] == 0) & ~taken[then]
            partner = np.zeros_like(labels)
            partner[now[free]] = then[free]
            taken[then[free]] = True
            labels += partner
            if back == 2 and free.any():
                joined = partner[plane]
                gap = (joined > 0) & (joined == before) & (out[z - 1] == 0)
                out[z - 1][gap] = joined[gap]
        new = present[labels[present] == 0]
        labels[new] = np.arange(used + 1, used + len(new) + 1)
        used += len(new)
        out[z] = labels[plane]
    return out


def _partners(plane: np.ndarray, before: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels in ``plane`` and in ``before`` that are each other's best by intersection over union, one to one."""
    now, then, shared = overlaps(plane, before)
    iou = shared / (np.bincount(plane.ravel())[now] + np.bincount(before.ravel())[then] - shared)
    best_now, best_then = np.zeros(now.max(initial=0) + 1), np.zeros(then.max(initial=0) + 1)
    np.maximum.at(best_now, now, iou)
    np.maximum.at(best_then, then, iou)
    mutual = np.flatnonzero((iou >= threshold) & (iou == best_now[now]) & (iou == best_then[then]))
    for labels in (now, then):  # Of partners that are equally good the first is taken.
        mutual = mutual[np.unique(labels[mutual], return_index=True)[1]]
    return now[mutual], then[mutual]


def without_specks(labels: np.ndarray, least: int) -> np.ndarray:
    """Objects of at least ``least`` voxels, numbered 1, 2, ... in the old order, uint32."""
    count = int(labels.max(initial=0)) + 1
    sizes = sum((np.bincount(plane.ravel(), minlength=count) for plane in labels), np.zeros(count, np.int64))
    keep = sizes >= max(least, 1)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.uint32)[labels]
