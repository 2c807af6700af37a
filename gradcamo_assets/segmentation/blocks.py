"""Segmenting a field in overlapping blocks of its plane, and putting their objects together.

An object belongs to the block whose inner part holds its centre, and is taken from there whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage as ndi

Window = tuple[slice, slice]

_SLACK = 2
"""Pixels by which inner parts overlap, since two blocks may put an object's centre a little apart."""


def blocks(shape: tuple[int, int], side: int, halo: int) -> Iterator[tuple[Window, Window]]:
    """Blocks that cover a plane (Y, X): what to segment, and the inner part, relative to it, that counts.

    Args:
        side: most pixels along y and x of what is segmented, as far as ``halo`` allows.
        halo: pixels around the inner part; objects may reach so far out of it.
    """
    if max(shape) <= side:
        yield (slice(0, shape[0]), slice(0, shape[1])), (slice(0, shape[0]), slice(0, shape[1]))
        return
    counts = [-(-length // max(side - 2 * halo, halo, 1)) for length in shape]
    edges = [np.linspace(0, length, count + 1).round().astype(int) for length, count in zip(shape, counts, strict=True)]
    for y in range(counts[0]):
        for x in range(counts[1]):
            outer, inner = [], []
            for axis, at in enumerate((y, x)):
                first, last = int(edges[axis][at]), int(edges[axis][at + 1])
                start = max(0, first - halo)
                outer.append(slice(start, min(shape[axis], last + halo)))
                inner.append(slice(max(0, first - start - _SLACK), last - start + _SLACK))
            yield (outer[0], outer[1]), (inner[0], inner[1])


def paste(into: np.ndarray, objects: np.ndarray, inner: Window, first: int) -> np.ndarray:
    """Write a block's objects into what is there, in place; the labels in ``objects`` that were written.

    Objects with their centre outside ``inner`` are left to other blocks, and so are those of which others have written
    half already. What is written stays.

    Args:
        into: the block's part of the field (Z, Y, X).
        objects: labels of the block (Z, Y, X), 0 outside.
        inner: the part of (Y, X) that counts.
        first: label of the first object written; the others count on.
    """
    written: list[int] = []
    for label, box in enumerate(ndi.find_objects(objects), start=1):
        if box is None:
            continue
        mask = objects[box] == label
        _, y, x = (float(at.mean()) + part.start for at, part in zip(np.nonzero(mask), box, strict=True))
        if not (inner[0].start <= y < inner[0].stop and inner[1].start <= x < inner[1].stop):
            continue
        free = mask & (into[box] == 0)
        if 2 * np.count_nonzero(free) > np.count_nonzero(mask):
            into[box][free] = first + len(written)
            written.append(label)
    return np.array(written, int)
