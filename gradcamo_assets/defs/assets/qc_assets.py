"""Asset ``qc_database``: the published QC database."""

import dagster as dg
import polars as pl

from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.storage import file_sizes
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.tables import find_violations, mark_checked, publish, qc_table
from gradcamo_assets.training.promotion import record_champion, record_versions


@dg.asset(
    deps=["gradcamo_scores"],
    group_name="qc",
    kinds={"duckdb"},
    pool="publication",
    check_specs=[
        dg.AssetCheckSpec(
            "numbers_hold",
            asset="qc_database",
            description="One score per cell and version, shares add up to 1, scores below ceiling, evidence adds up.",
        )
    ],
)
@explain_storage_errors
def qc_database(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """``qc.duckdb``: views of the lake, and summaries. ``publication_sensor`` requests it when the lake has changed."""
    home, lake, registry = platform.home, platform.lake, platform.registry
    versions = record_versions(lake, registry)
    record_champion(lake, registry, by="unknown")
    publication = publish(lake, home.database)
    # Include plates that `gradcamo publish` published without checks or reports, and those with earlier violations.
    problems = find_violations(home.database, None if publication.rebuilt else publication.unchecked)
    table = qc_table(home.database, by="dose")
    # Last: the plates of a run that ended before this are checked and reported by the next one.
    mark_checked(home.database, publication, passed=not problems)
    return dg.MaterializeResult(
        metadata={
            "model_versions": versions,
            "tables_changed": ", ".join(publication.changed) or "none",
            "plates_touched": dg.MetadataValue.json(list(publication.unchecked)),
            "seconds": publication.seconds,
            "megabytes": sum(file_sizes(home.database)) / 1e6,
            "qc_by_dose": dg.MetadataValue.md(markdown_table(table)),
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


def markdown_table(table: pl.DataFrame) -> str:
    """Format at most 30 rows as a markdown table."""
    with pl.Config(tbl_formatting="MARKDOWN", tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True,
                   tbl_cols=-1, tbl_rows=30, float_precision=3, tbl_width_chars=1000):  # fmt: skip
        return str(table)
