"""Measure shapes and distances of cells from labels (Z, Y, X): surface, convex hull, distance to the nearest cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

_FACES = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


@dataclass(frozen=True)
class Outlines:
    """Measurements of each label from one pass over the slices.

    Attributes:
        surface: by label, in square micrometres; the perimeter in micrometres if Z is 1.
        touching: by label, whether the cell shares a voxel face with another.
        corners: (label, z, y, x) of every voxel that can be a corner of a cell's convex hull, sorted by label.
    """

    surface: np.ndarray
    touching: np.ndarray
    corners: np.ndarray


def measure_outlines(cells: np.ndarray, voxel_size: Sequence[float]) -> Outlines:
    """Measure surface, contacts and hull corners of every cell.

    The surface follows Crofton's formula (Legland, Kieu, Devaux 2007, Image Analysis & Stereology 26): four times the
    mean, over directions weighted by their share of the sphere, of the area counted by lines that leave the cell. If
    slices are further apart than pixels, oblique lines shift by as many pixels sideways, so that the directions are
    spread over the sphere.
    """
    depth, height, width = cells.shape
    pad_y, pad_x = (max(1, round(voxel_size[0] / pixel)) if depth > 1 else 1 for pixel in voxel_size[1:])
    pad_y, pad_x = min(pad_y, height), min(pad_x, width)
    steps = [(0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, -1)]
    if depth > 1:
        steps += [(1, y, x) for y in (-pad_y, 0, pad_y) for x in (-pad_x, 0, pad_x)]
    size = int(cells.max(initial=0)) + 1
    exits = np.zeros((len(steps), size))
    touching = np.zeros(size, bool)
    corners = []
    above, below = (np.zeros((height + 2 * pad_y, width + 2 * pad_x), np.int32) for _ in range(2))
    inner = np.s_[pad_y : pad_y + height, pad_x : pad_x + width]
    below[inner] = cells[0]
    same_above = np.zeros((height, width), bool)
    for z in range(depth):
        above, below = below, above
        below[inner] = cells[z + 1] if z + 1 < depth else 0
        here = above[inner]
        is_corner = here > 0
        for index, (dz, dy, dx) in enumerate(steps):
            to_y, to_x = pad_y + dy, pad_x + dx
            neighbour = (below if dz else above)[to_y : to_y + height, to_x : to_x + width]
            same = here == neighbour
            left, entered = here[~same], neighbour[~same]
            exits[index] += np.bincount(left, minlength=size)
            if (dz, dy, dx) in _FACES:
                both = (left > 0) & (entered > 0)
                touching[left[both]] = touching[entered[both]] = True
            # A voxel midway between two voxels of its cell cannot be a corner of the hull.
            if (dz, dy, dx) == (1, 0, 0):
                is_corner &= ~(same & same_above)
                same_above = same
            elif not dz:
                current = np.s_[dy:, max(dx, 0) : width + min(dx, 0)]
                opposite = np.s_[: height - dy, max(-dx, 0) : width - max(dx, 0)]
                is_corner[current] &= ~(same[current] & same[opposite])
        y, x = np.nonzero(is_corner)
        corners.append(np.stack([here[y, x], np.full(len(y), z), y, x], axis=1))
    voxel = np.array(voxel_size, float) if depth > 1 else np.array([1.0, *voxel_size[1:]])
    vectors = np.array(steps) * voxel
    lengths = np.linalg.norm(vectors, axis=1)
    weights = _direction_weights(vectors / lengths[:, None])
    mean_area = (weights * np.prod(voxel) / lengths) @ exits
    all_corners = np.concatenate(corners)
    all_corners = all_corners[np.argsort(all_corners[:, 0], kind="stable")]
    return Outlines(mean_area * (4.0 if depth > 1 else np.pi), touching, all_corners)


def _direction_weights(directions: np.ndarray) -> np.ndarray:
    """Share of the sphere (of the circle if no direction has a z) nearest to each axis, given as unit vectors."""
    from scipy.spatial import SphericalVoronoi

    if not directions[:, 0].any():
        angles = np.arctan2(directions[:, 1], directions[:, 2]) % np.pi
        order = np.argsort(angles)
        gaps = np.diff(angles[order], append=angles[order[0]] + np.pi)
        return ((gaps + np.roll(gaps, 1)) / (2 * np.pi))[np.argsort(order)]
    areas = SphericalVoronoi(np.concatenate([directions, -directions])).calculate_areas()
    return areas.reshape(2, -1).sum(0) / areas.sum()


def sphericity(volume: np.ndarray, surface: np.ndarray, flat: bool) -> np.ndarray:
    """Surface of a sphere of equal volume divided by the cell's surface (Wadell 1935), at most 1.

    Args:
        flat: treat the arguments as areas and perimeters, and return 4 pi area / perimeter^2.
    """
    ratio = 4 * np.pi * volume / surface**2 if flat else np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface
    return np.minimum(ratio, 1.0)


def solidity(volume: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Volume divided by that of the convex hull, at most 1, for the cells that have ``corners``, in order of labels.

    Args:
        volume: number of voxels of each of these cells.
        corners: ``Outlines.corners``. As in scikit-image, the hull is that of the centres of voxel faces; a cell in a
            single slice has the hull of its pixels.
    """
    from scipy.spatial import ConvexHull

    ratios = np.empty(len(volume))
    ends = np.flatnonzero(np.diff(corners[:, 0], append=-1)) + 1
    for index, points in enumerate(np.split(corners[:, 1:], ends[:-1])):
        axes = slice(0, 3) if np.ptp(points[:, 0]) else slice(1, 3)
        offsets = np.eye(3)[axes, axes] / 2
        face_centres = (points[:, None, axes] + np.concatenate([offsets, -offsets])).reshape(-1, len(offsets))
        ratios[index] = min(1.0, volume[index] / ConvexHull(face_centres).volume)
    return ratios


