"""The stored aggregates compared with loops over rows, and their intervals with SciPy's bootstrap."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from gradcamo_assets.tables import bootstrap_intervals, summarise
from gradcamo_assets_tests.tables import rows

GROUPS = {
    "dose": ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"),
    "site": ("Metadata_Site",),
    "dose_site": ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_Site"),
    "well": ("Metadata_Well",),
    "plate": (),
}


@pytest.fixture(scope="module")
def scores() -> pl.DataFrame:
    rng = np.random.default_rng(3)
    parts = [
        rows.scores(rng, rows.kept(cells := rows.cells(rng, plate, site, 120), rows.crops(cells)), version)
        for plate in ("P1", "P2")
        for site in (1, 2)
        for version in (1, 2)
    ]
    return pl.concat(parts)


def aggregate(scores: pl.DataFrame, by: str) -> pl.DataFrame:
    return summarise(scores)[f"qc_by_{by}"]


def brute_force(scores: pl.DataFrame, names: tuple[str, ...]) -> dict[tuple, dict[str, Any]]:
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in scores.iter_rows(named=True):
        if row["split"] != "train":
            groups[tuple(row[name] for name in (*names, "model_run", "Metadata_Plate"))].append(row)
    result = {}
    for key, cells in groups.items():
        scored = [cell for cell in cells if cell["gradcamo"] is not None]
        values = np.array([cell["gradcamo"] for cell in scored])
        looks = [cell["looks_at"] for cell in scored]
        result[key] = {
            "n_cells": len(cells),
            "n_wells": len({cell["Metadata_Well"] for cell in cells}),
            "median_gradcamo": np.median(values),
            "mean_gradcamo": np.mean(values),
            "q25_gradcamo": np.percentile(values, 25),
            "q75_gradcamo": np.percentile(values, 75),
            "on_target_fraction": sum(cell["on_target"] for cell in scored) / len(scored),
            "median_adjusted": np.median([cell["gradcamo_adjusted"] for cell in scored]),
            "mean_adjusted": np.mean([cell["gradcamo_adjusted"] for cell in scored]),
            "null_cells": len(cells) - len(scored),
        } | {
            f"looks_at_{region}": looks.count(region) / len(looks)
            for region in ("target", "neighbour", "background", "none")
        }
    return result


@pytest.mark.parametrize("by", GROUPS)
def test_aggregates_equal_a_loop_over_rows(scores: pl.DataFrame, by: str) -> None:
    expected = brute_force(scores, GROUPS[by])
    names = (*GROUPS[by], "model_run", "Metadata_Plate")
    table = aggregate(scores, by)
    assert len(table) == len(expected)
    for row in table.iter_rows(named=True):
        for column, value in expected[tuple(row[name] for name in names)].items():
            assert row[column] == pytest.approx(value, abs=1e-12), column


@pytest.mark.parametrize(
    ("value", "mean", "low", "high"),
    [
        ("on_target", "on_target_fraction", "ci_low", "ci_high"),
        ("gradcamo_adjusted", "mean_adjusted", "adjusted_low", "adjusted_high"),
    ],
)
def test_intervals_follow_scipy_over_wells(scores: pl.DataFrame, value: str, mean: str, low: str, high: str) -> None:
    one = scores.filter(Metadata_Plate="P1", model_version=1).filter(pl.col("split") != "train")
    wells = one.drop_nulls("gradcamo").group_by("Metadata_Well").agg(pl.col(value).sum(), pl.len())
    expected = stats.bootstrap(
        (wells[value].to_numpy().astype(float), wells["len"].to_numpy().astype(float)),
        lambda sums, cells, axis: sums.sum(axis=axis) / cells.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    row = aggregate(one, "plate").row(0, named=True)
    assert row[low] == pytest.approx(expected.low, abs=0.02)
    assert row[high] == pytest.approx(expected.high, abs=0.02)
    assert row[low] < row[mean] < row[high]


def test_intervals_equal_a_direct_bootstrap() -> None:
    rng = np.random.default_rng(7)
    cells = rng.integers(5, 40, (3, 12))
    hits = rng.binomial(cells, [[0.2], [0.5], [0.9]])
    found = bootstrap_intervals(hits.astype(float), cells.astype(float))
    for group in range(3):
        shares = []
        for _ in range(5000):
            drawn = [rng.integers(12) for _ in range(12)]
            shares.append(sum(hits[group, i] for i in drawn) / sum(cells[group, i] for i in drawn))
        assert found[group] == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.015)
    np.testing.assert_array_equal(bootstrap_intervals(hits[1:2].astype(float), cells[1:2].astype(float))[0], found[1])
    assert (bootstrap_intervals(hits.astype(float), cells.astype(float), seed=1) != found).any()


def test_no_interval_below_three_wells_with_scores(scores: pl.DataFrame) -> None:
    assert aggregate(scores, "well")["ci_low"].null_count() == len(aggregate(scores, "well"))
    emptied = scores.with_columns(
        pl.when(pl.col("Metadata_Well").is_in(["A01", "A02", "A03", "B01"]))
        .then(None)
        .otherwise(pl.col(name))
        .alias(name)
        for name in ("gradcamo", "on_target")
    )
    plates = aggregate(emptied, "plate")
    assert plates["n_wells"].to_list() == [6] * 4
    assert plates["ci_high"].null_count() == 4


def test_order_of_rows_and_other_groups_change_nothing(scores: pl.DataFrame) -> None:
    table = aggregate(scores, "dose")
    assert aggregate(scores.sample(fraction=1, shuffle=True, seed=1), "dose").equals(table)
    alone = aggregate(scores.filter(Metadata_Plate="P2", model_version=2), "dose")
    assert alone.equals(table.filter(Metadata_Plate="P2", model_run=rows.run_of(2)))


def test_a_treatment_without_a_name_is_a_group_of_its_own(scores: pl.DataFrame) -> None:
    nameless = scores.with_columns(pl.lit(None, pl.String).alias("Metadata_Compound"))
    table = aggregate(nameless, "dose")
    assert table.filter(Metadata_Dose=0.0)["ci_low"].null_count() == 0
    assert table["n_cells"].sum() == len(scores.filter(pl.col("split") != "train"))


def test_groups_of_train_cells_or_of_null_scores_only(scores: pl.DataFrame) -> None:
    assert aggregate(scores.with_columns(split=pl.lit("train")), "plate").is_empty()
    nothing = scores.with_columns(pl.lit(None, pl.Float64).alias("gradcamo"), on_target=pl.lit(None, pl.Boolean))
    row = aggregate(nothing, "plate").row(0, named=True)
    assert row["null_cells"] == row["n_cells"] > 0
    assert row["mean_gradcamo"] is row["on_target_fraction"] is row["ci_low"] is row["looks_at_target"] is None


def test_intervals_cover_the_truth() -> None:
    rng, truth = np.random.default_rng(0), 0.4
    cells = rng.integers(20, 60, (200, 24))
    hits = rng.binomial(cells, rng.beta(8 * truth, 8 * (1 - truth), (200, 24)))
    low, high = bootstrap_intervals(hits.astype(float), cells.astype(float)).T
    assert 0.88 <= ((low <= truth) & (truth <= high)).mean() <= 0.99
