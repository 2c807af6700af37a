"""Publishing the QC database: copy, change what changed in the lake, rename over. Never edited in place.

Readers never block a publication and a publication never blocks readers: they keep the file that they opened. A crash
at any moment leaves the last good file. What changed is found by comparing the revisions of the lake's tables with the
ones that the database was published from, so no caller can forget a table.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from filelock import FileLock, Timeout

from gradcamo_assets.errors import StoreError
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import read_json, remove, write_json
from gradcamo_assets.tables import database as db
from gradcamo_assets.tables.lake import Lake
from gradcamo_assets.tables.queries import run_sql
from gradcamo_assets.tables.refresh import refresh
from gradcamo_assets.tables.schema import COPIED_TABLES, INDEX_TABLES, VIEWED_TABLES, lake_table

_WAIT_SECONDS = 1800.0
_HEADER_BYTES = 3 * 4096

# What is to be scored is read first: a stage writes it last, so that the rows are at least as new.
_PUBLISHED = (*INDEX_TABLES, *COPIED_TABLES, *VIEWED_TABLES)
_IN_REPORTS = ("scores", "audit", "umap", "profiles", "channel_correlation")


@dataclass(frozen=True)
class Publication:
    """What one publication did. Nothing changed and not rebuilt: the old file stays where it is.

    Attributes:
        changed: the tables of the lake with another revision than the file before was published from.
        plates: those of which a champion's rows, or what a report tells beside them, changed; sorted.
        unchecked: those plates, and those of earlier publications that nobody has said to be ``checked``.
        rebuilt: whether the database was made anew.
        seconds: how long it took.
    """

    changed: tuple[str, ...]
    plates: tuple[str, ...]
    unchecked: tuple[str, ...]
    rebuilt: bool
    seconds: float


def publish(lake: Lake, database: Path) -> Publication:
    """Bring the QC database up to the lake.

    Args:
        lake: the source of truth.
        database: the file to publish; made where it is missing, made anew from the lake where it is damaged, of another
            schema, of a lake in another place, or was written to by anybody else.

    Raises:
        StoreError: where another publisher does not finish within half an hour, or a lake file cannot be read.
    """
    started, database = time.perf_counter(), database.absolute()
    work = database.with_name(f".{database.name}.next.tmp")
    try:
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=_WAIT_SECONDS):
            try:
                published = _published(lake, database)
                if published is not None:
                    with suppress(duckdb.Error):  # It is damaged.
                        return _publish(lake, database, work, published, started)
                return _publish(lake, database, work, None, started)
            finally:
                _remove(work)
    except Timeout as error:
        raise StoreError(
            "another publisher has not finished", "End the run that hangs, then publish again.", path=database
        ) from error


def needs_publication(lake: Lake, database: Path) -> bool:
    """Whether ``publish`` would change anything. No database and no data file is opened."""
    published = _published(lake, database.absolute())
    return published is None or any(lake.revision(name) != published.get(name) for name in _PUBLISHED)


def published_for(lake: Lake, database: Path) -> bool:
    """Whether the database reads this very lake: not after its home was moved, or this release knows other columns."""
    return _published(lake, database.absolute()) is not None


def published_files(database: Path) -> set[str]:
    """The files of the lake that the views of the database read, absolute paths; none where there is no database.

    Raises:
        StoreError: where the database cannot be opened.
    """
    return set(run_sql(database, "SELECT path FROM publication.files")["path"]) if database.exists() else set()


def checked(database: Path, publication: Publication) -> None:
    """Let the plates of a publication count as checked, unless another one has come meanwhile."""
    with FileLock(database.with_name(f".{database.name}.lock"), timeout=_WAIT_SECONDS):
        if (notes := _notes(database)).get("unchecked") == list(publication.unchecked):
            write_json(_notes_of(database), {_fingerprint(database): {**notes, "unchecked": []}})


def _publish(lake: Lake, database: Path, work: Path, published: dict[str, str] | None, started: float) -> Publication:
    before = published or {}
    changed = tuple(name for name in _PUBLISHED if lake.revision(name) != before.get(name))
    plates: tuple[str, ...] = ()
    unchecked = _notes(database).get("unchecked", []) if published else []
    if changed:
        with tempfile.TemporaryDirectory() as folder:
            # DuckDB can read, but not write below a folder with a question mark in its name.
            filled = Path(folder, "qc.duckdb") if "?" in str(work) else work
            _remove(filled)
            if published is not None:
                shutil.copyfile(database, filled)
            revisions, plates = _fill(filled, lake, before, changed)
            if filled != work:
                shutil.copyfile(filled, work)
        work.chmod(0o444)
        unchecked = sorted({*unchecked, *plates})
        _note(lake, database, work, before | revisions, unchecked)
        # Before the rename, or a reader in between would find the new file with another's log.
        remove(_log_of(database))
        work.replace(database)
    return Publication(changed, plates, tuple(unchecked), published is None, time.perf_counter() - started)


def _fill(
    work: Path, lake: Lake, before: dict[str, str], changed: tuple[str, ...]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Change the copy in one transaction, then close it: whole, without a log.

    Returns:
        The revisions of the changed tables, and the plates whose reports are out of date.
    """
    revisions: dict[str, str] = {}
    touched: dict[str, pl.DataFrame] = {}
    with closing(duckdb.connect(work)) as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("BEGIN")
        if not before:
            db.create(connection, lake.root.absolute())
        for name in changed:
            if name in INDEX_TABLES:
                revisions[name] = lake.revision(name)
                db.replace(connection, lake_table(name), lake.versions(name))
                continue
            snapshot = lake.snapshot(name)
            revisions[name] = lake.revision(name, snapshot.version)
            if name in COPIED_TABLES:
                touched[name] = db.copy(connection, lake_table(name), snapshot.files)
            else:
                all_of_them = db.show_files(connection, lake_table(name), snapshot.files)
                changes = _changes(lake, name, before.get(name, ""), snapshot.version)
                touched[name] = all_of_them if changes is None else changes
        refresh(connection, touched)
        plates = _plates_to_report(connection, touched)
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    return revisions, plates


