"""Asset ``qc_report``: an HTML report of the champion's scores of one plate."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl

from gradcamo_assets.defs.assets.qc_assets import qc_database
from gradcamo_assets.defs.each_field import as_number
from gradcamo_assets.defs.partitions import AFTER_FAILURE, PLATES
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.report_pictures import cell_pictures, score_pictures
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.names import check_name
from gradcamo_assets.report import (
    Listing,
    plate_heat_map,
    qc_report_html,
    score_distributions,
    verdict,
)
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.tables import run_sql

_KEYS = ("model_name", "model_version", "model_run", "Metadata_Plate")
_TABLES = {
    "trusted_doses": "Which doses can be trusted",
    "wells_to_drop": "Which wells to drop",
    "site_effect": "Whether the site matters",
    "cells_to_look_at": "Which cells to look at",
    "audit_by_plate": "Whether the maps can be trusted",
    "model_gain": "Whether the new model is better",
    "plate_drift": "Whether the plate is like earlier ones",
    "qc_by_dose_site": "Scores by dose and site",
    "qc_by_well": "Scores by well",
}
"""The views that a report lists, with their titles."""
_LEFT_OUT = """SELECT part, Metadata_Well, qc_flag, count(*) AS n FROM (
    SELECT 'cell' AS part, Metadata_Well, qc_flag FROM cells WHERE Metadata_Plate = $plate
    UNION ALL
    SELECT 'field', Metadata_Well, qc_flag FROM fields WHERE Metadata_Plate = $plate
) GROUP BY ALL ORDER BY ALL"""
"""Numbers of cells and fields of a plate by well and reason for leaving them out; NULL: kept."""
_EXCLUDED_COLUMNS = ("mean_gradcamo", "q25_gradcamo", "q75_gradcamo", "looks_at_none")
"""Columns left out of the report, to fit tables on a page."""


@dg.asset(
    partitions_def=PLATES,
    deps=[qc_database, "audit", "umap", "channel_correlation"],
    group_name="qc",
    kinds={"html"},
    automation_condition=AFTER_FAILURE,
)
@explain_storage_errors
def qc_report(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """One self-contained HTML page per plate and model version: verdict, pictures and tables."""
    plate, home = context.partition_key, platform.home
    ask = _view_reader(home.database, plate, platform.model_name)
    models = run_sql(
        home.database, "SELECT models.* FROM models JOIN champions USING (model_run) "
        "WHERE models.model_name = $name", {"name": platform.model_name},
    )  # fmt: skip
    scores = ask("current_scores", "AND split <> 'train'")
    tables = {name: ask(name).drop(_EXCLUDED_COLUMNS, strict=False) for name in _TABLES}
    model = models.row(0, named=True) if len(models) else None
    parameters = {"plate": plate}
    left_out = run_sql(home.database, _LEFT_OUT, parameters)
    plate_verdict = verdict(scores, {**tables, "left_out": left_out}, model)
    if model is None or scores.is_empty():
        return dg.MaterializeResult(metadata={"verdict": plate_verdict.headline, "cells": 0})
    version = f"{model['model_name']} version {model['model_version']}"
    trained_wells = {well.rpartition("/")[2] for well in model["train_wells"] or [] if well.startswith(f"{plate}/")}
    plate_map = run_sql(home.database, "SELECT * FROM wells WHERE Metadata_Plate = $plate", parameters)
    stains = run_sql(home.database, "SELECT * FROM channel_correlation WHERE Metadata_Plate = $plate", parameters)
    kept = left_out.filter(pl.col("part") == "cell", pl.col("qc_flag").is_null())
    wells = _wells_table(plate_map, tables, trained_wells, set(kept["Metadata_Well"]))
    pictures = score_pictures(scores, tables["trusted_doses"], ask("umap"), stains)
    try:
        pictures = [*cell_pictures(platform, plate, model["model_run"], scores), *pictures]
    except GradcamoError as error:
        context.log.warning(f"The report has no pictures of cells: {error}")
    page = qc_report_html(
        plate, version, plate_verdict, pictures, _commented_tables(home.database, tables), wells,
        made=f"scored {scores.sort('scored_at')['scored_at'][-1]:%Y-%m-%d}",
    )  # fmt: skip
    target = home.reports / plate / f"{check_name(model['model_name'], 'model name')}-v{model['model_version']}.html"
    write_bytes(target, page.encode())
    heat_map = plate_heat_map(wells, "on_target_fraction", "share of cells on target")
    distributions = score_distributions(scores)
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.path(target.relative_to(home.root)),
            "verdict": f"{plate_verdict.headline}. {plate_verdict.shares}",
            "model_version": model["model_version"],
            "cells": len(scores),
            "on_target_share": as_number(scores["on_target"].mean()),
            "wells_to_drop": len(tables["wells_to_drop"]),
            "megabytes": len(page) / 1e6,
            **show_picture(context, home, "plate", heat_map, "On-target share by well"),
            **show_picture(context, home, "distributions", distributions, "Grad-CAMO by treatment and by site"),
        }
    )


def _view_reader(database: Path, plate: str, model_name: str) -> Callable[..., pl.DataFrame]:
    """Return a function that reads the rows of a view for this plate and the champion."""

    def ask(view: str, condition: str = "") -> pl.DataFrame:
        sql = f"""SELECT t.* EXCLUDE ({", ".join(_KEYS)}) FROM {view} t JOIN champions USING (model_run)
            WHERE t.model_name = $name AND Metadata_Plate = $plate {condition} ORDER BY ALL"""
        return run_sql(database, sql, {"plate": plate, "name": model_name})

    return ask


def _wells_table(
    plate_map: pl.DataFrame, tables: dict[str, pl.DataFrame], trained: set[str], filled: set[str]
) -> pl.DataFrame:
    """The wells of the plate map, with the fraction on target of scored wells and the reason of wells to drop.

    Args:
        trained: wells that the model was trained on.
        filled: wells with kept cells.
    """
    judged = tables["qc_by_well"].select(
        "Metadata_Well", "on_target_fraction", n_cells=pl.col("n_cells") - pl.col("null_cells")
    )
    wells = plate_map.join(judged, on="Metadata_Well", how="full", coalesce=True)
    wells = wells.join(tables["wells_to_drop"].select("Metadata_Well", "reason"), on="Metadata_Well", how="left")
    well = pl.col("Metadata_Well")
    return wells.with_columns(trained=well.is_in(trained), has_cells=well.is_in(filled))


def _commented_tables(database: Path, tables: dict[str, pl.DataFrame]) -> list[Listing]:
    """The tables with their comments in the database."""
    rows = run_sql(
        database, "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal UNION ALL "
        "SELECT view_name, '', comment FROM duckdb_views() WHERE NOT internal UNION ALL "
        "SELECT table_name, '', comment FROM duckdb_tables()",
    )  # fmt: skip
    comments = {(table, column): comment or "" for table, column, comment in rows.iter_rows()}
    return [
        Listing(
            title, comments[name, ""], tables[name], {column: comments[name, column] for column in tables[name].columns}
        )
        for name, title in _TABLES.items()
        if len(tables[name])
    ]
