from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradcamo_assets.segmentation.masks import consistent, overlaps, stitched, without_specks

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
    found = {(a, b): n for a, b, n in zip(*(part.tolist() for part in overlaps(first, second)), strict=True)}
    assert found == want


@given(PLANES, st.sampled_from([0.1, 0.25, 0.5, 1.0]))
@settings(max_examples=60)
def test_stitching_renames_objects_but_never_splits_merges_or_removes_them_in_a_slice(planes, threshold):
    out = stitched(planes, threshold)
    for before, after in zip(planes, out, strict=True):
        for label in np.unique(before[before > 0]):
            assert len(np.unique(after[before == label])) == 1
        kept = after[before > 0]
        assert (kept > 0).all()
        assert len(np.unique(kept)) == len(np.unique(before[before > 0]))


def test_stitching_agrees_with_cellpose_on_full_stacks():
    """Where no slice is empty and no object skips one, cellpose's own stitching is the oracle."""
    from cellpose.utils import stitch3D

    rng = np.random.default_rng(0)
    planes = np.zeros((6, 80, 80), np.uint16)
    for z in range(6):
        for label in rng.permutation(9) + 1:
            row, column = divmod(int(label) - 1, 3)
            planes[z][disk((80, 80), (14 + 25 * row + z * (label % 3) * 0.7, 14 + 25 * column), 9 + 0.4 * z)] = label
    want = stitch3D(planes.copy(), stitch_threshold=0.25)
    found = stitched(planes, 0.25)
    first, second, _ = overlaps(found, want)
    assert len(first) == len(np.unique(first)) == len(np.unique(second)) == len(np.unique(want)) - 1
    assert ((found > 0) == (want > 0)).all()


def test_an_empty_slice_separates_objects_that_do_not_overlap():
    planes = np.zeros((4, 30, 30), np.uint32)
    planes[0][disk((30, 30), (8, 8), 5)] = 1
    planes[3][disk((30, 30), (22, 22), 5)] = 1
    out = stitched(planes, 0.25)
    assert set(np.unique(out)) == {0, 1, 2}


def test_an_object_missed_in_one_slice_is_joined_and_filled():
    planes = np.zeros((3, 30, 30), np.uint32)
    planes[0][disk((30, 30), (15, 15), 6)] = 4
    planes[2][disk((30, 30), (15, 16), 6)] = 2
    out = stitched(planes, 0.25)
    assert np.unique(out).tolist() == [0, 1]
    assert (out[1] > 0).sum() == ((planes[0] > 0) & (planes[2] > 0)).sum()


def test_an_object_that_is_still_there_is_not_joined_across_a_slice():
    planes = np.zeros((3, 30, 30), np.uint32)
    planes[:, 5:15, 5:15] = 1
    planes[2, 5:15, 5:15] = 0
    planes[2, 5:9, 5:15], planes[2, 9:15, 5:15] = 1, 2
    out = stitched(planes, 0.25)
    assert len(np.unique(out[2])) == 3 or (out[2] == 0).any()
    assert len(np.unique(out[2][planes[2] > 0])) == 2


@pytest.mark.parametrize("depth", [1, 3])
def test_empty_planes(depth):
    planes = np.zeros((depth, 5, 5), np.uint32)
    assert not stitched(planes, 0.25).any()
    assert not without_specks(planes, 10).any()


def test_specks_go_and_labels_close_up():
    labels = np.zeros((1, 10, 10), np.uint32)
    labels[0, :2, :2], labels[0, 5, 5], labels[0, 8:, 7:] = 3, 7, 9
    out = without_specks(labels, 4)
    assert out.dtype == np.uint32
    assert [int((out == label).sum()) for label in (1, 2)] == [4, 6]
    assert out.max() == 2


def test_flows_to_the_middle_are_kept_and_flows_that_lead_away_are_not():
    planes = np.zeros((1, 40, 80), np.uint32)
    planes[0][disk((40, 80), (20, 20), 12)], planes[0][disk((40, 80), (20, 60), 12)] = 1, 2
    y, x = np.mgrid[:40, :80]
    flows = np.zeros((2, 1, 40, 80))
    for label, centre, sign in ((1, 20, 1), (2, 60, -1)):
        inside = planes[0] == label
        length = np.maximum(np.hypot(y - 20, x - centre), 1e-9)
        flows[0, 0][inside], flows[1, 0][inside] = (
            (sign * (20 - y) / length)[inside],
            (sign * (centre - x) / length)[inside],
        )
    assert np.unique(consistent(planes, flows, 0.4)).tolist() == [0, 1]
    assert np.unique(consistent(planes, flows * 0, 0.4)).tolist() == [0]
    assert (consistent(planes, flows, 4.1) == planes).all()