def _changes(lake: Lake, name: str, before: str, version: int) -> pl.DataFrame | None:
    """The partitions that changed since a revision; None where the log does not tell, or the table was made anew."""
    since = int(before.partition("-")[0] or -1)
    return lake.changes(name, since, version) if since >= 0 and lake.revision(name, since) == before else None


def _plates_to_report(connection: duckdb.DuckDBPyConnection, touched: dict[str, pl.DataFrame]) -> tuple[str, ...]:
    champions = connection.sql("SELECT model_run FROM champions").pl()
    found: set[str] = set()
    for rows in (touched[name] for name in _IN_REPORTS if name in touched):
        of_champion = rows.join(champions, on="model_run", how="semi") if "model_run" in rows.columns else rows
        found.update(of_champion["Metadata_Plate"])
    return tuple(sorted(found))


def _published(lake: Lake, database: Path) -> dict[str, str] | None:
    """The revisions of the lake's tables that the file was published from; None where it cannot be built upon."""
    notes = _notes(database)
    return notes.get("tables") if notes.get("made_for") == _made_for(lake) else None


def _notes(database: Path) -> dict[str, Any]:
    """What was written down of this very file; empty where nothing was, or it was changed since."""
    try:
        notes = read_json(_notes_of(database))[_fingerprint(database)]
        return notes if isinstance(notes, dict) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _note(lake: Lake, database: Path, work: Path, revisions: dict[str, str], unchecked: list[str]) -> None:
    """Write down what the next file was published from, beside the same of the present one: either may be found."""
    present = {_fingerprint(database): notes} if (notes := _notes(database)) else {}
    next_one = {"made_for": _made_for(lake), "tables": revisions, "unchecked": unchecked}
    write_json(_notes_of(database), present | {_fingerprint(work): next_one})


def _made_for(lake: Lake) -> str:
    return digest([db.schema_version(), str(lake.root.absolute())])


def _fingerprint(database: Path) -> str:
    """Size and a digest of DuckDB's headers, which every session that changed the file has written anew."""
    with database.open("rb") as file:
        return f"{database.stat().st_size}-{hashlib.sha256(file.read(_HEADER_BYTES)).hexdigest()[:16]}"


def _notes_of(database: Path) -> Path:
    return database.with_name(f".{database.name}.json")


def _log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.wal")


def _remove(database: Path) -> None:
    remove(database, _log_of(database))
