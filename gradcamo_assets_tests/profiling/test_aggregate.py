from __future__ import annotations

import statistics

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.profiling import sphered_profiles, well_profiles
from gradcamo_assets_tests.profiling.frames import embeddings

WELLS = {"A01": ("DMSO", 0.0), "A02": ("DMSO", 0.0), "A03": ("x", 1.0), "B01": ("DMSO", 0.0), "B02": ("x", 1.0)}


def _noise(seed: int = 0, d: int = 3):
    rng = np.random.default_rng(seed)
    return lambda *place: rng.normal(size=d)


def test_median_of_each_site_then_mean_of_sites():
    table = embeddings(WELLS, _noise(), plates=("P1", "P2"), sites=3, cells=5)
    table = table.sample(fraction=0.8, seed=1, shuffle=True)  # sites of unequal size, any order
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


def test_a_pooled_well_has_one_profile_a_treatment():
    table = pl.concat([embeddings({"A01": ("DMSO", 0.0)}, _noise(1)), embeddings({"A01": ("x", 1.0)}, _noise(2))])
    found = well_profiles(table.sample(fraction=1, shuffle=True, seed=0))
    assert found["Metadata_Compound"].to_list() == ["DMSO", "x"]
    assert found["n_cells"].to_list() == [12, 12]


def test_no_embeddings_give_no_profiles():
    table = embeddings(WELLS, _noise()).clear()
    profiles, notes = sphered_profiles(table)
    assert profiles.is_empty()
    assert notes == []
    assert profiles.columns == well_profiles(embeddings(WELLS, _noise())).columns


def test_vectors_of_two_lengths_are_refused():
    table = pl.concat([embeddings({"A01": ("x", 1.0)}, _noise(d=3)), embeddings({"A01": ("x", 1.0)}, _noise(d=4))])
    with pytest.raises(GradcamoError, match="3, 4"):
        well_profiles(table)


def test_versions_may_differ_in_length():
    table = pl.concat([embeddings(WELLS, _noise(d=3), model="small"), embeddings(WELLS, _noise(d=4), model="large")])
    profiles, _ = sphered_profiles(table)
    lengths = profiles.group_by("model_name").agg(pl.col("profile").list.len().unique().first())
    assert dict(lengths.iter_rows()) == {"small": 3, "large": 4}


def test_each_plate_is_sphered_on_its_own_controls():
    rng = np.random.default_rng(0)
    offset = {"P1": 0.0, "P2": 50.0}
    table = embeddings(WELLS, lambda plate, *_: rng.normal(size=3) + offset[plate], plates=("P1", "P2"))
    profiles, notes = sphered_profiles(table)
    assert notes == []
    for _, plate in profiles.group_by("Metadata_Plate"):
        controls = np.array(plate.filter(Metadata_pert_type="negcon")["profile"].to_list())
        np.testing.assert_allclose(controls.mean(axis=0), 0, atol=1e-5)


def test_a_plate_without_controls_borrows_them_and_says_so():
    table = embeddings(WELLS, _noise(), plates=("P1", "P2"))
    table = table.filter((pl.col("Metadata_Plate") == "P1") | (pl.col("Metadata_Compound") == "x"))
    profiles, notes = sphered_profiles(table)
    assert len(notes) == 1
    assert "plate P2" in notes[0]
    assert profiles.height == 7


def test_without_any_controls_profiles_stay_as_they_are():
    table = embeddings({"A01": ("x", 1.0), "A02": ("y", 1.0)}, _noise())
    profiles, notes = sphered_profiles(table)
    assert "not sphered" in notes[0]
    assert profiles.equals(well_profiles(table))
