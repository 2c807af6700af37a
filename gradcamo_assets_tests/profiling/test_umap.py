from __future__ import annotations

import numpy as np
import pytest

from gradcamo_assets.profiling import umap_embedding


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (4, 1), (5, 1)])
def test_rows_without_neighbourhoods_get_their_components(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    found = umap_embedding(matrix)
    assert found.shape == (shape[0], 2)
    assert np.isfinite(found).all()
    if shape[0] and shape[1] == 1:  # the only component is the column itself, less its mean
        np.testing.assert_allclose(np.abs(found[:, 0]), np.abs(matrix[:, 0] - matrix.mean()), atol=1e-6)


def test_equal_rows_give_finite_coordinates():
    assert np.isfinite(umap_embedding(np.ones((7, 3)))).all()


def test_is_the_same_for_the_same_seed_and_parts_what_is_apart():
    # All of UMAP in one test: numba compiles it for seconds, once a process. Rank one is its worst start.
    rng = np.random.default_rng(0)
    line = np.concatenate([rng.normal(size=8), rng.normal(size=8) + 40])
    found = umap_embedding(np.outer(line, [1.0, 2.0]), seed=3)
    np.testing.assert_array_equal(found, umap_embedding(np.outer(line, [1.0, 2.0]), seed=3))
    assert found.shape == (16, 2)
    assert np.isfinite(found).all()
    centres = found[:8].mean(axis=0), found[8:].mean(axis=0)
    nearest = [int(np.argmin([np.linalg.norm(row - centre) for centre in centres])) for row in found]
    assert nearest == [0] * 8 + [1] * 8
    assert np.isfinite(umap_embedding(rng.normal(size=(5, 4)))).all()
