"""How cells are shaped and how far apart they stand: surface, convex hull, distance to the nearest other cell.

Takes label arrays (Z, Y, X), gives one value a label. Not here: volumes, boxes and the table (``cells``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi

_FACES = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


@dataclass(frozen=True)
class Outlines:
    """What one pass over the slices tells of each label; arrays are indexed by the label.

    ``surface``: in square micrometres, or the perimeter in micrometres where Z is 1. ``touching``: whether a face of
    the cell is a face of another. ``corners``: (label, z, y, x) of every voxel that can be a corner of a cell's convex
    hull, by label.
    """

    surface: np.ndarray
    touching: np.ndarray
    corners: np.ndarray


def outlines(cells: np.ndarray, voxel_size: Sequence[float]) -> Outlines:
    """Surface, contacts and corners of every cell.

    The surface is Crofton's (Legland, Kieu, Devaux 2007, Image Analysis & Stereology 26): four times the mean, over
    directions weighted by their share of the sphere, of the area counted by the lines that leave the cell. Where slices
    lie further apart than pixels, slanted lines run as many pixels sideways, so that the directions are spread over the
    sphere.
    """
    depth, height, width = cells.shape
    pad_y, pad_x = (max(1, round(voxel_size[0] / pixel)) if depth > 1 else 1 for pixel in voxel_size[1:])
    pad_y, pad_x = min(pad_y, height), min(pad_x, width)
    steps = [(0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, -1)]
    if depth > 1:
        steps += [(1, y, x) for y in (-pad_y, 0, pad_y) for x in (-pad_x, 0, pad_x)]
    size = int(cells.max(initial=0)) + 1
    left = np.zeros((len(steps), size))
    touching = np.zeros(size, bool)
    corners = []
    above, below = (np.zeros((height + 2 * pad_y, width + 2 * pad_x), np.int32) for _ in range(2))
    inner = np.s_[pad_y : pad_y + height, pad_x : pad_x + width]
    below[inner] = cells[0]
    same_before = np.zeros((height, width), bool)
    for z in range(depth):
        above, below = below, above
        below[inner] = cells[z + 1] if z + 1 < depth else 0
        here = above[inner]
        corner = here > 0
        for at, (dz, dy, dx) in enumerate(steps):
            to_y, to_x = pad_y + dy, pad_x + dx
            there = (below if dz else above)[to_y : to_y + height, to_x : to_x + width]
            same = here == there
            leaving, entered = here[~same], there[~same]
            left[at] += np.bincount(leaving, minlength=size)
            if (dz, dy, dx) in _FACES:
                both = (leaving > 0) & (entered > 0)
                touching[leaving[both]] = touching[entered[both]] = True
            # A voxel midway between two others of its cell is no corner of the hull.
            if (dz, dy, dx) == (1, 0, 0):
                corner &= ~(same & same_before)
                same_before = same
            elif not dz:
                now = np.s_[dy:, max(dx, 0) : width + min(dx, 0)]
                back = np.s_[: height - dy, max(-dx, 0) : width - max(dx, 0)]
                corner[now] &= ~(same[now] & same[back])
        y, x = np.nonzero(corner)
        corners.append(np.stack([here[y, x], np.full(len(y), z), y, x], axis=1))
    voxel = np.array(voxel_size, float) if depth > 1 else np.array([1.0, *voxel_size[1:]])
    vectors = np.array(steps) * voxel
    lengths = np.linalg.norm(vectors, axis=1)
    shares = _shares(vectors / lengths[:, None])
    shown = (shares * np.prod(voxel) / lengths) @ left
    found = np.concatenate(corners)
    found = found[np.argsort(found[:, 0], kind="stable")]
    return Outlines(shown * (4.0 if depth > 1 else np.pi), touching, found)


def _shares(directions: np.ndarray) -> np.ndarray:
    """The share of the sphere (of the circle, where none has a z) that is nearest to each axis (unit vectors)."""
    from scipy.spatial import SphericalVoronoi

    if not directions[:, 0].any():
        angles = np.arctan2(directions[:, 1], directions[:, 2]) % np.pi
        order = np.argsort(angles)
        gaps = np.diff(angles[order], append=angles[order[0]] + np.pi)
        return ((gaps + np.roll(gaps, 1)) / (2 * np.pi))[np.argsort(order)]
    areas = SphericalVoronoi(np.concatenate([directions, -directions])).calculate_areas()
    return areas.reshape(2, -1).sum(0) / areas.sum()


def sphericity(volume: np.ndarray, surface: np.ndarray, flat: bool) -> np.ndarray:
    """Surface of the sphere of the same volume over the cell's (Wadell 1935), at most 1.

    ``flat``: 4 pi area / perimeter^2 of areas and perimeters.
    """
    full = 4 * np.pi * volume / surface**2 if flat else np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface
    return np.minimum(full, 1.0)


def solidity(volume: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Volume over that of the convex hull, at most 1, of the cells that have ``corners``, in the order of their labels.

    Args:
        volume: voxels of each of these cells.
        corners: ``Outlines.corners``. The hull is that of the middles of the voxels' faces, as in scikit-image; a cell
            in a single slice has the hull of its pixels.
    """
    from scipy.spatial import ConvexHull

    out = np.empty(len(volume))
    ends = np.flatnonzero(np.diff(corners[:, 0], append=-1)) + 1
    for at, points in enumerate(np.split(corners[:, 1:], ends[:-1])):
        axes = slice(0, 3) if np.ptp(points[:, 0]) else slice(1, 3)
        offsets = np.eye(3)[axes, axes] / 2
        middles = (points[:, None, axes] + np.concatenate([offsets, -offsets])).reshape(-1, len(offsets))
        out[at] = min(1.0, volume[at] / ConvexHull(middles).volume)
    return out


