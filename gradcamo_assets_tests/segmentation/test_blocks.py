"""Objects of a field that is split into blocks and put together again are complete."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.segmentation.masks import count_overlaps
from gradcamo_assets.segmentation.volumes import iter_blocks, paste_objects


@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), side=st.integers(1, 70), halo=st.integers(1, 12))
def test_inner_parts_cover_the_plane_and_blocks_stay_small(shape, side, halo):
    seen = np.zeros(shape, int)
    for outer, inner in iter_blocks(shape, side, halo):
        part = seen[outer]
        assert part[inner].size
        part[inner] += 1
        assert max(part.shape) <= max(side, 3 * halo + 2)
    assert seen.min() >= 1


@given(seed=st.integers(0, 10_000), side=st.integers(20, 60))
def test_objects_within_the_halo_stay_whole(seed, side):
    rng = np.random.default_rng(seed)
    truth = np.zeros((3, 80, 70), int)
    for label in range(1, 25):
        y, x = rng.integers(0, 74), rng.integers(0, 64)
        box = (slice(0, 3), slice(y, y + rng.integers(3, 10)), slice(x, x + rng.integers(3, 10)))
        truth[box][truth[box] == 0] = label
    truth = np.unique(truth, return_inverse=True)[1].reshape(truth.shape)
    found, labels = np.zeros(truth.shape, np.uint32), 1
    for outer, inner in iter_blocks((80, 70), side, 10):
        # Every block numbers its objects in a different order.
        order = np.append(0, 1 + rng.permutation(truth.max()))
        objects = order[truth[:, *outer]]
        written = paste_objects(found[:, *outer], objects, inner, labels)
        assert set(written) <= set(np.unique(objects))
        labels += len(written)
    assert labels - 1 == found.max() == truth.max()
    first, second, shared = count_overlaps(found, truth)
    assert len(first) == len(second) == truth.max()
    assert shared.sum() == (truth > 0).sum() == (found > 0).sum()


def test_labels_of_another_block_are_kept():
    target = np.zeros((1, 10, 10), np.uint32)
    target[0, :, :6] = 7
    objects = np.zeros((1, 10, 10), int)
    objects[0, 2:4, 4:10] = 3
    objects[0, 6:8, 1:8] = 5
    whole = (slice(0, 10), slice(0, 10))
    assert paste_objects(target, objects, whole, 8).tolist() == [3]
    assert (target[0, 2:4, :6] == 7).all()
    assert (target[0, 2:4, 6:] == 8).all()
    assert (target[0, 6:8, 6:] == 0).all()
