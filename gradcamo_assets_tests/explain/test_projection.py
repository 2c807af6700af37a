"""Test that projected masks are exact: against fractions, for every size, also where sums leave a byte or float32."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradcamo_assets.explain.projection import compute_footprint, project_mask, project_regions

sizes = st.integers(2, 3).flatmap(
    lambda axes: st.tuples(
        st.lists(st.integers(1, 20), min_size=axes, max_size=axes).map(tuple),
        st.lists(st.integers(1, 24), min_size=axes, max_size=axes).map(tuple),
    )
)
quick = settings(max_examples=60, deadline=None)


def axis_weights(grid: int, crop: int) -> tuple[np.ndarray, int]:
    """The definition of linear interpolation with align_corners=False: integers (crop, grid) and their denominator."""
    rows = [[Fraction(0)] * grid for _ in range(crop)]
    for voxel, row in enumerate(rows):
        position = max(Fraction(0), (voxel + Fraction(1, 2)) * grid / crop - Fraction(1, 2))
        before = math.floor(position)
        for neighbour, weight in ((before, 1 - (position - before)), (before + 1, position - before)):
            row[min(neighbour, grid - 1)] += weight
    denominator = math.lcm(*(weight.denominator for row in rows for weight in row))
    return np.array([[int(weight * denominator) for weight in row] for row in rows], dtype=np.int64), denominator


def project_exactly(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Sum integer weights of 64 bits: Fractions (B, *grid)."""
    values, denominator = mask.astype(np.int64), 1
    for axis, size in enumerate(grid, start=1):
        weights, divisor = axis_weights(size, values.shape[axis])
        values, denominator = np.moveaxis(np.tensordot(values, weights, (axis, 0)), -1, axis), denominator * divisor
    return np.vectorize(lambda value: Fraction(int(value), denominator), otypes=[object])(values)


def as_floats(fractions: np.ndarray) -> np.ndarray:
    """Round each fraction once."""
    return np.vectorize(float, otypes=[np.float64])(fractions)


def draw_masks(seed: int, batch: int, crop: tuple[int, ...], share: float = 0.3) -> torch.Tensor:
    return torch.rand(batch, *crop, generator=torch.Generator().manual_seed(seed)) < share


@quick
@given(sizes, st.integers(1, 3), st.integers(0, 99), st.sampled_from([0.02, 0.3, 1]))
def test_a_projected_mask_equals_the_sum_of_fractions(shapes, batch, seed, share):
    crop, grid = shapes
    mask = draw_masks(seed, batch, crop, share)
    np.testing.assert_array_equal(project_mask(mask, grid).numpy(), as_floats(project_exactly(mask.numpy(), grid)))


@quick
@given(sizes, st.integers(0, 99), st.sampled_from([0.02, 0.3, 1]))
def test_regions_equal_quotients_of_fractions(shapes, seed, share):
    crop, grid = shapes
    target, neighbours = draw_masks(seed, 2, crop, share), draw_masks(seed + 100, 2, crop, 0.4)
    regions = project_regions(target, neighbours, grid)
    whole = project_exactly(np.ones((1, *crop)), grid)
    np.testing.assert_array_equal(regions.footprint.numpy(), as_floats(whole)[0])
    masks = (target.numpy(), (neighbours & ~target).numpy(), (~target & ~neighbours).numpy())
    for number, mask in enumerate(masks):
        # What a map finer than its crop skips counts as background.
        skipped = Fraction(number == 2)
        covered = project_exactly(mask, grid)
        expected = np.array(
            [part / all_ if all_ else skipped for part, all_ in np.broadcast(covered, whole)], dtype=object
        ).reshape(covered.shape)
        np.testing.assert_array_equal(regions.coverage[:, number].numpy(), as_floats(expected))
        counts = mask.reshape(2, -1).sum(1)
        expected_fractions = [float(Fraction(int(count), math.prod(crop))) for count in counts]
        assert regions.fractions[:, number].tolist() == expected_fractions


@pytest.mark.parametrize(
    ("crop", "grid"),
    [
        ((255, 6), (1, 3)),  # The largest sum that a byte holds ...
        ((256, 6), (1, 3)),  # ... and one more.
        ((9, 255, 7), (4, 1, 3)),
        ((5, 128, 128), (3, 16, 16)),
        ((21, 128, 128), (1, 4, 4)),  # Beyond 2^24.
        ((3, 601, 600), (2, 7, 7)),
        ((2, 600, 601), (1, 1, 599)),
    ],
)
@pytest.mark.parametrize("share", [0.4, 1])
def test_large_sums_stay_exact(crop, grid, share):
    mask = draw_masks(0, 2, crop, share)
    expected = as_floats(project_exactly(mask.numpy(), grid))
    np.testing.assert_array_equal(project_mask(mask, grid).numpy(), expected)
    if share == 1:
        np.testing.assert_array_equal(compute_footprint(crop, grid, mask.device).numpy(), expected[0])


@pytest.mark.parametrize("corner", [(0, 0, 0), (8, 29, 31), (4, 15, 16), (3, 29, 1)])
def test_single_voxels_and_empty_masks_are_exact(corner):
    mask = torch.zeros(2, 9, 30, 32, dtype=torch.bool)
    mask[1][corner] = True
    for grid in ((5, 4, 4), (1, 1, 1), (9, 30, 32), (11, 40, 33)):
        np.testing.assert_array_equal(project_mask(mask, grid).numpy(), as_floats(project_exactly(mask.numpy(), grid)))
        assert not bool(project_mask(mask[:1], grid).any())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_rounded_matrix_products_are_not_used(precision):
    mask = draw_masks(1, 2, (21, 50, 46))
    expected = as_floats(project_exactly(mask.numpy(), (6, 12, 12)))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_array_equal(project_mask(mask, (6, 12, 12)).numpy(), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_views_of_masks_are_projected_as_their_copies():
    mask = draw_masks(2, 2, (8, 24, 26))
    for view in (mask[..., 1:25], mask[:, ::2, 1:], mask.flip(2), mask.movedim(1, 3), mask[:1].expand(3, -1, -1, -1)):
        np.testing.assert_array_equal(
            project_mask(view, (3, 5, 4)).numpy(), as_floats(project_exactly(view.numpy(), (3, 5, 4)))
        )
