"""``qc_database``: the scores as biologists ask for them."""

import time

import dagster as dg
import polars as pl

from gradcamo_assets.learning.promotion import record_champion, record_versions
from gradcamo_assets.orchestration.partitions import AUTOMATIC
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.warehouse import publish, qc_table, violations

_GOOD_UNTIL = "good_until"


@dg.asset(
    deps=["gradcamo_scores"],
    group_name="qc",
    kinds={"duckdb"},
    automation_condition=AUTOMATIC,
    pool="publication",
    check_specs=[
        dg.AssetCheckSpec(
            "numbers_hold",
            asset="qc_database",
            description="One score a cell and version, shares add to 1, no score above its ceiling, evidence adds up.",
        )
    ],
)
def qc_database(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """``qc.duckdb``: published from the lake by copy and rename; readers keep what they opened."""
    home, lake, registry, started = platform.home, platform.lake, platform.registry, time.time()
    versions = record_versions(lake, registry)
    record_champion(lake, registry, by="unknown")
    publication = publish(lake, home.database)
    # What others published since the last check has not been checked either.
    since = 0.0 if publication.rebuilt else _good_until(context)
    problems = violations(home.database, lake.plates_written_since(since) if since else None)
    table = qc_table(home.database, by="dose")
    return dg.MaterializeResult(
        metadata={
            "file": dg.MetadataValue.path(str(home.database)),
            "model_versions": versions,
            "files_changed": len(publication.changed),
            "plates_touched": ", ".join(publication.plates) or "none",
            "seconds": publication.seconds,
            "megabytes": home.database.stat().st_size / 1e6,
            **({} if problems else {_GOOD_UNTIL: dg.MetadataValue.timestamp(started)}),
            "qc_by_dose": dg.MetadataValue.md(_markdown(table)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="numbers_hold",
                passed=not problems,
                severity=dg.AssetCheckSeverity.ERROR,
                metadata={"violations": dg.MetadataValue.md("\n".join(f"- {text}" for text in problems) or "none")},
            )
        ],
    )


def _good_until(context: dg.AssetExecutionContext) -> float:
    """When the last check began if it found nothing wrong, in seconds since the epoch; else 0."""
    event = context.instance.get_latest_materialization_event(context.asset_key)
    good = event.asset_materialization.metadata.get(_GOOD_UNTIL) if event and event.asset_materialization else None
    return good.value if isinstance(good, dg.TimestampMetadataValue) else 0.0


def _markdown(table: pl.DataFrame) -> str:
    with pl.Config(tbl_formatting="MARKDOWN", tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True,
                   tbl_cols=-1, tbl_rows=30, float_precision=3, tbl_width_chars=1000):  # fmt: skip
        return str(table)
