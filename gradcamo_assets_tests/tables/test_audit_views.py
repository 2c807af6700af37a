"""The views of audited cells, compared with loops over the rows of ``audit`` and ``scores``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.tables import Lake, publish, qc_table, run_sql
from gradcamo_assets_tests.tables import rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(3)
    lake = rows.filled(home / "lake", plates=1)
    for version in (1, 2):
        table = rows.audited(rng, lake.read("scores", model_run=rows.run_of(version)), version)
        lake.write("audit", table, plate="P1", model_run=rows.run_of(version))
    penalised = rows.model(2).with_columns(swap=pl.lit(0.5), regulariser=pl.lit("gradcamo"), regulariser_weight=2.0)
    lake.append("models", penalised)
    publish(lake, home / "qc.duckdb")
    return home


def test_a_cell_is_trusted_where_the_map_looks_at_it_and_it_survives_the_swap(home: Path) -> None:
    lake = Lake(home / "lake")
    scores = {(r["Metadata_CellID"], r["model_version"]): r for r in lake.read("scores").to_dicts()}
    audit = {(r["Metadata_CellID"], r["model_version"]): r for r in lake.read("audit").to_dicts()}
    seen = run_sql(home / "qc.duckdb", "SELECT * FROM audited_cells").to_dicts()
    assert {(row["Metadata_CellID"], row["model_version"]) for row in seen} == set(audit) and len(seen) == len(audit)
    shares: dict[int, list[bool]] = {1: [], 2: []}
    for row in seen:
        key = row["Metadata_CellID"], row["model_version"]
        looks, survives = scores[key]["looks_at"] == "target", audit[key]["survives_swap"]
        assert row["trusted"] == (None if survives is None and looks else looks and survives)
        margin = audit[key]["swap_margin"]
        assert row["trust"] == (margin if looks else min(margin, 0))
        assert row["logit_drop_swapped_target"] == audit[key]["logit_drop_swapped_target"]
        assert row["trained_for_score"] == {1: None, 2: True}[row["model_version"]], "unknown for version 1"
        if row["trusted"] is not None and row["split"] != "train":
            shares[row["model_version"]].append(row["trusted"])
    for row in qc_table(home / "qc.duckdb", "model").iter_rows(named=True):
        assert row["trusted_fraction"] == pytest.approx(np.mean(shares[row["model_version"]]))
        assert row["regulariser"] == {1: None, 2: "gradcamo"}[row["model_version"]]


def test_audit_by_plate_summarises_a_plate(home: Path) -> None:
    lake, run = Lake(home / "lake"), rows.run_of(2)
    held_out = lake.read("scores", model_run=run).filter(pl.col("split") != "train")
    audit = lake.read("audit", model_run=run).join(held_out, on="Metadata_CellID", how="semi")
    row = run_sql(home / "qc.duckdb", "SELECT * FROM audit_by_plate WHERE model_version = 2").row(0, named=True)
    assert row["n_cells"] == len(audit) < 25 and row["trained_for_score"]
    assert row["survives_swap"] == pytest.approx(audit["survives_swap"].mean())
    for name in ("probability_drop_swapped_surroundings", "logit_drop_target"):
        assert row[name] == pytest.approx(audit[name].median())
