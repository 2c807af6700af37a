"""Update the stored summaries of the plates x MLflow runs whose scores changed.

Like those of ``database``, the functions work on an open connection, within the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import polars as pl

from gradcamo_assets.tables import database as db
from gradcamo_assets.tables.aggregates import KEYS
from gradcamo_assets.tables.delta_table import scan_files
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.tables.summaries import (
    AUDITED_SCORES,
    COMPARISON_COLUMNS,
    FIELD_STATE_SOURCES,
    FIELD_STATES,
    SUMMARIES,
    SUMMARY_COLUMNS,
    WORST_CELLS,
    compare_runs,
    summarise,
)

_ROWS_PER_BATCH = 1_000_000


def refresh_summaries(connection: duckdb.DuckDBPyConnection, touched: dict[str, pl.DataFrame]) -> None:
    """Update the summaries after a change of the lake.

    Args:
        touched: keys of the changed rows, by table: plate and run, or plate alone if the table has no ``model_run``.

    Raises:
        StoreError: if a lake file cannot be read.
    """
    _refresh_labels(connection)
    no_keys = pl.DataFrame(schema=dict.fromkeys(KEYS, pl.String))
    scored, audited = (touched.get(name, no_keys).select(KEYS) for name in ("scores", "audit"))
    plates = pl.concat([scored, touched.get("crops", no_keys)], how="diagonal").select("Metadata_Plate").unique()
    files = db.view_files(connection, "scores")
    if len(scored):
        _refresh_summary_tables(connection, files, scored)
    if len(plates):
        _refresh_crop_indexes(connection, plates)
    _add_missing_gains(connection, files)
    if len(both := pl.concat([scored, audited]).unique()):
        _refresh_audited_scores(connection, files, both)
    fields = [touched[name] for name in FIELD_STATE_SOURCES if name in touched]
    if fields and len(plates := pl.concat(fields).unique()):
        _refresh_field_states(connection, plates)


def _refresh_summary_tables(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, scored: pl.DataFrame) -> None:
    for table in SUMMARIES:
        db.delete_rows(connection, f"aggregates.{table.name}", scored)
    for run in ("model_run", "previous_run"):
        db.delete_rows(connection, "aggregates.gains", scored.rename({"model_run": run}))
    for scores in _read_scores_in_batches(files.join(scored, on=KEYS, how="semi"), SUMMARY_COLUMNS):
        for name, rows in summarise(scores).items():
            db.insert_rows(connection, f"aggregates.{name}", rows)


def _refresh_labels(connection: duckdb.DuckDBPyConnection) -> None:
    """Update the names, versions and champions of runs from ``models`` and ``promotions``."""
    connection.execute("DELETE FROM aggregates.labels")
    connection.execute(
        """
        INSERT INTO aggregates.labels BY NAME
        SELECT DISTINCT ON (model_run) models.model_run, models.model_name, models.model_version,
            champions.model_run IS NOT NULL AS is_champion
        FROM lake.models LEFT JOIN champions USING (model_name, model_version, model_run)
        ORDER BY models.model_run, is_champion DESC, models.model_version DESC, models.model_name
        """
    )


def _read_scores_in_batches(files: pl.DataFrame, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
    """Yield the scores of whole plates, about ``_ROWS_PER_BATCH`` rows at a time."""
    by_plate = files.group_by("Metadata_Plate").agg(pl.col("rows").sum()).sort("Metadata_Plate")
    batch = (pl.col("rows").cum_sum() - pl.col("rows")) // _ROWS_PER_BATCH
    batches = files.join(by_plate.select("Metadata_Plate", batch=batch), on="Metadata_Plate").partition_by("batch")
    for batch_files in batches:
        yield _collect("scores", scan_files(lake_table("scores"), batch_files).select(columns))


def _collect(table: str, rows: pl.LazyFrame) -> pl.DataFrame:
    with db.name_unreadable_table(table):
        return rows.collect()


def _refresh_crop_indexes(connection: duckdb.DuckDBPyConnection, touched: pl.DataFrame) -> None:
    """Update the crop indexes of the worst cells of the plates ``touched``."""
    worst = f"aggregates.{WORST_CELLS.name}"
    cells = connection.sql(f"FROM {worst} SEMI JOIN touched USING (Metadata_Plate)").pl().drop("crop_index")
    files = db.view_files(connection, "crops").join(touched, on="Metadata_Plate", how="semi")
    crop = ["Metadata_Plate", "Metadata_CellID", "mask_version", "crop_version"]
    crops = scan_files(lake_table("crops"), files).select(*crop, "crop_index").join(cells.lazy(), on=crop, how="semi")
    db.delete_rows(connection, worst, touched)
    db.insert_rows(connection, worst, cells.join(_collect("crops", crops), on=crop, how="left"))


def _add_missing_gains(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame) -> None:
    """Compute the gains of champions over their predecessors that are not stored yet."""
    # One direction of each pair is enough, since compare_runs returns both.
    pairs = connection.sql(
        "SELECT DISTINCT least(model_run, previous_run) AS model_run, "
        "greatest(model_run, previous_run) AS previous_run FROM aggregates.previous_champions"
    ).pl()
    present = files.select("Metadata_Plate", "model_run").unique()
    before = present.rename({"model_run": "previous_run"})
    both = present.join(pairs, on="model_run").join(before, on=["Metadata_Plate", "previous_run"])
    stored = connection.sql("SELECT Metadata_Plate, model_run, previous_run FROM aggregates.gains").pl()
    missing = both.join(stored, on=both.columns, how="anti")
    runs = pl.concat([missing.select(KEYS), missing.select("Metadata_Plate", model_run="previous_run")], how="diagonal")
    for scores in _read_scores_in_batches(files.join(runs, on=KEYS, how="semi"), COMPARISON_COLUMNS):
        batch_pairs = missing.join(scores.select("Metadata_Plate").unique(), on="Metadata_Plate", how="semi")
        db.insert_rows(connection, "aggregates.gains", compare_runs(scores, batch_pairs))


def _refresh_audited_scores(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, keys: pl.DataFrame) -> None:
    """Update the stored scores of audited cells."""
    cell = [*KEYS, "Metadata_CellID"]
    audited = connection.sql(f"SELECT {', '.join(cell)} FROM lake.audit SEMI JOIN keys USING ({', '.join(KEYS)})").pl()
    scores = scan_files(lake_table("scores"), files.join(audited, on=KEYS, how="semi"))
    # Filter by cell first, so that the other columns are read for these cells only.
    scores = scores.filter(pl.col("Metadata_CellID").is_in(audited["Metadata_CellID"].implode()))
    audited_scores = scores.join(audited.lazy(), on=cell, how="semi").select(*AUDITED_SCORES.schema)
    rows = _collect("scores", audited_scores)
    db.delete_rows(connection, f"aggregates.{AUDITED_SCORES.name}", keys)
    db.insert_rows(connection, f"aggregates.{AUDITED_SCORES.name}", rows)


def _refresh_field_states(connection: duckdb.DuckDBPyConnection, plates: pl.DataFrame) -> None:
    """Update the states of the fields of these plates from the tables of masks, verdicts and crops."""
    field = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    parts = []
    for name, columns in FIELD_STATE_SOURCES.items():
        files = db.view_files(connection, name).join(plates, on="Metadata_Plate", how="semi")
        parts.append(_collect(name, scan_files(lake_table(name), files).select(*field, **columns)))
    db.delete_rows(connection, f"aggregates.{FIELD_STATES.name}", plates)
    # Each column comes from one table, so that a field has one value besides the NULLs of other tables.
    states = pl.concat(parts, how="diagonal").group_by(field).agg(pl.all().max())
    db.insert_rows(connection, f"aggregates.{FIELD_STATES.name}", states)
