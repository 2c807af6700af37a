from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles import ProfilesConfig, population, replicate_map, sphered_profiles, well_profiles
from gradcamo_assets.profiles.sphered_profiles import SCREEN
from gradcamo_assets_tests.profiles.frames import embeddings

WELLS = {"A01": ("DMSO", 0.0), "A02": ("DMSO", 0.0), "A03": ("x", 1.0), "B01": ("DMSO", 0.0), "B02": ("x", 1.0)}


def _profiles(plates=("P1", "P2"), apart=50.0) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return well_profiles(embeddings(WELLS, lambda p, *_: rng.normal(size=3) + apart * int(p[1]), plates=plates))


def _mean(table: pl.DataFrame) -> np.ndarray:
    return np.array(table["profile"].to_list()).mean(axis=0)


def test_each_plate_is_sphered_on_its_own_controls():
    made = sphered_profiles(_profiles(), ProfilesConfig())
    assert made.notes == []
    assert set(made.fitted) == {("all", "P1"), ("all", "P2")}
    for (plate,), wells in made.table.group_by(["Metadata_Plate"]):
        np.testing.assert_allclose(_mean(wells.filter(Metadata_pert_type="negcon")), 0, atol=1e-5)
        assert wells["sphering"].unique().to_list() == [made.fitted["all", plate].digest]
        assert made.fitted["all", plate].fitted_on == (f"{plate}/A01", f"{plate}/A02", f"{plate}/B01")


def test_over_the_screen_and_on_all_wells():
    screen = sphered_profiles(_profiles(), ProfilesConfig(scope="screen"))
    assert set(screen.fitted) == {("all", SCREEN)}
    np.testing.assert_allclose(_mean(screen.table.filter(Metadata_pert_type="negcon")), 0, atol=1e-5)
    assert np.abs(_mean(screen.table.filter(Metadata_Plate="P1"))).max() > 0.5
    wells = sphered_profiles(_profiles(), ProfilesConfig(fit_on="all"))
    np.testing.assert_allclose(_mean(wells.table.filter(Metadata_Plate="P1")), 0, atol=1e-5)


def test_a_known_sphering_is_applied_to_a_new_plate_and_not_fitted_again():
    first = sphered_profiles(_profiles(), ProfilesConfig(scope="screen"))
    known = {"all": first.fitted["all", SCREEN]}
    new = _profiles(("P9",))
    made = sphered_profiles(new, ProfilesConfig(scope="screen"), known)
    assert made.fitted == {}
    assert made.table["sphering"].unique().to_list() == first.table["sphering"].unique().to_list()
    expected = known["all"](np.array(new["profile"].to_list()))
    np.testing.assert_allclose(np.array(made.table["profile"].to_list()), expected, rtol=1e-5)


def test_populations_are_sphered_apart():
    table = _profiles()
    shifted = table.with_columns(pl.lit("on_target").alias("population"), pl.col("profile").list.eval(pl.element() + 7))
    made = sphered_profiles(pl.concat([table, shifted]), ProfilesConfig())
    alone = sphered_profiles(table, ProfilesConfig()).table
    assert made.table.filter(population="all").equals(alone)
    on_target = made.table.filter(population="on_target")
    np.testing.assert_allclose(
        np.array(on_target["profile"].to_list()), np.array(alone["profile"].to_list()), atol=1e-3
    )


def test_without_wells_to_fit_on_profiles_stay_as_they_are_and_it_is_said():
    table = _profiles().filter((pl.col("Metadata_Plate") == "P1") | (pl.col("Metadata_Compound") == "x"))
    made = sphered_profiles(table, ProfilesConfig())
    assert len(made.notes) == 1 and "plate P2" in made.notes[0]
    left = made.table.filter(Metadata_Plate="P2")
    assert left.drop("sphering").equals(table.filter(Metadata_Plate="P2"))
    assert left["sphering"].null_count() == 2
    assert sphered_profiles(table.clear(), ProfilesConfig()).table.schema == made.table.schema


@pytest.mark.parametrize(
    "wrong", [{"populations": ("some",)}, {"fit_on": "poscon"}, {"scope": "well"}, {"formats": ("csv",)}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(GradcamoError) as error:
        ProfilesConfig(**wrong)
    assert error.value.remedy


def test_what_the_score_is_worth_can_be_read_off():
    # Half of the cells look at themselves and carry their treatment; the others carry their field.
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
    raw = pl.concat(well_profiles(population(cells, name)) for name in ("all", "on_target", "matched"))
    table = replicate_map(sphered_profiles(raw, ProfilesConfig()).table).filter(pl.col("Metadata_Compound") != "DMSO")
    found = dict(table.group_by("population").agg(pl.col("mean_average_precision").mean()).iter_rows())
    assert found["on_target"] > 0.9 > found["matched"] + 0.1
    assert found["on_target"] > found["all"] + 0.1
