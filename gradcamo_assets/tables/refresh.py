"""Bringing the stored summaries up to the scores: made anew for the plates x MLflow runs that changed, and no others.

Like ``database``, it works on an open connection within the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import polars as pl

from gradcamo_assets.tables import database as db
from gradcamo_assets.tables.aggregates import KEYS
from gradcamo_assets.tables.lake import scan_files
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.tables.summaries import (
    AUDITED_SCORES,
    COMPARED,
    FIELD_STATES,
    NEEDED,
    STATES_FROM,
    SUMMARIES,
    WORST_CELLS,
    compare,
    summarise,
)

_ROWS_AT_ONCE = 1_000_000


def refresh(connection: duckdb.DuckDBPyConnection, touched: dict[str, pl.DataFrame]) -> None:
    """Make the summaries anew of what changed.

    Args:
        touched: of which rows changed, by table: the plates x runs, or the plates where a table knows no run.

    Raises:
        StoreError: where a file of the lake cannot be read.
    """
    _label(connection)
    nothing = pl.DataFrame(schema=dict.fromkeys(KEYS, pl.String))
    scored, audited = (touched.get(name, nothing).select(KEYS) for name in ("scores", "audit"))
    plates = pl.concat([scored, touched.get("crops", nothing)], how="diagonal").select("Metadata_Plate").unique()
    files = db.files_of(connection, "scores")
    if len(scored):
        _summarise(connection, files, scored)
    if len(plates):
        _find_crops(connection, plates)
    _compare(connection, files)
    if len(both := pl.concat([scored, audited]).unique()):
        _keep_audited(connection, files, both)
    fields = [touched[name] for name in STATES_FROM if name in touched]
    if fields and len(plates := pl.concat(fields).unique()):
        _keep_fields(connection, plates)


def _summarise(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, scored: pl.DataFrame) -> None:
    for table in SUMMARIES:
        db.delete(connection, f"aggregates.{table.name}", scored)
    for run in ("model_run", "previous_run"):
        db.delete(connection, "aggregates.gains", scored.rename({"model_run": run}))
    for scores in _read(files.join(scored, on=KEYS, how="semi"), NEEDED):
        for name, rows in summarise(scores).items():
            db.insert(connection, f"aggregates.{name}", rows)


def _label(connection: duckdb.DuckDBPyConnection) -> None:
    """Bring the names and versions of runs up to the tables ``models`` and ``promotions``."""
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


def _read(files: pl.DataFrame, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
    """Scores of whole plates: as many of them as are well held at once."""
    by_plate = files.group_by("Metadata_Plate").agg(pl.col("rows").sum()).sort("Metadata_Plate")
    part = (pl.col("rows").cum_sum() - pl.col("rows")) // _ROWS_AT_ONCE
    for found in files.join(by_plate.select("Metadata_Plate", part=part), on="Metadata_Plate").partition_by("part"):
        yield _collect("scores", scan_files(lake_table("scores"), found).select(columns))


def _collect(table: str, rows: pl.LazyFrame) -> pl.DataFrame:
    with db.reading(table):
        return rows.collect()


def _find_crops(connection: duckdb.DuckDBPyConnection, touched: pl.DataFrame) -> None:
    """Where the crops of the worst cells of the plates ``touched`` are now."""
    worst = f"aggregates.{WORST_CELLS.name}"
    cells = connection.sql(f"FROM {worst} SEMI JOIN touched USING (Metadata_Plate)").pl().drop("crop_index")
    files = db.files_of(connection, "crops").join(touched, on="Metadata_Plate", how="semi")
    crop = ["Metadata_Plate", "Metadata_CellID", "mask_version", "crop_version"]
    crops = scan_files(lake_table("crops"), files).select(*crop, "crop_index").join(cells.lazy(), on=crop, how="semi")
    db.delete(connection, worst, touched)
    db.insert(connection, worst, cells.join(_collect("crops", crops), on=crop, how="left"))


def _compare(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame) -> None:
    """The gains of champions over the champions before them that are not stored yet."""
    # Both directions are stored at once.
    pairs = connection.sql(
        "SELECT DISTINCT least(model_run, previous_run) AS model_run, "
        "greatest(model_run, previous_run) AS previous_run FROM aggregates.previous_champions"
    ).pl()
    present = files.select("Metadata_Plate", "model_run").unique()
    before = present.rename({"model_run": "previous_run"})
    both = present.join(pairs, on="model_run").join(before, on=["Metadata_Plate", "previous_run"])
    stored = connection.sql("SELECT Metadata_Plate, model_run, previous_run FROM aggregates.gains").pl()
    missing = both.join(stored, on=both.columns, how="anti")
    of_both = pl.concat(
        [missing.select(KEYS), missing.select("Metadata_Plate", model_run="previous_run")], how="diagonal"
    )
    for scores in _read(files.join(of_both, on=KEYS, how="semi"), COMPARED):
        here = missing.join(scores.select("Metadata_Plate").unique(), on="Metadata_Plate", how="semi")
        db.insert(connection, "aggregates.gains", compare(scores, here))


def _keep_audited(connection: duckdb.DuckDBPyConnection, files: pl.DataFrame, keys: pl.DataFrame) -> None:
    """The scores of audited cells."""
    cell = [*KEYS, "Metadata_CellID"]
    audited = connection.sql(f"SELECT {', '.join(cell)} FROM lake.audit SEMI JOIN keys USING ({', '.join(KEYS)})").pl()
    scores = scan_files(lake_table("scores"), files.join(audited, on=KEYS, how="semi"))
    # The cells by name first: these alone are read whole.
    scores = scores.filter(pl.col("Metadata_CellID").is_in(audited["Metadata_CellID"].implode()))
    found = _collect("scores", scores.join(audited.lazy(), on=cell, how="semi").select(*AUDITED_SCORES.polars))
    db.delete(connection, f"aggregates.{AUDITED_SCORES.name}", keys)
    db.insert(connection, f"aggregates.{AUDITED_SCORES.name}", found)


def _keep_fields(connection: duckdb.DuckDBPyConnection, plates: pl.DataFrame) -> None:
    """What the tables of masks, verdicts and crops say of each field of some plates."""
    field = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    said = []
    for name, columns in STATES_FROM.items():
        files = db.files_of(connection, name).join(plates, on="Metadata_Plate", how="semi")
        said.append(_collect(name, scan_files(lake_table(name), files).select(*field, **columns)))
    db.delete(connection, f"aggregates.{FIELD_STATES.name}", plates)
    # Each column has one value a field, beside the NULLs of other tables.
    states = pl.concat(said, how="diagonal").group_by(field).agg(pl.all().max())
    db.insert(connection, f"aggregates.{FIELD_STATES.name}", states)
