"""Maintain the lake: merge small files and delete old ones every night."""

import dagster as dg

from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.tables import LAKE_TABLES, published_files

_RETENTION_HOURS = 7 * 24
"""Unused files are kept for this time, since readers may still have an earlier QC database open."""


@dg.op(pool="publication")
def merge_and_vacuum(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Merge the small files of every table, then delete files that no reader can need."""
    lake = platform.lake
    for table in LAKE_TABLES:
        merged = lake.compact(table)
        deleted = lake.vacuum(table, _RETENTION_HOURS, published_files(platform.home.database))
        if merged or deleted:
            context.log.info(f"{table}: {merged} files merged, {deleted} deleted")


@dg.job(description="Merge small files of the lake and delete files that were replaced more than a week ago.")
def tidy_lake() -> None:
    """Run the single op. Writers of the lake can continue meanwhile."""
    merge_and_vacuum()


nightly_tidying = dg.ScheduleDefinition(
    "nightly_tidying",
    job=tidy_lake,
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Merges small files of the lake and deletes old ones every night at 04:30.",
)
