"""Test the algebra of the overlap against torch's upsampler and its autograd, and its invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain import LOOKS_AT, NULL_REASONS
from gradcamo_assets.explain.maps import compute_signed_map
from gradcamo_assets.explain.overlap import (
    Overlap,
    average_overlaps,
    decode,
    measure_overlap,
    split_evidence,
)
from gradcamo_assets.explain.projection import project_mask, project_regions
from gradcamo_assets_tests.explain.nets import MODES, brute_share

sizes = st.integers(2, 3).flatmap(
    lambda axes: st.tuples(
        st.lists(st.integers(1, 13), min_size=axes, max_size=axes).map(tuple),
        st.lists(st.integers(1, 9), min_size=axes, max_size=axes).map(tuple),
    )
)
quick = settings(max_examples=40, deadline=None)


def measure(cam: torch.Tensor, target: torch.Tensor, neighbours: torch.Tensor | None = None) -> Overlap:
    return measure_overlap(cam, project_regions(target, neighbours, cam.shape[1:]))


def looks_at(got: Overlap) -> list[str | None]:
    return decode(got.looks_at, LOOKS_AT)


def null_reasons(got: Overlap) -> list[str | None]:
    return decode(got.null_reason, NULL_REASONS)


def make_maps_and_masks(seed: int, batch: int, crop: tuple[int, ...], grid: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(batch, *crop, generator=generator)
    return torch.rand(batch, *grid, generator=generator), draw < 0.3, draw > 0.75


@quick
@given(sizes, st.integers(1, 3), st.integers(0, 99), st.sampled_from([torch.bool, torch.uint8, torch.float32]))
def test_projection_is_the_adjoint_of_torchs_upsampler(shapes, batch, seed, dtype):
    crop, grid = shapes
    _, mask, _ = make_maps_and_masks(seed, batch, crop, grid)
    maps = torch.zeros(batch, 1, *grid, dtype=torch.float64, requires_grad=True)
    upsampled = functional.interpolate(maps, size=crop, mode=MODES[len(crop)], align_corners=False)
    expected = torch.autograd.grad((upsampled[:, 0] * mask).sum(), maps)[0][:, 0]
    projected = project_mask(mask.to(dtype), grid)
    assert projected.dtype == torch.float64
    torch.testing.assert_close(projected, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(project_mask(mask.double(), grid), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_projection_keeps_its_digits_where_matrix_products_lose_theirs(precision):
    _, mask, _ = make_maps_and_masks(0, 2, (21, 50, 47), (6, 12, 12))
    expected = project_mask(mask.double(), (6, 12, 12))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16):
            projected = project_mask(mask, (6, 12, 12))
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(projected, expected, rtol=1e-6, atol=1e-6)


@quick
@given(sizes, st.integers(1, 3), st.integers(0, 99))
def test_shares_equal_upsample_multiply_sum(shapes, batch, seed):
    crop, grid = shapes
    cam, target, neighbours = make_maps_and_masks(seed, batch, crop, grid)
    got = measure(cam, target, neighbours)
    scored = ~torch.isnan(got.gradcamo)
    assert torch.equal(scored, target.flatten(1).any(1))
    for share, mask in (
        (got.gradcamo, target),
        (got.neighbour_share, neighbours),
        (got.background_share, ~target & ~neighbours),
    ):
        torch.testing.assert_close(share[scored], brute_share(cam, mask)[scored], rtol=1e-5, atol=1e-6)
    total = (got.gradcamo + got.neighbour_share + got.background_share)[scored]
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert bool((got.gradcamo >= 0)[scored].all()) and bool((got.gradcamo <= got.gradcamo_max)[scored].all())
    assert bool((got.mask_fraction <= got.gradcamo_max).all()) and bool((got.gradcamo_max <= 1).all())
    torch.testing.assert_close(got.mask_fraction, target.flatten(1).double().mean(1))
    torch.testing.assert_close(got.neighbour_fraction, neighbours.flatten(1).double().mean(1))


@quick
@given(sizes, st.integers(0, 99))
def test_a_uniform_map_scores_the_mask_fraction(shapes, seed):
    crop, grid = shapes
    cam, target, neighbours = make_maps_and_masks(seed, 2, crop, grid)
    target.view(2, -1)[:, 0] = True
    got = measure(torch.full_like(cam, 3.0), target, neighbours & ~target)
    # The upsampler skips voxels of a map finer than the crop; the share still equals the fraction.
    torch.testing.assert_close(got.gradcamo, got.mask_fraction, rtol=1e-6, atol=1e-9)


@quick
@given(sizes, st.integers(0, 99))
def test_a_map_with_one_bright_voxel_scores_its_footprints_coverage(shapes, seed):
    crop, grid = shapes
    _, target, neighbours = make_maps_and_masks(seed, 1, crop, grid)
    target.view(1, -1)[:, 0] = True
    neighbours &= ~target
    voxels = math.prod(grid)
    units = torch.eye(voxels).reshape(voxels, *grid)
    got = measure(units, target.expand(voxels, *crop), neighbours.expand(voxels, *crop))
    is_scored = ~torch.isnan(got.gradcamo)
    expected = brute_share(units, target.expand(voxels, *crop))
    torch.testing.assert_close(got.gradcamo[is_scored], expected[is_scored], rtol=1e-5, atol=1e-6)
    if not target.all():
        # The best voxel reaches the ceiling.
        torch.testing.assert_close(got.gradcamo[is_scored].max(), got.gradcamo_max[0], rtol=1e-6, atol=1e-9)


def test_a_hand_worked_crop():
    """4 x 4 pixels, a 2 x 2 map, the target in the upper left quarter.

    Along an axis of 4 upsampled from 2, the first map pixel weighs 1, 3/4, 1/4, 0: 1.75 of its 2 in the first half.
    """
    target = torch.zeros(4, 4, 4, dtype=torch.bool)
    target[:, :2, :2] = True
    cam = torch.zeros(4, 2, 2)
    cam[0, 0, 0] = cam[1, 1, 1] = cam[2, 0, 1] = 1
    cam[3] = 1
    got = measure(cam, target, torch.zeros_like(target))
    near, far = 1.75 / 2, 0.25 / 2
    assert got.gradcamo.tolist() == pytest.approx([near * near, far * far, near * far, 0.25], abs=1e-6)
    assert got.gradcamo_max.tolist() == pytest.approx([near * near] * 4, abs=1e-6)
    assert got.gradcamo_adjusted[0] == pytest.approx(1) and got.gradcamo_adjusted[3] == pytest.approx(0, abs=1e-6)
    assert looks_at(got) == ["target", "background", "background", "none"]


def test_looks_at_names_the_region_and_ignores_absent_regions():
    target = torch.zeros(2, 12, 12, dtype=torch.bool)
    neighbours = torch.zeros_like(target)
    target[:, :4, :4] = True
    neighbours[0, 8:, 8:] = True
    cam = torch.zeros(2, 6, 6)
    cam[:, 5, 5] = 1
    got = measure(cam, target, neighbours)
    assert looks_at(got) == ["neighbour", "background"]
    assert got.neighbour_share.tolist() == [pytest.approx(1), 0]
    assert got.neighbour_fraction.tolist() == pytest.approx([16 / 144, 0])


def test_columns_about_neighbours_are_null_without_neighbour_masks():
    cam, target, _ = make_maps_and_masks(1, 3, (9, 8), (3, 3))
    got = measure(cam, target)
    for column in (got.neighbour_share, got.background_share, got.neighbour_fraction):
        assert bool(torch.isnan(column).all())
    assert looks_at(got) == [None] * 3 and null_reasons(got) == [None] * 3
    torch.testing.assert_close(got.gradcamo, measure(cam, target, torch.zeros_like(target)).gradcamo)


def test_undefined_scores_are_null_with_a_reason():
    cam = torch.rand(5, 3, 3) + 0.1
    target = torch.zeros(5, 9, 9, dtype=torch.bool)
    target[:, 2:5, 2:5] = True
    cam[0] = 0
    target[1] = False
    target[2] = True
    cam[3, 1, 1] = torch.nan
    got = measure(cam, target, torch.zeros_like(target))
    reasons = ["empty map", "empty mask", "mask fills the crop", "map is not finite", None]
    assert null_reasons(got) == reasons
    assert torch.isnan(got.gradcamo).tolist() == [True, True, False, True, False]
    assert torch.isnan(got.gradcamo_adjusted).tolist() == [True, True, True, True, False]
    assert got.gradcamo[2] == 1 and got.background_share[2] == 0 and got.gradcamo_max[2] == 1
    assert [name is None for name in looks_at(got)] == [True, True, True, True, False]
    assert got.mask_fraction.tolist() == pytest.approx([1 / 9, 0, 1, 1 / 9, 1 / 9])


def test_a_map_of_one_voxel_has_a_score_but_no_adjusted_one():
    target = torch.zeros(1, 7, 9, 9, dtype=torch.bool)
    target[:, 2:4, 2:5, 1:6] = True
    got = measure(torch.ones(1, 1, 1, 1), target, torch.zeros_like(target))
    assert got.gradcamo[0] == pytest.approx(30 / 567) and torch.isnan(got.gradcamo_adjusted[0])
    assert null_reasons(got) == ["map too coarse for the mask"] and looks_at(got) == [None]


def test_a_coarse_map_cannot_reach_a_score_of_one_half():
    """A compact cell fills 5% of a 21 x 96 x 96 crop, once with a 1 x 3 x 3 and once with a 6 x 12 x 12 map."""
    z, y, x = torch.meshgrid(torch.arange(21), torch.arange(96), torch.arange(96), indexing="ij")
    cell = (((z - 10) / 8.0) ** 2 + ((y - 47.5) / 17.0) ** 2 + ((x - 47.5) / 17.0) ** 2 <= 1)[None]
    assert 0.04 < cell.double().mean() < 0.06
    assert measure(torch.ones(1, 1, 3, 3), cell).gradcamo_max[0] < 0.3
    assert measure(torch.ones(1, 6, 12, 12), cell).gradcamo_max[0] > 0.97


@quick
@given(sizes, st.integers(0, 99), st.booleans())
def test_pointing_and_rank_accuracy_equal_a_loop_over_map_voxels(shapes, seed, ties):
    crop, grid = shapes
    cam, target, _ = make_maps_and_masks(seed, 2, crop, grid)
    target.view(2, -1)[:, 0] = True
    cam = (cam * 3).round() + 1e-3 if ties else cam
    got = measure(cam, target)
    units = torch.eye(math.prod(grid)).reshape(-1, 1, *grid).double()
    footprints = functional.interpolate(units, size=crop, mode=MODES[len(crop)], align_corners=False).flatten(1)
    sizes_of = footprints.sum(1)
    for cell in range(2):
        values, wanted = cam[cell].flatten(), float(target[cell].sum())
        inside = footprints @ target[cell].flatten().double()
        left, covered = wanted, 0.0
        usable = [i for i in range(len(values)) if sizes_of[i] > 0]
        for value in sorted({float(values[i]) for i in usable}, reverse=True):
            level = [i for i in usable if float(values[i]) == value]
            part = min(1.0, left / float(sizes_of[level].sum()))
            left -= part * float(sizes_of[level].sum())
            covered += part * float(inside[level].sum())
            if left <= 1e-9:
                break
        assert float(got.relevance_rank_accuracy[cell]) == pytest.approx(covered / wanted, abs=1e-5)
        brightest = np.unravel_index(int(values.argmax()), grid)
        centre = tuple(int((i + 0.5) * n / g) for i, n, g in zip(brightest, crop, grid, strict=True))
        assert float(got.pointing_game[cell]) == float(target[cell][centre])


def test_on_the_crops_own_grid_rank_accuracy_is_the_published_one():
    """Arras et al.: the share of the K brightest pixels inside the mask, where K is the size of the mask."""
    cam, target, _ = make_maps_and_masks(4, 3, (11, 12), (11, 12))
    got = measure(cam, target)
    for cell in range(3):
        k = int(target[cell].sum())
        top = cam[cell].flatten().topk(k).indices
        assert float(got.relevance_rank_accuracy[cell]) == pytest.approx(float(target[cell].flatten()[top].sum()) / k)
        assert float(got.pointing_game[cell]) == float(target[cell].flatten()[cam[cell].argmax()])


def test_the_mean_of_maps_scores_as_their_normalised_sum():
    fine, target, neighbours = make_maps_and_masks(3, 3, (12, 10), (6, 5))
    coarse = torch.rand(3, 3, 3)
    coarse[2] = 0
    got = average_overlaps([measure(fine, target, neighbours), measure(coarse, target, neighbours)])
    upsampled = [
        functional.interpolate(cam[:, None].double(), size=(12, 10), mode="bilinear")[:, 0] for cam in (fine, coarse)
    ]
    mean = sum(cam / cam.sum((1, 2), keepdim=True).clamp_min(1e-9) for cam in upsampled)
    expected = (mean * target).sum((1, 2)) / mean.sum((1, 2))
    torch.testing.assert_close(got.gradcamo, expected, rtol=1e-6, atol=1e-9)


def test_gradients_reach_the_map_and_stay_finite_beside_an_empty_one():
    cam, target, neighbours = make_maps_and_masks(5, 2, (8, 8), (4, 4))
    cam[1] = 0
    cam.requires_grad_()
    measure(cam, target, neighbours).gradcamo[0].backward()
    assert bool(torch.isfinite(cam.grad).all()) and bool((cam.grad[0] != 0).any())


@quick
@given(sizes, st.integers(0, 99), st.integers(1, 5))
def test_evidence_adds_up_and_follows_the_signed_upsampled_map(shapes, seed, channels):
    crop, grid = shapes
    _, target, neighbours = make_maps_and_masks(seed, 2, crop, grid)
    torch.manual_seed(seed)
    activations, weight = torch.randn(2, channels, *grid), torch.randn(2, channels)
    signed = compute_signed_map(activations, weight)
    parts = split_evidence(signed, project_regions(target, neighbours, grid))
    pooled = (activations.double().flatten(2).mean(2) * weight).sum(1)
    torch.testing.assert_close(sum(parts.values()), pooled, rtol=1e-5, atol=1e-5)
    # r_i by brute force: the share of each voxel's upsampled footprint inside the target.
    units = torch.eye(math.prod(grid), dtype=torch.float64).reshape(-1, 1, *grid)
    footprints = functional.interpolate(units, size=crop, mode=MODES[len(crop)], align_corners=False).flatten(1)
    whole = footprints.sum(1)
    coverage = torch.where(
        (whole > 0)[:, None], footprints @ target.flatten(1).double().T / whole.clamp_min(1e-9)[:, None], 0
    )
    expected = (signed.double().flatten(1) * coverage.T).sum(1)
    torch.testing.assert_close(parts["evidence_target"], expected, rtol=1e-5, atol=1e-5)


def test_where_masks_overlap_the_target_wins():
    target, neighbours = torch.tensor([[[1, 0, 0, 1]]]), torch.tensor([[[0, 1, 0, 1]]])
    for masks in ((target, neighbours), (target.bool(), neighbours.float())):
        coverage = project_regions(*masks, (1, 4)).coverage
        assert coverage[0, :, 0].tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_regions(torch.tensor([[[0, 3]]]), None, (1, 1)), "binary"),
        (lambda: project_regions(torch.tensor([[[0.0, 0.3]]]), None, (1, 1)), "binary"),
        (lambda: project_mask(torch.zeros(1, 4, 4), (2, 2, 2)), "axes"),
        (lambda: measure(torch.zeros(2, 3, 3), torch.zeros(1, 9, 9)), "one mask per cell"),
        (lambda: project_regions(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 2), (1, 1)), "neighbour masks"),
    ],
)
def test_invalid_masks_are_refused(call, message):
    with pytest.raises(ExplainError, match=message):
        call()
