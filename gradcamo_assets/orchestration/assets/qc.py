"""``qc_database`` and ``qc_report``: the scores as biologists meet them."""

import time

import dagster as dg
import polars as pl

from gradcamo_assets.common.files import replaced_file
from gradcamo_assets.figures import (
    on_target_intervals,
    plate_heat_map,
    qc_report_html,
    score_distributions,
)
from gradcamo_assets.learning.promotion import record_champion, record_versions
from gradcamo_assets.orchestration.fields import number
from gradcamo_assets.orchestration.partitions import AUTOMATIC, PLATES
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.warehouse import publish, qc_table, run_sql, violations

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


@dg.asset(
    partitions_def=PLATES,
    deps=[qc_database],
    group_name="qc",
    kinds={"html"},
    automation_condition=dg.AutomationCondition.eager(),
)
def qc_report(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """One self-contained page a plate: verdict, pictures, tables."""
    plate = context.partition_key
    home = platform.home
    here = {"plate": plate}
    scores = run_sql(
        home.database,
        "SELECT * FROM current_scores WHERE Metadata_Plate = $plate AND split <> 'train'",
        here,
    )
    wells = run_sql(
        home.database,
        "SELECT q.* FROM qc_by_well q JOIN champions USING (model_name, model_version) WHERE Metadata_Plate = $plate",
        here,
    )
    tables = {by: qc_table(home.database, by=by) for by in ("dose", "site", "dose,site")}
    mine = {by: table.filter(Metadata_Plate=plate).drop("Metadata_Plate", "model_name") for by, table in tables.items()}
    version = scores["model_version"][0] if len(scores) else None
    page = qc_report_html(
        plate,
        f"version {version}" if version is not None else "no champion has scored this plate",
        _verdict(scores),
        [("By dose", mine["dose"]), ("By site", mine["site"]), ("By dose and site", mine["dose,site"])],
        [
            (
                "Share of cells on target, by dose",
                "Share of cells with a score above 0.5 by dose, with bootstrap intervals over wells",
                on_target_intervals(mine["dose"]),
            ),
            (
                "Score by dose and site",
                "Distribution of the Grad-CAMO score by dose and by site",
                score_distributions(scores),
            ),
            (
                "Adjusted score by dose and site",
                "Distribution of the adjusted score: 0 is chance, 1 the best the map allows",
                score_distributions(scores, "gradcamo_adjusted", "adjusted Grad-CAMO", threshold=None),
            ),
            (
                "On target by well",
                "Plate heat map of the share of cells on target",
                plate_heat_map(wells, "on_target_fraction", "share of cells on target"),
            ),
        ],
    )
    target = home.reports / f"{plate}.html"
    with replaced_file(target) as path:
        path.write_text(page, encoding="utf-8")
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.url(target.as_uri()),
            "verdict": _verdict(scores),
            "cells": len(scores),
        }
    )


def _verdict(scores: pl.DataFrame) -> str:
    """Where the model looks, in numbers."""
    looks = scores["looks_at"].drop_nulls()
    if not len(looks):
        return "The champion model has not scored held-out cells of this plate."
    shares = {where: number((looks == where).mean()) for where in ("target", "neighbour", "background", "none")}
    adjusted = number(scores["gradcamo_adjusted"].median())
    return (
        f"Of {len(looks)} held-out profiles {shares['target']:.0%} look at their own cell, "
        f"{shares['neighbour']:.0%} at neighbouring cells, {shares['background']:.0%} at the background and "
        f"{shares['none']:.0%} nowhere in particular. "
        f"The median adjusted score is {adjusted:.2f}: 0 is chance, 1 the best the maps allow."
    )


def _markdown(table: pl.DataFrame) -> str:
    with pl.Config(tbl_formatting="MARKDOWN", tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True,
                   tbl_cols=-1, tbl_rows=30, float_precision=3, tbl_width_chars=1000):  # fmt: skip
        return str(table)
