from __future__ import annotations

import numpy as np
import pytest

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles import CellMap, load_fitted, save_fitted, umap
from gradcamo_assets.profiles.umap import umap_embedding


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (4, 1), (5, 1)])
def test_few_rows_get_their_principal_components(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    found = umap_embedding(matrix)
    assert found.shape == (shape[0], 2)
    assert np.isfinite(found).all()
    if shape[0] and shape[1] == 1:  # The only component is the centred column.
        np.testing.assert_allclose(np.abs(found[:, 0]), np.abs(matrix[:, 0] - matrix.mean()), atol=1e-6)


def test_equal_rows_give_finite_coordinates():
    assert np.isfinite(umap_embedding(np.ones((7, 3)))).all()


def test_neighbours_are_exact():
    x = np.random.default_rng(2).normal(size=(30, 4))
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    found, lengths = umap._exact_neighbours(x, 6)
    np.testing.assert_array_equal(found, distances.argsort(axis=1)[:, :6])
    np.testing.assert_allclose(lengths, np.sort(distances, axis=1)[:, :6], atol=1e-6)


def test_umap_is_reproducible_and_separates_distant_groups(monkeypatch):
    # One test for UMAP, because numba compiles it for seconds per process. Data of rank one is its hardest start.
    rng = np.random.default_rng(0)
    line = np.concatenate([rng.normal(size=8), rng.normal(size=8) + 40])
    lines = np.outer(line, [1.0, 2.0])
    found = umap_embedding(lines, seed=3)
    np.testing.assert_array_equal(found, umap_embedding(lines, seed=3))
    monkeypatch.setattr(umap, "_APPROXIMATE_FROM", 16)  # As for thousands of rows.
    for coordinates in (found, umap_embedding(lines, seed=3)):
        assert coordinates.shape == (16, 2)
        assert np.isfinite(coordinates).all()
        centres = coordinates[:8].mean(axis=0), coordinates[8:].mean(axis=0)
        nearest = [int(np.argmin([np.linalg.norm(row - centre) for centre in centres])) for row in coordinates]
        assert nearest == [0] * 8 + [1] * 8
    assert np.isfinite(umap_embedding(rng.normal(size=(5, 4)))).all()


def _map(n: int = 30, d: int = 4) -> CellMap:
    rng = np.random.default_rng(1)
    return CellMap(rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32))


def test_fitted_cells_keep_their_place_and_other_cells_do_not_matter(tmp_path):
    cell_map = _map()
    save_fitted(tmp_path / "map.safetensors", cell_map.arrays, {})
    kept = CellMap(**load_fitted(tmp_path / "map.safetensors")[0])
    np.testing.assert_array_equal(kept.place(cell_map.vectors), cell_map.coordinates)
    new = np.random.default_rng(2).normal(size=(9, 4))
    together = kept.place(new)
    np.testing.assert_allclose(np.concatenate([kept.place(new[k : k + 1]) for k in range(9)]), together, rtol=1e-5)


def test_a_new_cell_gets_the_weighted_mean_of_its_nearest_five():
    cell_map = _map()
    new = np.random.default_rng(3).normal(size=(6, 4))
    for vector, place in zip(new, cell_map.place(new), strict=True):
        distances = np.linalg.norm(cell_map.vectors - vector, axis=1)
        nearest = np.argsort(distances)[:5]
        weights = 1 / distances[nearest]
        np.testing.assert_allclose(place, weights @ cell_map.coordinates[nearest] / weights.sum(), rtol=1e-4, atol=1e-6)


def test_a_map_of_one_cell_works_and_vectors_of_another_length_are_refused():
    assert CellMap.fit(np.array([[1.0, 2.0]])).place(np.zeros((3, 2))).shape == (3, 2)
    with pytest.raises(GradcamoError, match="4 dimensions"):
        _map().place(np.zeros((3, 5)))
