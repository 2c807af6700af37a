from __future__ import annotations

import statistics

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles import well_profiles
from gradcamo_assets_tests.profiles.frames import embeddings

WELLS = {"A01": ("DMSO", 0.0), "A02": ("DMSO", 0.0), "A03": ("x", 1.0), "B01": ("DMSO", 0.0), "B02": ("x", 1.0)}


def _noise(seed: int = 0, d: int = 3):
    rng = np.random.default_rng(seed)
    return lambda *_: rng.normal(size=d)


def test_a_profile_is_the_mean_over_sites_of_site_medians():
    table = embeddings(WELLS, _noise(), plates=("P1", "P2"), sites=3, cells=5)
    table = table.sample(fraction=0.8, seed=1, shuffle=True)  # sites of unequal size, in any order
    found = well_profiles(table)
    assert found.height == 10
    assert found["profile"].dtype == pl.List(pl.Float32)
    for row in found.iter_rows(named=True):
        sites: dict[int, list[list[float]]] = {}
        for cell in table.iter_rows(named=True):
            if (cell["Metadata_Plate"], cell["Metadata_Well"]) == (row["Metadata_Plate"], row["Metadata_Well"]):
                sites.setdefault(cell["Metadata_Site"], []).append(cell["embedding"])
        expected = [
            statistics.mean(statistics.median(vector[k] for vector in cells) for cells in sites.values())
            for k in range(3)
        ]
        assert row["profile"] == pytest.approx(expected, abs=1e-6)
        assert row["n_cells"] == sum(map(len, sites.values()))


def test_a_pooled_well_has_one_profile_per_treatment():
    table = pl.concat([embeddings({"A01": ("DMSO", 0.0)}, _noise(1)), embeddings({"A01": ("x", 1.0)}, _noise(2))])
    found = well_profiles(table.sample(fraction=1, shuffle=True, seed=0))
    assert found["Metadata_Compound"].to_list() == ["DMSO", "x"]
    assert found["n_cells"].to_list() == [12, 12]


def test_a_well_has_one_profile_per_population_and_an_empty_table_has_none():
    table = embeddings(WELLS, _noise())
    both = pl.concat([table, table.with_columns(population=pl.lit("on_target"))])
    found = well_profiles(both)
    assert found.group_by("population").len().sort("population").rows() == [("all", 5), ("on_target", 5)]
    assert well_profiles(table.clear()).is_empty()
    assert well_profiles(table.clear()).schema == well_profiles(table).schema


def test_vectors_of_different_lengths_are_refused():
    table = pl.concat([embeddings({"A01": ("x", 1.0)}, _noise(d=3)), embeddings({"A01": ("x", 1.0)}, _noise(d=4))])
    with pytest.raises(GradcamoError, match="3, 4"):
        well_profiles(table)


@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_a_weighted_median_has_at_most_half_of_the_weight_on_either_side(weights, seed):
    table = embeddings({"A01": ("x", 1.0)}, _noise(seed), sites=1, cells=len(weights))
    found = well_profiles(table.with_columns(weight=pl.Series(weights)))["profile"][0]
    values = np.array(table["embedding"].to_list())
    for k, median in enumerate(found):
        below = sum(w for w, v in zip(weights, values[:, k], strict=True) if v < median)
        above = sum(w for w, v in zip(weights, values[:, k], strict=True) if v > median)
        assert max(below, above) <= sum(weights) / 2 + 1e-9
