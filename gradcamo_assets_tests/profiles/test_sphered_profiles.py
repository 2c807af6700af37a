from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles import ProfilesConfig, replicate_map, select_population, sphered_profiles, well_profiles
from gradcamo_assets.profiles.sphered_profiles import SCREEN
from gradcamo_assets_tests.profiles.frames import embeddings

WELLS = {"A01": ("DMSO", 0.0), "A02": ("DMSO", 0.0), "A03": ("x", 1.0), "B01": ("DMSO", 0.0), "B02": ("x", 1.0)}


def _profiles(plates=("P1", "P2"), apart=50.0) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return well_profiles(embeddings(WELLS, lambda p, *_: rng.normal(size=3) + apart * int(p[1]), plates=plates))


def _mean(table: pl.DataFrame) -> np.ndarray:
    return np.array(table["profile"].to_list()).mean(axis=0)


def test_each_plate_is_sphered_on_its_own_controls():
    result = sphered_profiles(_profiles(), ProfilesConfig())
    assert result.notes == []
    assert set(result.fitted) == {("all", "P1"), ("all", "P2")}
    for (plate,), wells in result.table.group_by(["Metadata_Plate"]):
        np.testing.assert_allclose(_mean(wells.filter(Metadata_pert_type="negcon")), 0, atol=1e-5)
        assert wells["sphering"].unique().to_list() == [result.fitted["all", plate].digest]
        assert result.fitted["all", plate].fitted_on == (f"{plate}/A01", f"{plate}/A02", f"{plate}/B01")


def test_sphering_can_use_the_whole_screen_or_all_wells():
    screen = sphered_profiles(_profiles(), ProfilesConfig(scope="screen"))
    assert set(screen.fitted) == {("all", SCREEN)}
    np.testing.assert_allclose(_mean(screen.table.filter(Metadata_pert_type="negcon")), 0, atol=1e-5)
    assert np.abs(_mean(screen.table.filter(Metadata_Plate="P1"))).max() > 0.5
    wells = sphered_profiles(_profiles(), ProfilesConfig(fit_on="all"))
    np.testing.assert_allclose(_mean(wells.table.filter(Metadata_Plate="P1")), 0, atol=1e-5)


def test_a_known_sphering_is_applied_to_a_new_plate_and_not_refitted():
    first = sphered_profiles(_profiles(), ProfilesConfig(scope="screen"))
    known = {"all": first.fitted["all", SCREEN]}
    new = _profiles(("P9",))
    result = sphered_profiles(new, ProfilesConfig(scope="screen"), known)
    assert result.fitted == {}
    assert result.table["sphering"].unique().to_list() == first.table["sphering"].unique().to_list()
    expected = known["all"](np.array(new["profile"].to_list()))
    np.testing.assert_allclose(np.array(result.table["profile"].to_list()), expected, rtol=1e-5)


def test_populations_are_sphered_separately():
    table = _profiles()
    shifted = table.with_columns(pl.lit("on_target").alias("population"), pl.col("profile").list.eval(pl.element() + 7))
    result = sphered_profiles(pl.concat([table, shifted]), ProfilesConfig())
    alone = sphered_profiles(table, ProfilesConfig()).table
    assert result.table.filter(population="all").equals(alone)
    on_target = result.table.filter(population="on_target")
    np.testing.assert_allclose(
        np.array(on_target["profile"].to_list()), np.array(alone["profile"].to_list()), atol=1e-3
    )


def test_without_wells_to_fit_on_profiles_stay_unchanged_with_a_note():
    table = _profiles().filter((pl.col("Metadata_Plate") == "P1") | (pl.col("Metadata_Compound") == "x"))
    result = sphered_profiles(table, ProfilesConfig())
    assert len(result.notes) == 1 and "plate P2" in result.notes[0]
    unchanged = result.table.filter(Metadata_Plate="P2")
    assert unchanged.drop("sphering").equals(table.filter(Metadata_Plate="P2"))
    assert unchanged["sphering"].null_count() == 2
    assert sphered_profiles(table.clear(), ProfilesConfig()).table.schema == result.table.schema


@pytest.mark.parametrize(
    "wrong", [{"populations": ("some",)}, {"fit_on": "poscon"}, {"scope": "well"}, {"formats": ("csv",)}]
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(GradcamoError) as error:
        ProfilesConfig(**wrong)
    assert error.value.remedy


def test_on_target_profiles_are_more_replicable_than_matched_and_all():
    # Half of the cells are on target and show their treatment; the others show their field.
    rng = np.random.default_rng(0)
    wells = {f"{r}{c:02d}": ("DMSO", 0.0) if c < 3 else (f"c{c}", 1.0) for r in "ABCD" for c in range(1, 9)}
    effect = {f"c{c}": rng.normal(size=16) * 2 for c in range(3, 9)}
    cells = embeddings(wells, lambda p, w, s, compound, d: rng.normal(size=16) + effect.get(compound, 0), cells=20)
    fields = {key: rng.normal(size=16) * 4 for key in cells.select("Metadata_Well", "Metadata_Site").unique().rows()}
    on_target = np.arange(len(cells)) % 2 == 0
    moved = [
        row["embedding"]
        if good
        else (rng.normal(size=16) + fields[row["Metadata_Well"], row["Metadata_Site"]]).tolist()
        for row, good in zip(cells.iter_rows(named=True), on_target, strict=True)
    ]
    cells = cells.with_columns(
        embedding=pl.Series(moved, dtype=pl.List(pl.Float32)), on_target=pl.Series(on_target)
    ).drop("population", "cells_in_field")
    raw = pl.concat(well_profiles(select_population(cells, name)) for name in ("all", "on_target", "matched"))
    table = replicate_map(sphered_profiles(raw, ProfilesConfig()).table).filter(pl.col("Metadata_Compound") != "DMSO")
    found = dict(table.group_by("population").agg(pl.col("mean_average_precision").mean()).iter_rows())
    assert found["on_target"] > 0.9 > found["matched"] + 0.1
    assert found["on_target"] > found["all"] + 0.1


def test_profiles_of_a_collapsed_encoder_are_only_centred_with_a_note():
    table = well_profiles(embeddings(WELLS, lambda *_: np.array([0.1, 0.7, 1e3])))
    result = sphered_profiles(table, ProfilesConfig())
    note = "Profiles of population all on plate P1 are only centred: the wells to fit on are all alike."
    assert result.notes == [note]
    np.testing.assert_allclose(np.array(result.table["profile"].to_list()), 0, atol=1e-6)
