from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradcamo_assets.segmentation.masks import (
    CONFIDENCE_SCHEMA,
    compute_confidence,
    count_overlaps,
    measure_object_quality,
    remove_micronuclei,
    remove_small_objects,
    stitch_slices,
)

PLANES = hnp.arrays(
    np.uint32, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 4)
)


def disk(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@given(PLANES)
def test_overlaps_agree_with_a_loop(planes):
    first, second = planes, planes[..., ::-1]
    want: dict[tuple[int, int], int] = {}
    for a, b in zip(first.ravel().tolist(), second.ravel().tolist(), strict=True):
        if a and b:
            want[a, b] = want.get((a, b), 0) + 1
    found = {(a, b): n for a, b, n in zip(*(part.tolist() for part in count_overlaps(first, second)), strict=True)}
    assert found == want


@given(PLANES, st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_stitching_never_splits_merges_or_removes_objects_of_a_slice(planes, threshold):
    out = stitch_slices(planes, threshold)
    for before, after in zip(planes, out, strict=True):
        for label in np.unique(before[before > 0]):
            assert len(np.unique(after[before == label])) == 1
        kept = after[before > 0]
        assert (kept > 0).all()
        assert len(np.unique(kept)) == len(np.unique(before[before > 0]))


def test_stitching_agrees_with_cellpose_on_full_stacks():
    """Cellpose's own stitching is the reference if no slice is empty and no object skips one."""
    from cellpose.utils import stitch3D

    rng = np.random.default_rng(0)
    planes = np.zeros((6, 80, 80), np.uint16)
    for z in range(6):
        for label in rng.permutation(9) + 1:
            row, column = divmod(int(label) - 1, 3)
            planes[z][disk((80, 80), (14 + 25 * row + z * (label % 3) * 0.7, 14 + 25 * column), 9 + 0.4 * z)] = label
    want = stitch3D(planes.copy(), stitch_threshold=0.25)
    found = stitch_slices(planes, 0.25)
    first, second, _ = count_overlaps(found, want)
    assert len(first) == len(np.unique(first)) == len(np.unique(second)) == len(np.unique(want)) - 1
    assert ((found > 0) == (want > 0)).all()


def test_an_empty_slice_separates_objects_that_do_not_overlap():
    planes = np.zeros((4, 30, 30), np.uint32)
    planes[0][disk((30, 30), (8, 8), 5)] = 1
    planes[3][disk((30, 30), (22, 22), 5)] = 1
    out = stitch_slices(planes, 0.25)
    assert set(np.unique(out)) == {0, 1, 2}


def test_an_object_missed_in_one_slice_is_joined_and_filled():
    planes = np.zeros((3, 30, 30), np.uint32)
    planes[0][disk((30, 30), (15, 15), 6)] = 4
    planes[2][disk((30, 30), (15, 16), 6)] = 2
    out = stitch_slices(planes, 0.25)
    assert np.unique(out).tolist() == [0, 1]
    assert (out[1] > 0).sum() == ((planes[0] > 0) & (planes[2] > 0)).sum()


def test_an_object_present_in_the_next_slice_is_not_joined_across_it():
    planes = np.zeros((3, 30, 30), np.uint32)
    planes[:, 5:15, 5:15] = 1
    planes[2, 5:15, 5:15] = 0
    planes[2, 5:9, 5:15], planes[2, 9:15, 5:15] = 1, 2
    out = stitch_slices(planes, 0.25)
    assert len(np.unique(out[2])) == 3 or (out[2] == 0).any()
    assert len(np.unique(out[2][planes[2] > 0])) == 2


@pytest.mark.parametrize("depth", [1, 3])
def test_empty_planes(depth):
    planes = np.zeros((depth, 5, 5), np.uint32)
    assert not stitch_slices(planes, 0.25).any()
    assert not remove_small_objects(planes, 10).any()


def test_small_objects_are_removed_and_labels_renumbered():
    labels = np.zeros((1, 10, 10), np.uint32)
    labels[0, :2, :2], labels[0, 5, 5], labels[0, 8:, 7:] = 3, 7, 9
    out = remove_small_objects(labels, 4)
    assert out.dtype == np.uint32
    assert [int((out == label).sum()) for label in (1, 2)] == [4, 6]
    assert out.max() == 2


@pytest.mark.parametrize(("depth", "kept"), [(1, [144, 144, 144, 16]), (12, [1728, 1728, 1728, 64])])
def test_micronuclei_are_removed(depth, kept):
    """Three nuclei 12 wide, one at the limit of a third (4), and one below it (3), in a plane and in a stack."""
    nuclei = np.zeros((depth, 12, 60), np.uint32)
    for label, (start, width) in enumerate([(0, 12), (13, 12), (26, 3), (30, 12), (50, 4)], start=1):
        nuclei[:width, :width, start : start + width] = label
    out = remove_micronuclei(nuclei)
    assert np.bincount(out.ravel())[1:].tolist() == kept
    assert not out[..., 26:29].any()
    assert not remove_micronuclei(np.zeros_like(nuclei)).any()


def test_flow_error_is_low_for_inward_flows_and_high_for_outward_flows():
    plane = np.zeros((40, 80), np.uint32)
    plane[disk((40, 80), (20, 20), 12)], plane[disk((40, 80), (20, 60), 12)] = 1, 2
    y, x = np.mgrid[:40, :80]
    flows = np.zeros((2, 40, 80))
    for label, centre, sign in ((1, 20, 1), (2, 60, -1)):
        inside = plane == label
        length = np.maximum(np.hypot(y - 20, x - centre), 1e-9)
        flows[:, inside] = sign * np.stack([20 - y, centre - x])[:, inside] / length[inside]
    size, probability, error = measure_object_quality(plane, flows, np.zeros(plane.shape))
    assert size.tolist() == [0, (plane == 1).sum(), (plane == 2).sum()]
    np.testing.assert_allclose(probability, size / 2)
    assert error[1] < 0.01 * size[1]
    assert error[2] == pytest.approx(4 * size[2], rel=0.01)


@pytest.mark.parametrize("shape", [(9, 8), (3, 6, 7)])
def test_object_quality_agrees_with_a_loop_over_voxels(shape):
    rng = np.random.default_rng(3)
    labels, flows, logits = rng.integers(0, 4, shape), rng.normal(size=(len(shape), *shape)), rng.normal(size=shape)
    want = np.zeros((3, 4))
    for at in zip(*np.nonzero(labels), strict=True):
        label = labels[at]
        towards = np.argwhere(labels == label).mean(axis=0) - at
        towards = towards / max(np.linalg.norm(towards), 1e-6)
        want[:, label] += 1, 1 / (1 + np.exp(-logits[at])), ((towards - flows[(slice(None), *at)]) ** 2).sum()
    np.testing.assert_allclose(measure_object_quality(labels, flows, logits), want)


def test_the_flow_error_orders_masks_as_cellposes_does():
    """The reference is Cellpose's flow error, from diffusion: whole cells have a low error, halved cells a high one."""
    from cellpose.dynamics import flow_error, masks_to_flows_gpu

    whole = np.zeros((40, 120), np.int32)
    for label, x in enumerate((20, 60, 100), start=1):
        whole[disk((40, 120), (20, x), 13)] = label
    flows, _ = masks_to_flows_gpu(whole, device=torch.device("cpu"))
    cut = whole.copy()
    cut[:20][cut[:20] == 2] = 4
    cut[:, 103:][cut[:, 103:] == 3] = 5
    theirs, _ = flow_error(cut, 5 * flows, device=torch.device("cpu"))
    size, _, error = measure_object_quality(cut, flows, np.zeros(cut.shape))
    ours = error[1:] / size[1:]
    assert ours.argsort().tolist() == theirs.argsort().tolist()
    np.testing.assert_allclose(ours, theirs, atol=0.2)


def test_confidence_follows_objects_through_stitching_gaps_and_renumbering():
    planes = np.zeros((5, 20, 40), np.uint32)
    planes[[0, 1, 3, 4], 2:12, 2:12] = np.array([1, 2, 1, 1])[:, None, None]  # Missed in the third slice.
    planes[0, 2:12, 20:30], planes[1, 2:12, 24:34] = 2, 1  # Joined at an IoU of 60 / 140.
    planes[2, 15, 15] = 1  # A small object, which is removed.
    quality = [np.zeros((3, int(plane.max()) + 1)) for plane in planes]
    for z, plane in enumerate(planes):
        for label in np.unique(plane[plane > 0]):
            size = (plane == label).sum()
            quality[z][:, label] = size, size * (0.5 + 0.1 * z), size * 0.1
    labels = remove_small_objects(stitch_slices(planes, 0.25), 50)
    assert (labels[2, 2:12, 2:12] == 1).all()
    found = compute_confidence(planes, labels, quality, 0.25)
    assert dict(found.schema) == CONFIDENCE_SCHEMA
    assert found["label"].to_list() == [1, 2]
    np.testing.assert_allclose(found["cell_probability"], [0.7, 0.55])
    np.testing.assert_allclose(found["flow_error"], 0.1)
    assert found["stitch_breaks"].to_list() == [1, 1]
    assert compute_confidence(planes, labels, quality, 0.2)["stitch_breaks"].to_list() == [1, 0]
    assert len(compute_confidence(planes, 0 * labels, quality, 0.25)) == 0


def test_two_thousand_touching_cells_in_twenty_slices_are_stitched_in_seconds():
    rng = np.random.default_rng(0)
    rows, width = 45, 14
    grid = np.kron(np.arange(rows * rows).reshape(rows, rows) + 1, np.ones((width, width), np.int64))
    planes = np.empty((20, *grid.shape), np.uint32)
    for plane in planes:
        shift = rng.integers(-2, 3, 2)
        plane[:] = np.append(0, rng.permutation(rows * rows) + 1)[np.pad(grid, 2)[
            2 + shift[0] : 2 + shift[0] + len(grid), 2 + shift[1] : 2 + shift[1] + len(grid)
        ]]  # fmt: skip
    start = time.perf_counter()
    labels = remove_small_objects(stitch_slices(planes, 0.25), 100)
    found = compute_confidence(planes, labels, [np.ones((3, rows * rows + 1))] * 20, 0.25)
    assert time.perf_counter() - start < 5
    assert len(found) == labels.max() == rows * rows
    middles = labels[:, width // 2 :: width, width // 2 :: width]
    assert (middles == middles[0]).all()


def test_one_cell_through_all_slices_is_joined_and_different_cells_are_not():
    planes = np.zeros((6, 20, 70), np.uint32)
    for z, plane in enumerate(planes):
        plane[disk((20, 70), (10, 10), 6)], plane[disk((20, 70), (10, 22 + 8 * z), 3)] = 2 - z % 2, 1 + z % 2
    labels = stitch_slices(planes, 0.25)
    assert (labels[:, 10, 10] == labels[0, 10, 10]).all()
    assert len(np.unique(labels)) == 1 + 1 + 6
