from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles import POPULATIONS, select_population
from gradcamo_assets_tests.profiles.frames import embeddings

FIELD = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]


def _scored(seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    cells = embeddings({"A01": ("DMSO", 0.0), "A02": ("x", 1.0)}, lambda *_: rng.normal(size=2)).drop("population")
    n = len(cells)
    return cells.with_columns(
        on_target=pl.Series([[True, False, None][i] for i in rng.integers(0, 3, n)]),
        looks_at=pl.Series([["target", "background", None][i] for i in rng.integers(0, 3, n)]),
        gradcamo_adjusted=pl.Series([None if rng.random() < 0.2 else rng.normal() for _ in range(n)]),
    )


def test_each_population_has_the_defined_cells():
    cells = _scored()
    rows = cells.to_dicts()
    expected = {
        "all": {row["Metadata_CellID"] for row in rows},
        "on_target": {row["Metadata_CellID"] for row in rows if row["on_target"]},
        "trusted": {row["Metadata_CellID"] for row in rows if row["looks_at"] == "target"},
        "weighted": {row["Metadata_CellID"] for row in rows if (row["gradcamo_adjusted"] or 0) > 0},
    }
    for name, ids in expected.items():
        found = select_population(cells, name)
        assert set(found["Metadata_CellID"]) == ids, name
        assert found["population"].unique().to_list() == [name]
        assert found["cells_in_field"].unique().to_list() == [6]
    assert select_population(cells, "weighted")["weight"].is_between(0, 1).all()
    assert set(expected) | {"matched"} == set(POPULATIONS)


@given(seed=st.integers(0, 999))
def test_matched_has_as_many_cells_per_field_as_are_on_target_in_any_order(seed):
    cells = _scored(seed)
    matched = select_population(cells, "matched")
    on_target = select_population(cells, "on_target")
    counts = [part.group_by(FIELD).len().sort(FIELD).rows() for part in (matched, on_target)]
    assert counts[0] == counts[1]
    assert matched["Metadata_CellID"].is_unique().all()
    assert select_population(cells.sample(fraction=1, shuffle=True, seed=1), "matched").equals(matched)


def test_matched_draws_regardless_of_the_score():
    # If k of n cells are on target, k random cells contain k * k / n of them on average.
    drawn = expected = number = 0.0
    for seed in range(150):
        cells = _scored(seed)
        k = cells.group_by(FIELD).agg(pl.col("on_target").sum())["on_target"].to_numpy().astype(float)
        expected, number = expected + float((k * k / 6).sum()), number + float(k.sum())
        drawn += float(select_population(cells, "matched", seed)["on_target"].sum())
    assert drawn / number == pytest.approx(expected / number, abs=0.05)


def test_an_unknown_population_is_refused():
    with pytest.raises(GradcamoError, match="some"):
        select_population(_scored(), "some")