def distance_to_nearest(
    cells: np.ndarray,
    boxes: Sequence[tuple[slice, ...]],
    labels: np.ndarray,
    isolated: np.ndarray,
    voxel: Sequence[float],
) -> np.ndarray:
    """Distance of each cell to the nearest other cell, in micrometres between voxel centres; 0 if they touch.

    Cells whose bounding boxes are further away than the current minimum are never examined. The others are found in
    k-d trees, so that the time grows in proportion to the number of cells.

    Args:
        boxes: bounding box of each cell.
        labels: label of each cell.
        isolated: which cells share no voxel face with another.
        voxel: (z, y, x) in micrometres.

    Returns:
        one distance a cell; NaN if there is no other cell.
    """
    from scipy.spatial import KDTree

    scale = np.asarray(voxel, float)
    low = np.array([[part.start for part in box] for box in boxes]) * scale
    high = (np.array([[part.stop for part in box] for box in boxes]) - 1) * scale
    shells: dict[int, np.ndarray] = {}

    def get_shell(index: int) -> np.ndarray:
        if index not in shells:
            inside = cells[boxes[index]] == labels[index]
            points = np.argwhere(inside & ~scipy.ndimage.binary_erosion(inside)) + [part.start for part in boxes[index]]
            shells[index] = points.astype(np.int32)
        return shells[index] * scale

    distance = np.where(isolated, np.inf, 0.0)
    alone = np.flatnonzero(isolated)
    for index, candidates in zip(alone.tolist(), _find_candidates(low, high, alone), strict=True):
        box_distance = _distance_to_box(low[candidates], low[index], high[index], high[candidates])
        order = np.argsort(box_distance)
        shell = get_shell(index)
        for other, nearest in zip(candidates[order].tolist(), box_distance[order].tolist(), strict=True):
            if nearest >= distance[index]:
                break
            other_shell, best = get_shell(other), distance[index]
            if np.isinf(best):
                # An upper bound from a few voxels of both cells; then only voxels that can be nearer are examined.
                best = KDTree(shell[::16]).query(other_shell[::16])[0].min()
            near = shell[_distance_to_box(shell, low[other], high[other]) < best]
            other_near = near
            if len(near):
                other_near = other_shell[_distance_to_box(other_shell, near.min(0), near.max(0)) < best]
            if len(other_near):
                tree = KDTree(near, balanced_tree=False, compact_nodes=False)
                best = min(best, tree.query(other_near, distance_upper_bound=best)[0].min())
            if best < distance[index]:
                distance[index], distance[other] = best, min(best, distance[other])
    return np.where(np.isinf(distance), np.nan, distance)


def _find_candidates(low: np.ndarray, high: np.ndarray, cells: np.ndarray) -> Iterator[np.ndarray]:
    """For each of ``cells``, the indices of all others that may be the nearest, by bounding boxes."""
    from scipy.spatial import KDTree

    if len(low) == 1:
        yield from [np.empty(0, int)] * len(cells)
        return
    centres, radii = (low + high) / 2, np.linalg.norm(high - low, axis=1) / 2
    gaps, neighbours = KDTree(centres).query(centres[cells], k=2)
    # Of two cells at one centre, either may come first.
    neighbour = np.where(neighbours[:, 0] == cells, neighbours[:, 1], neighbours[:, 0])
    # A little more, since the trees round.
    reach = (gaps[:, 1] + 2 * radii[cells] + radii[neighbour]) * (1 + 1e-9)
    # One tree for each size of cells: a large cell can be near although its centre is far.
    sizes = np.ceil(np.log2(np.maximum(radii, 1e-9)))
    members = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    trees = [KDTree(centres[indices]) for indices in members]
    for index, radius in zip(cells.tolist(), reach.tolist(), strict=True):
        found = [
            indices[tree.query_ball_point(centres[index], radius + radii[indices].max())]
            for indices, tree in zip(members, trees, strict=True)
        ]
        others = np.concatenate(found)
        yield others[others != index]


def _distance_to_box(
    low: np.ndarray, box_low: np.ndarray, box_high: np.ndarray, high: np.ndarray | None = None
) -> np.ndarray:
    """Distance from points (n, 3), or from boxes between ``low`` and ``high``, to one box; 0 inside."""
    outside = np.maximum(np.maximum(low - box_high, box_low - (low if high is None else high)), 0.0)
    return np.linalg.norm(outside, axis=1)
