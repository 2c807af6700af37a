"""The check of the QC database covers changed plates and earlier violations."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl

from gradcamo_assets.defs.assets.qc_assets import qc_database
from gradcamo_assets.defs.run_jobs import QUIET
from gradcamo_assets.tables import publish
from gradcamo_assets_tests.defs.conftest import make_bench
from gradcamo_assets_tests.tables import rows


def test_violations_are_reported_until_they_are_corrected(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    lake = bench.platform.lake
    rows.filled(lake.root, versions=1)
    keys = {"plate": "P1", "site": 1, "model_run": rows.run_of(1)}
    good = lake.read("scores", **keys)

    def numbers_hold() -> bool:
        result = dg.materialize(
            [qc_database], instance=bench.instance, resources={"platform": bench.platform}, run_config=QUIET
        )
        return bench.checks(result)["numbers_hold"].passed

    def touched() -> list[str]:
        """The plates whose reports the last publication requests."""
        event = bench.instance.get_latest_materialization_event(dg.AssetKey("qc_database"))
        return event.asset_materialization.metadata["plates_touched"].value  # type: ignore[union-attr, return-value]

    assert numbers_hold() and touched() == ["P1", "P2"]
    assert numbers_hold() and touched() == []
    lake.write("scores", good.with_columns(gradcamo_max=pl.col("gradcamo") - 0.1), **keys)
    publish(lake, bench.home.database)  # Like the command, without a check.
    assert not numbers_hold() and touched() == ["P1"]
    assert not numbers_hold()
    lake.write("scores", good, **keys)
    assert numbers_hold() and touched() == ["P1"]
    assert numbers_hold() and touched() == []
