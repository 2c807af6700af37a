"""Keeping the lake quick: small files are merged and old ones deleted, off the hot path."""

import dagster as dg

from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.tables import LAKE_TABLES, published_files

_KEPT_HOURS = 7 * 24
"""So long do files stay that no row needs: whoever opened a QC database before still reads them."""


@dg.op(pool="publication")
def merge_and_vacuum(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Merge small files of every table, then delete those that nobody can need any more."""
    lake = platform.lake
    for table in LAKE_TABLES:
        merged = lake.compact(table)
        deleted = lake.vacuum(table, _KEPT_HOURS, published_files(platform.home.database))
        if merged or deleted:
            context.log.info(f"{table}: {merged} files merged, {deleted} deleted")


@dg.job(description="Merge the lake's small files and delete those that were replaced more than a week ago.")
def tidy_lake() -> None:
    """One op; the lake's writers go on meanwhile."""
    merge_and_vacuum()


nightly_tidying = dg.ScheduleDefinition(
    "nightly_tidying",
    job=tidy_lake,
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 04:30: merges the lake's small files and deletes old ones.",
)
