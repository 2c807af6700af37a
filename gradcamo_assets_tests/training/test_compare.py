"""Check the comparison of versions against loops over wells and cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.networks.bundle import BundleConfig
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.training.compare import (
    MEASURES,
    differences_from_champion,
    held_out_cells,
    mean_with_interval,
    summarise_versions,
)
from gradcamo_assets.training.model_registry import ModelRegistry
from gradcamo_assets.training.training_run import CELLS


def _cells(seed: int, wells: range = range(8), masks: str = "m") -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for well in wells:
        for cell in range(3 + well):
            adjusted = None if rng.random() < 0.1 else float(rng.normal(0.3, 0.3))
            row = {"Metadata_CellID": f"P/A{well:02d}/1/{cell}", "Metadata_Plate": "P", "Metadata_Well": f"A{well:02d}"}
            row |= {"mask_version": masks, "split": "test" if well < 5 else "unseen", "true_class": "ab"[well % 2]}
            row |= {"predicted_class": "ab"[int(rng.integers(2))], "gradcamo_adjusted": adjusted}
            rows.append(row | {"on_target": None if adjusted is None else adjusted > 0.4})
    return pl.DataFrame(rows, infer_schema_length=None)


def _value(row: dict, measure: str) -> float | None:
    if measure == "accuracy":
        return float(row["true_class"] == row["predicted_class"])
    value = row["on_target" if measure == "on_target_fraction" else measure]
    return None if value is None else float(value)


def _bootstrap(values: dict[str, list[float]]) -> tuple[float, float]:
    """Percentile interval by drawing wells, one at a time."""
    rng, wells, means = np.random.default_rng(7), sorted(values), []
    for _ in range(4000):
        drawn = [value for index in rng.integers(0, len(wells), len(wells)) for value in values[wells[index]]]
        means.append(np.mean(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_means_and_intervals_equal_a_loop_over_wells() -> None:
    cells = _cells(0)
    table = summarise_versions({3: cells, 5: _cells(1, range(2))})
    assert table.select("model_version", "part").rows() == [(3, "test"), (3, "unseen"), (5, "test")]
    for row in table.filter(model_version=3).iter_rows(named=True):
        part_cells = cells.filter(split=row["part"])
        assert (row["n_cells"], row["n_wells"]) == (len(part_cells), part_cells["Metadata_Well"].n_unique())
        for measure in MEASURES:
            values: dict[str, list[float]] = {}
            for cell in part_cells.iter_rows(named=True):
                if (value := _value(cell, measure)) is not None:
                    values.setdefault(cell["Metadata_Well"], []).append(value)
            assert row[measure] == pytest.approx(np.mean([v for well in values.values() for v in well]))
            low, high = _bootstrap(values)
            assert row[f"{measure}_low"] == pytest.approx(low, abs=0.03)
            assert row[f"{measure}_high"] == pytest.approx(high, abs=0.03)
    few = table.filter(model_version=5).row(0, named=True)
    assert few["accuracy"] is not None and few["accuracy_low"] is None
    assert summarise_versions({}).is_empty()


def test_differences_are_over_common_cells_with_equal_masks() -> None:
    champion, other = _cells(0), pl.concat([_cells(1, range(5)), _cells(1, range(5, 8), masks="new")])
    table = differences_from_champion({1: champion, 2: other, 3: _cells(2, masks="new")}, 1)
    assert set(table["model_version"]) == {2}
    champion_rows = {row["Metadata_CellID"]: row for row in champion.iter_rows(named=True)}
    for measure, n_cells, n_wells, difference, low, high in table.drop("model_version").iter_rows():
        values: dict[str, list[float]] = {}
        for row in other.filter(mask_version="m").iter_rows(named=True):
            a, b = _value(row, measure), _value(champion_rows[row["Metadata_CellID"]], measure)
            if a is not None and b is not None:
                values.setdefault(row["Metadata_Well"], []).append(a - b)
        flat = [value for well in values.values() for value in well]
        assert (n_cells, n_wells) == (len(flat), len(values))
        assert difference == pytest.approx(np.mean(flat))
        assert (low, high) == pytest.approx(_bootstrap(values), abs=0.04)
    shuffled = {1: champion.sample(fraction=1, shuffle=True, seed=1), 2: other.reverse()}
    assert differences_from_champion(shuffled, 1)["low"].to_list() == pytest.approx(table["low"].to_list())


def test_cells_without_values_have_no_mean() -> None:
    assert mean_with_interval(_cells(0).with_columns(value=pl.lit(None, pl.Float64))) == (None, None, None)


def test_scores_in_the_lake_take_precedence_over_the_logged_table(tmp_path: Path) -> None:
    from torch import nn

    lake, registry = Lake(tmp_path / "lake"), ModelRegistry(tmp_path / "mlflow")
    config = BundleConfig("efficientnet3d-small", "activation", ["a", "b"], ["DNA"], [1, 8, 8], [1.0, 1.0, 1.0])
    logged = tmp_path / "cells.parquet"
    _cells(0).write_parquet(logged)
    version = registry.register(nn.Linear(1, 1), config, files={CELLS: logged.read_bytes()})
    bare = registry.register(nn.Linear(1, 1), config)
    assert held_out_cells(lake, registry, version).equals(
        _cells(0).select(held_out_cells(lake, registry, bare).columns)
    )
    assert held_out_cells(lake, registry, bare).is_empty()
    schema = lake_table("scores").schema
    scored = _cells(1).with_columns(
        split=pl.when(pl.col("Metadata_Well") == "A00").then(pl.lit("train")).otherwise("split"),
        Metadata_Site=pl.lit(1), crop_version=pl.lit("c"), model_name=pl.lit(version.name), model_version=pl.lit(1),
        model_run=pl.lit(version.run_id),
    )  # fmt: skip
    scored = scored.with_columns(pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in scored)
    scored = scored.select(pl.col(name).cast(kind) for name, kind in schema.items())
    lake.write("scores", scored, plate="P", site=1, model_run=version.run_id)
    found = held_out_cells(lake, registry, version)
    assert set(found["Metadata_CellID"]) == set(scored.filter(pl.col("split") != "train")["Metadata_CellID"])
