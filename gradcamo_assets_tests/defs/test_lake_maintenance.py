"""Lake maintenance merges small files and deletes old ones without changing any rows."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from gradcamo_assets.defs.automation import lake_maintenance
from gradcamo_assets.defs.automation.inbox_automation import inbox_sensor
from gradcamo_assets.defs.automation.jobs_and_sensors import (
    champion_model_sensor,
    publication_sensor,
    report_sensor,
)
from gradcamo_assets.tables import LAKE_TABLES, run_sql
from gradcamo_assets_tests.defs.conftest import Bench
from gradcamo_assets_tests.defs.sensor_ticks import requested, tick

VIEWS = ("cells", "fields", "scores", "embeddings", "profiles", "umap", "current_scores", "model_comparison")


def contents(bench: Bench) -> dict[str, list[tuple]]:
    """All rows of the lake, read with polars' Delta reader and sorted."""
    tables = {name: pl.read_delta(str(bench.home.lake / name)) for name in LAKE_TABLES if version(bench, name) >= 0}
    return {name: sorted(rows.rows(), key=repr) for name, rows in tables.items()}


def version(bench: Bench, table: str) -> int:
    return bench.platform.lake.delta_version(table)


def answers(bench: Bench) -> dict[str, list[tuple]]:
    """The rows of all views."""
    return {view: run_sql(bench.home.database, f"FROM {view} ORDER BY ALL").rows() for view in VIEWS}


def files(bench: Bench) -> set[Path]:
    return set(bench.home.lake.rglob("*.parquet"))


@pytest.mark.slow
def test_maintenance_changes_no_rows(scored_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = scored_bench.copy(tmp_path / "home")
    assert bench.materialize("qc_database").success
    cursor = tick(bench, report_sensor).cursor
    rows, shown, before = contents(bench), answers(bench), files(bench)
    assert len(bench.platform.lake.snapshot("cells").files) == 2, "one per site"

    assert bench.run("tidy_lake").success
    assert before <= files(bench), "readers may still need the old files"
    assert len(bench.platform.lake.snapshot("cells").files) == 1
    assert contents(bench) == rows and answers(bench) == shown
    for sensor in (inbox_sensor, champion_model_sensor):
        assert requested(tick(bench, sensor)) == [], "no version has changed"

    monkeypatch.setattr(lake_maintenance, "_RETENTION_HOURS", 0)
    assert bench.run("tidy_lake").success
    assert answers(bench) == shown, "files that the published database reads remain"
    assert requested(tick(bench, publication_sensor)) == [("refresh_qc", None)]
    assert bench.materialize("qc_database").success
    assert (tick(bench, report_sensor, cursor).run_requests or []) == [], "no plate has changed"
    assert bench.run("tidy_lake").success
    gone = before - files(bench)
    assert gone and not gone & {Path(path) for path in bench.platform.lake.snapshot("cells").files["path"]}
    assert contents(bench) == rows and answers(bench) == shown
