"""Place and shape the cells of a synthetic field. Intensities are added by ``render``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Point = tuple[float, float, float]
"""A circle (y, x, radius), or a centre (z, y, x)."""
_RADIUS = (12.0, 16.5)
"""Range of the mean in-plane radius of a cell, in pixels."""
_MIN_DISTANCE = 0.88
"""Minimum distance of two centres, as a share of the sum of their radii. Overlaps are divided between the cells."""


@dataclass(frozen=True)
class Anatomy:
    """Cells of one field, as arrays (Z, Y, X).

    Attributes:
        depth: 0 at the centre of a voxel's cell, 1 at its border.
        nucleus_depth: 0 at the centre of the nucleus of a voxel's cell, 1 at its border.
        partner: (n,), whether the cell was placed as the neighbour of the cell before it.
    """

    cells: NDArray[np.uint32]
    nuclei: NDArray[np.uint32]
    depth: NDArray[np.float32]
    nucleus_depth: NDArray[np.float32]
    partner: NDArray[np.bool_]


def grow_cells(shape: tuple[int, int, int], count: int, rng: np.random.Generator, *, in_pairs: bool = False) -> Anatomy:
    """Place and shape about ``count`` cells, or fewer if the field is full.

    Cells may touch but never overlap: a contested voxel goes to the cell in which it is deeper.

    Args:
        in_pairs: place cells in pairs, the second within a few pixels of the first.
    """
    circles = _place_circles(shape, count, rng, in_pairs)
    cells = np.zeros(shape, np.uint32)
    nuclei = np.zeros(shape, np.uint32)
    depth = np.ones(shape, np.float32)
    nucleus_depth = np.full(shape, 9.0, np.float32)
    for label, (y, x, radius) in enumerate(circles, start=1):
        z = (shape[0] - 1) / 2 + rng.normal(0, 0.03) * shape[0]
        height = max(0.75, shape[0] * rng.uniform(0.42, 0.5))
        reach = 1.3 * radius
        box = (
            slice(max(0, int(y - reach)), min(shape[1], int(y + reach) + 2)),
            slice(max(0, int(x - reach)), min(shape[2], int(x + reach) + 2)),
        )
        cell = _relative_distance(box, shape[0], (z, y, x), radius, height, 3.0, rng)
        inner = radius * rng.uniform(0.42, 0.5)
        dy, dx = rng.normal(0, 0.1 * radius, 2)
        nucleus = _relative_distance(box, shape[0], (z, y + dy, x + dx), inner, height * 0.65, 2.0, rng)
        window = (slice(None), *box)
        won = cell < depth[window]
        cells[window][won] = label
        depth[window][won] = cell[won]
        nucleus_depth[window][won] = nucleus[won]
        nuclei[window][won] = np.where((nucleus < 1) & (cell < 0.9), label, 0)[won]
    # Cells whose nucleus lies outside the field or inside a neighbour are dropped, and the rest renumbered from 1.
    kept = np.bincount(nuclei.ravel(), minlength=len(circles) + 1)[1:] > 0
    number = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint32)
    depth[number[cells] == 0] = 1
    partner = (np.arange(len(circles)) % 2 == 1) & in_pairs
    return Anatomy(number[cells], number[nuclei], depth, nucleus_depth, partner[kept])


def _place_circles(shape: tuple[int, int, int], count: int, rng: np.random.Generator, in_pairs: bool) -> list[_Point]:
    """Place circles that keep a minimum distance, some close to another. The two circles of a pair are consecutive."""
    size = np.array(shape[1:], float)
    placed: list[_Point] = []

    def try_to_place(beside: _Point | None) -> _Point | None:
        for _ in range(60):
            radius = float(rng.uniform(*_RADIUS))
            if beside is None:
                centre = rng.uniform(0.7 * radius, size - 0.7 * radius)
            else:
                angle, gap = rng.uniform(0, 2 * np.pi), rng.uniform(-2, 5)
                centre = np.array(beside[:2]) + (beside[2] + radius + gap) * np.array([np.sin(angle), np.cos(angle)])
                if (centre < 0.5 * radius).any() or (centre > size - 0.5 * radius).any():
                    continue
            others = np.asarray(placed).reshape(-1, 3)
            distance = np.hypot(*(others[:, :2] - centre).T)
            if (distance > _MIN_DISTANCE * (others[:, 2] + radius)).all():
                return float(centre[0]), float(centre[1]), radius
        return None

    while len(placed) < count:
        close = bool(placed) and not in_pairs and rng.random() < 0.35
        first = try_to_place(placed[rng.integers(len(placed))] if close else None) or try_to_place(None)
        if first is None:
            break
        placed.append(first)
        if in_pairs:
            second = try_to_place(first)
            if second is None:
                return placed[:-1]
            placed.append(second)
    return placed


def _relative_distance(
    box: tuple[slice, slice], depth: int, centre: _Point, radius: float, height: float, power: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:  # fmt: skip
    """Distance from the centre divided by that of the border in the same direction, for an ellipsoid with lobes."""
    dy = np.arange(box[0].start, box[0].stop)[:, None] - centre[1]
    dx = np.arange(box[1].start, box[1].stop)[None, :] - centre[2]
    rotation, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.18)
    along = np.cos(rotation) * dy + np.sin(rotation) * dx
    across = np.cos(rotation) * dx - np.sin(rotation) * dy
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(angle)
    for lobes in (2, 3, 5):
        outline += rng.uniform(0, 0.12 / np.sqrt(lobes)) * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    in_plane = np.hypot(along / stretch, across * stretch) / (radius * outline)
    axial = np.abs(np.arange(depth) - centre[0]) / height
    combined = (in_plane**power)[None] + (axial**power)[:, None, None]
    return combined.astype(np.float32) ** np.float32(1 / power)