def nearest(
    cells: np.ndarray, boxes: Sequence[tuple[slice, ...]], labels: np.ndarray, alone: np.ndarray, voxel: Sequence[float]
) -> np.ndarray:
    """Distance of each cell to the nearest other, micrometres: between centres of voxels, 0 where not ``alone``.

    Args:
        boxes: of each cell. labels: of each cell. alone: which cells share no face with another.

    NaN where there is no other cell. Boxes that are further than what was found are never opened.
    """
    from scipy.spatial import KDTree

    scale = np.asarray(voxel, float)
    low = np.array([[part.start for part in box] for box in boxes]) * scale
    high = (np.array([[part.stop for part in box] for box in boxes]) - 1) * scale
    known: dict[int, np.ndarray] = {}

    def shell(index: int) -> np.ndarray:
        if index not in known:
            inside = cells[boxes[index]] == labels[index]
            points = np.argwhere(inside & ~ndi.binary_erosion(inside)) + [part.start for part in boxes[index]]
            known[index] = points.astype(np.int32)
        return known[index] * scale

    found = np.where(alone, np.inf, 0.0)
    for index in np.flatnonzero(alone).tolist():
        away = _to_box(low, low[index], high[index], high)
        away[index] = np.inf
        mine = shell(index)
        for other in np.argsort(away).tolist():
            if away[other] >= found[index]:
                break
            theirs, best = shell(other), found[index]
            if np.isinf(best):
                # A few voxels of both tell roughly how far; from then on only those are looked at that can be nearer.
                best = KDTree(mine[::16]).query(theirs[::16])[0].min()
            facing = mine[_to_box(mine, low[other], high[other]) < best]
            behind = theirs[_to_box(theirs, facing.min(0), facing.max(0)) < best] if len(facing) else facing
            if len(behind):
                tree = KDTree(facing, balanced_tree=False, compact_nodes=False)
                best = min(best, tree.query(behind, distance_upper_bound=best)[0].min())
            if best < found[index]:
                found[index], found[other] = best, min(best, found[other])
    return np.where(np.isinf(found), np.nan, found)


def _to_box(low: np.ndarray, box_low: np.ndarray, box_high: np.ndarray, high: np.ndarray | None = None) -> np.ndarray:
    """Distance from points (n, 3), or boxes from ``low`` to ``high``, to one box; 0 inside."""
    outside = np.maximum(np.maximum(low - box_high, box_low - (low if high is None else high)), 0.0)
    return np.linalg.norm(outside, axis=1)
