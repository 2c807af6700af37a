from __future__ import annotations

import numpy as np
import pytest

from gradcamo_assets.profiling import umap_embedding


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (4, 1), (5, 1), (5, 4), (8, 2)])
def test_few_rows_give_finite_coordinates(shape):
    found = umap_embedding(np.random.default_rng(0).normal(size=shape))
    assert found.shape == (shape[0], 2)
    assert np.isfinite(found).all()


def test_equal_rows_give_finite_coordinates():
    assert np.isfinite(umap_embedding(np.ones((7, 3)))).all()


def test_is_the_same_for_the_same_seed_and_parts_what_is_apart():
    rng = np.random.default_rng(0)
    matrix = np.concatenate([rng.normal(size=(20, 6)), rng.normal(size=(20, 6)) + 20])
    found = umap_embedding(matrix, seed=3)
    np.testing.assert_array_equal(found, umap_embedding(matrix, seed=3))
    centres = found[:20].mean(axis=0), found[20:].mean(axis=0)
    nearest = [int(np.argmin([np.linalg.norm(row - centre) for centre in centres])) for row in found]
    assert nearest == [0] * 20 + [1] * 20
