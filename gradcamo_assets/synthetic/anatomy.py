"""The anatomy of a synthetic field: where cells lie and which voxels are theirs. No intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Point = tuple[float, float, float]
"""Of a circle: y, x, radius; of a centre: z, y, x."""
_RADIUS = (12.0, 16.5)
"""Mean in-plane radius of a cell, pixels."""
_OVERLAP = 0.88
"""Closest two centres may come, as a share of the sum of their radii; what overlaps is shared out."""


@dataclass(frozen=True)
class Anatomy:
    """Cells of one field, all arrays (Z, Y, X).

    ``depth`` and ``nucleus_depth``: 0 at the centre of the cell (nucleus) that a voxel belongs to, 1 at its border.
    ``partner``: (n,) whether the cell was placed as the neighbour of the cell before it.
    """

    cells: NDArray[np.uint32]
    nuclei: NDArray[np.uint32]
    depth: NDArray[np.float32]
    nucleus_depth: NDArray[np.float32]
    partner: NDArray[np.bool_]


def grow_cells(shape: tuple[int, int, int], count: int, rng: np.random.Generator, *, in_pairs: bool = False) -> Anatomy:
    """Place and shape about ``count`` cells; fewer where the field is full.

    Cells touch here and there but never overlap: a contested voxel goes to the cell in which it lies deeper.
    ``in_pairs``: cells come as pairs, the second within a few pixels of the first.
    """
    circles = _place(shape, count, rng, in_pairs)
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
        own = _distance(box, shape[0], (z, y, x), radius, height, 3.0, rng)
        inner = radius * rng.uniform(0.42, 0.5)
        dy, dx = rng.normal(0, 0.1 * radius, 2)
        nucleus = _distance(box, shape[0], (z, y + dy, x + dx), inner, height * 0.65, 2.0, rng)
        place = (slice(None), *box)
        taken = own < depth[place]
        cells[place][taken] = label
        depth[place][taken] = own[taken]
        nucleus_depth[place][taken] = nucleus[taken]
        nuclei[place][taken] = np.where((nucleus < 1) & (own < 0.9), label, 0)[taken]
    # Cells that lost their nucleus to a neighbour or to the edge are dropped, the rest numbered from 1.
    kept = np.bincount(nuclei.ravel(), minlength=len(circles) + 1)[1:] > 0
    number = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint32)
    depth[number[cells] == 0] = 1
    partner = (np.arange(len(circles)) % 2 == 1) & in_pairs
    return Anatomy(number[cells], number[nuclei], depth, nucleus_depth, partner[kept])


def _place(shape: tuple[int, int, int], count: int, rng: np.random.Generator, in_pairs: bool) -> list[_Point]:
    """Circles that keep their distance, some drawn to lie close to another; pairs stand side by side in the list."""
    size = np.array(shape[1:], float)
    placed: list[_Point] = []

    def attempt(beside: _Point | None) -> _Point | None:
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
            if (distance > _OVERLAP * (others[:, 2] + radius)).all():
                return float(centre[0]), float(centre[1]), radius
        return None

    while len(placed) < count:
        crowd = bool(placed) and not in_pairs and rng.random() < 0.35
        first = attempt(placed[rng.integers(len(placed))] if crowd else None) or attempt(None)
        if first is None:
            break
        placed.append(first)
        if in_pairs:
            second = attempt(first)
            if second is None:
                return placed[:-1]
            placed.append(second)
    return placed


def _distance(
    box: tuple[slice, slice], depth: int, centre: _Point, radius: float, height: float, power: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:  # fmt: skip
    """Distance from the centre over the distance of the border in that direction, for an ellipsoid with lobes."""
    dy = np.arange(box[0].start, box[0].stop)[:, None] - centre[1]
    dx = np.arange(box[1].start, box[1].stop)[None, :] - centre[2]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.18)
    along, across = np.cos(turn) * dy + np.sin(turn) * dx, np.cos(turn) * dx - np.sin(turn) * dy
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(angle)
    for lobes in (2, 3, 5):
        outline += rng.uniform(0, 0.12 / np.sqrt(lobes)) * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    flat = np.hypot(along / stretch, across * stretch) / (radius * outline)
    high = np.abs(np.arange(depth) - centre[0]) / height
    return ((flat**power)[None] + (high**power)[:, None, None]).astype(np.float32) ** np.float32(1 / power)
