"""Bringing the stored summaries up to the scores: made anew for the plates x MLflow runs that changed, and no others.

Like ``database``, it works on an open connection within the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import polars as pl

from gradcamo_assets.warehouse import database as db
from gradcamo_assets.warehouse.aggregates import aggregate
from gradcamo_assets.warehouse.schema import lake_table
from gradcamo_assets.warehouse.schema_scores import QC_GROUPS, SCORES
from gradcamo_assets.warehouse.summaries import (
    AUDITED_SCORES,
    GAINS,
    LABELS,
    NEEDED,
    QC_SUMMARIES,
    SUMMARIES,
    WORST_CELLS,
)

_KEYS = ["Metadata_Plate", "model_run"]
_ROWS_AT_ONCE = 1_000_000


def refresh(connection: duckdb.DuckDBPyConnection, touched: dict[str, pl.DataFrame]) -> None:
    """Make the summaries anew of what changed.

    Args:
        touched: by table: of ``scores`` and ``audit`` the plates x runs, of ``crops`` the plates of which rows changed.

    Raises:
        StoreError: where a file of scores or crops cannot be read.
    """
    _label(connection)
    nothing = pl.DataFrame(schema=dict.fromkeys(_KEYS, pl.String))
    scored, audited = (touched.get(name, nothing).select(_KEYS) for name in ("scores", "audit"))
    plates = pl.concat([scored, touched.get("crops", nothing)], how="diagonal").select("Metadata_Plate").unique()
    files = db.files_of(connection, "scores")
    if len(scored):
        _summarise(connection, files, scored)
    if len(plates):
        _find_crops(connection, plates)
    _compare(connection, files)
    if len(both := pl.concat([scored, audited]).unique()):
        _keep_audited(connection, files, both)
    connection.execute("DROP TABLE IF EXISTS batch")


def _summarise(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, scored: pl.DataFrame) -> None:
    for table in (*(summary.table for summary in SUMMARIES), *QC_SUMMARIES, GAINS.table):
        db.delete(connection, f"aggregates.{table.name}", scored)
    db.delete(connection, f"aggregates.{GAINS.table.name}", scored.rename({"model_run": "previous_run"}))
    for batch in _batches(files.join(scored, on=_KEYS, how="semi")):
        _load(connection, batch, NEEDED)
        for summary in SUMMARIES:
            connection.execute(f"INSERT INTO aggregates.{summary.table.name} BY NAME {summary.sql}")
        scores = connection.table("batch").pl()
        for by in QC_GROUPS:
            db.insert(connection, f"aggregates.qc_by_{by}", aggregate(scores, by))


def _label(connection: duckdb.DuckDBPyConnection) -> None:
    """Bring the names and versions of runs up to the tables ``models`` and ``promotions``."""
    connection.execute(f"DELETE FROM aggregates.{LABELS.name}")
    connection.execute(
        f"""
        INSERT INTO aggregates.{LABELS.name} BY NAME
        SELECT DISTINCT ON (model_run) models.model_run, models.model_name, models.model_version,
            champions.model_run IS NOT NULL AS is_champion
        FROM lake.models LEFT JOIN champions USING (model_name, model_version, model_run)
        ORDER BY models.model_run, is_champion DESC, models.model_version DESC, models.model_name
        """
    )


def _batches(files: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Files of whole plates, as many as are well read at once."""
    by_plate = files.group_by("Metadata_Plate").agg(pl.col("rows").sum()).sort("Metadata_Plate")
    number = (pl.col("rows").cum_sum() - pl.col("rows")) // _ROWS_AT_ONCE
    numbered = files.join(by_plate.select("Metadata_Plate", number=number), on="Metadata_Plate").sort("number", "path")
    yield from numbered.partition_by("number", maintain_order=True)


def _load(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, columns: Iterable[str]) -> None:
    with db.reading(SCORES):
        rows = db.rows_of(connection, SCORES, files["path"])
        connection.execute(f"CREATE OR REPLACE TEMP TABLE batch AS SELECT {', '.join(columns)} FROM ({rows})")


def _find_crops(connection: duckdb.DuckDBPyConnection, plates: pl.DataFrame) -> None:
    """Where the crops of the worst cells are now."""
    crops, worst = lake_table("crops"), f"aggregates.{WORST_CELLS.table.name}"
    files = db.files_of(connection, "crops").join(plates, on="Metadata_Plate", how="semi")
    names = ("Metadata_Plate", "Metadata_CellID", "mask_version", "crop_version")
    with db.reading(crops):
        connection.execute(
            f"CREATE TEMP TABLE found AS SELECT {', '.join(names)}, crop_index "
            f"FROM ({db.rows_of(connection, crops, files['path'])}) SEMI JOIN {worst} USING ({', '.join(names)})"
        )
    same = " AND ".join(f"worst.{name} = found.{name}" for name in names)
    connection.execute(
        f"UPDATE {worst} SET crop_index = NULL FROM plates WHERE worst_cells.Metadata_Plate = plates.Metadata_Plate"
    )
    connection.execute(f"UPDATE {worst} AS worst SET crop_index = found.crop_index FROM found WHERE {same}")
    connection.execute("DROP TABLE found")


def _compare(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame) -> None:
    """The gains of champions over the champions before them that are not stored yet."""
    gains = f"aggregates.{GAINS.table.name}"
    # Both directions are stored at once.
    pairs = connection.sql(
        "SELECT DISTINCT least(model_run, previous_run) AS model_run, "
        "greatest(model_run, previous_run) AS previous_run FROM aggregates.previous_champions"
    ).pl()
    present = files.select(_KEYS).unique()
    before = present.rename({"model_run": "previous_run"})
    both = present.join(pairs, on="model_run").join(before, on=["Metadata_Plate", "previous_run"])
    stored = connection.sql(f"SELECT Metadata_Plate, model_run, previous_run FROM {gains}").pl()
    missing = both.join(stored, on=both.columns, how="anti")
    of_both = pl.concat([missing.select(_KEYS), missing.select("Metadata_Plate", model_run="previous_run")])
    for batch in _batches(files.join(of_both, on=_KEYS, how="semi")):
        _load(connection, batch, NEEDED)
        connection.register("wanted", missing.join(batch, on="Metadata_Plate", how="semi"))
        connection.execute(f"INSERT INTO {gains} BY NAME {GAINS.sql}")
        connection.unregister("wanted")


def _keep_audited(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, keys: pl.DataFrame) -> None:
    """The scores of audited cells."""
    table = AUDITED_SCORES.table
    db.delete(connection, f"aggregates.{table.name}", keys)
    audited = connection.sql("SELECT DISTINCT Metadata_Plate, model_run FROM lake.audit").pl()
    wanted = keys.join(audited, on=_KEYS, how="semi")
    for batch in _batches(files.join(wanted, on=_KEYS, how="semi")):
        _load(connection, batch, table.polars)
        connection.execute(f"INSERT INTO aggregates.{table.name} BY NAME {AUDITED_SCORES.sql}")
