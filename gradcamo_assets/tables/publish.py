"""Publish the QC database: copy the current file, apply the changes of the lake to the copy, rename it into place.

Readers and publications never block each other: readers keep the file that they opened. A crash at any moment leaves
the last good file. Changes are found by comparing the revisions of the lake tables with those that the database was
published from, so that callers need not report them.
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
from gradcamo_assets.local_copies import fetch_file
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import (
    address,
    exists,
    is_in_bucket,
    publish_file,
    read_json,
    read_start,
    remove,
    write_json,
)
from gradcamo_assets.tables import database as db
from gradcamo_assets.tables.lake import Lake
from gradcamo_assets.tables.queries import run_sql
from gradcamo_assets.tables.read_only_files import ADDRESS_VARIABLE, PROTOCOL, ReadOnlyFiles
from gradcamo_assets.tables.refresh import refresh_summaries
from gradcamo_assets.tables.schema import COPIED_TABLES, INDEX_TABLES, VIEWED_TABLES, lake_table

_WAIT_SECONDS = 1800.0
_HEADER_BYTES = 3 * 4096

# Index tables are read first. Stages write them last, so that the rows read afterwards are at least as new.
_PUBLISHED_TABLES = (*INDEX_TABLES, *COPIED_TABLES, *VIEWED_TABLES)
_REPORTED_TABLES = ("scores", "audit", "umap", "profiles", "channel_correlation")


@dataclass(frozen=True)
class Publication:
    """The result of one publication. The file is left untouched if nothing changed and no rebuild was needed.

    Attributes:
        changed: the lake tables whose revision differs from the one that the previous file was published from.
        plates: the plates whose reports are out of date, sorted: rows of a champion, or other reported rows, changed.
        unchecked: ``plates``, and those of earlier publications that were not passed to ``mark_checked``.
        rebuilt: whether the database was built from scratch.
        seconds: duration of the publication.
    """

    changed: tuple[str, ...]
    plates: tuple[str, ...]
    unchecked: tuple[str, ...]
    rebuilt: bool
    seconds: float


def publish(lake: Lake, database: Path) -> Publication:
    """Update the QC database to the current content of the lake.

    Args:
        lake: the source of truth.
        database: the file to publish. It is built from scratch if it is missing or damaged, has another schema, belongs
            to a lake in another folder, or was modified by anything other than this function.

    Raises:
        StoreError: if another publisher does not finish within half an hour, or a lake file cannot be read.
    """
    started, database = time.perf_counter(), database.absolute()
    work = database.with_name(f".{database.name}.next.tmp")
    try:
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=_WAIT_SECONDS):
            try:
                published = _published_revisions(lake, database)
                if published is not None:
                    with suppress(duckdb.Error):  # The file is damaged: rebuild it below.
                        return _publish_changes(lake, database, work, published, started)
                return _publish_changes(lake, database, work, None, started)
            finally:
                _remove_database(work)
    except Timeout as error:
        raise StoreError(
            f"another publisher still holds the lock after {_WAIT_SECONDS / 60:.0f} minutes",
            "Stop the run that hangs, then publish again.",
            path=database,
        ) from error


def needs_publication(lake: Lake, database: Path) -> bool:
    """Whether ``publish`` would change the database. This opens neither the database nor data files."""
    published = _published_revisions(lake, database.absolute())
    return published is None or any(lake.revision(name) != published.get(name) for name in _PUBLISHED_TABLES)


def is_checked(database: Path) -> bool:
    """Whether the last publication was passed to ``mark_checked``."""
    return bool(_read_notes(database.absolute()).get("checked"))


def is_published_from(lake: Lake, database: Path) -> bool:
    """Whether the database was published from this lake with the current schema. False after its home was moved."""
    return _published_revisions(lake, database.absolute()) is not None


def published_files(database: Path) -> set[str]:
    """The addresses of the lake files that the views of the database read; empty without a database.

    Raises:
        StoreError: if the database cannot be opened.
    """
    return set(run_sql(database, "SELECT path FROM publication.files")["path"]) if exists(database) else set()


def mark_checked(database: Path, publication: Publication, *, passed: bool) -> None:
    """Record that the plates of a publication were checked, unless a later publication added others.

    Plates that did not pass are checked again with the next publication.
    """
    with FileLock(database.with_name(f".{database.name}.lock"), timeout=_WAIT_SECONDS):
        if (notes := _read_notes(database)).get("unchecked") == list(publication.unchecked):
            checked = {**notes, "checked": True, **({"unchecked": []} if passed else {})}
            write_json(_notes_path(database), {_fingerprint(database): checked})


def _publish_changes(
    lake: Lake, database: Path, work: Path, published: dict[str, str] | None, started: float
) -> Publication:
    before = published or {}
    changed = tuple(name for name in _PUBLISHED_TABLES if lake.revision(name) != before.get(name))
    plates: tuple[str, ...] = ()
    unchecked = _read_notes(database).get("unchecked", []) if published else []
    if changed:
        with tempfile.TemporaryDirectory() as folder:
            # DuckDB can read but not write files in a folder with a question mark in its name.
            copy = Path(folder, "qc.duckdb") if "?" in str(work) else work
            _remove_database(copy)
            if published is not None:
                shutil.copyfile(fetch_file(database), copy)
            revisions, plates = _update_copy(copy, lake, before, changed)
            if copy != work:
                shutil.copyfile(copy, work)
        work.chmod(0o444)
        unchecked = sorted({*unchecked, *plates})
        _write_notes(lake, database, work, before | revisions, unchecked)
        # Remove the log before the rename, so that no reader combines the new file with the old log.
        remove(_wal_path(database))
        publish_file(work, database)
    return Publication(
        changed=changed,
        plates=plates,
        unchecked=tuple(unchecked),
        rebuilt=published is None,
        seconds=time.perf_counter() - started,
    )


def _update_copy(
    work: Path, lake: Lake, before: dict[str, str], changed: tuple[str, ...]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Apply the changes to the copy in one transaction, then close it without a write-ahead log.

    Returns:
        The revisions of the changed tables, and the plates whose reports are out of date.
    """
    revisions: dict[str, str] = {}
    touched: dict[str, pl.DataFrame] = {}
    files = ReadOnlyFiles()
    with closing(duckdb.connect(work)) as connection:
        connection.execute("SET enable_progress_bar = false")
        if is_in_bucket(lake.root):
            connection.register_filesystem(files)
            connection.execute(f"SET VARIABLE {ADDRESS_VARIABLE} = '{PROTOCOL}://'")
        connection.execute("BEGIN")
        if not before:
            db.create_schema(connection, address(lake.root))
        else:
            files.add(path for (path,) in connection.execute("SELECT path FROM publication.files").fetchall())
        for name in changed:
            if name in INDEX_TABLES:
                revisions[name] = lake.revision(name)
                db.replace_rows(connection, lake_table(name), lake.partition_versions(name))
                continue
            snapshot = lake.snapshot(name)
            files.add(snapshot.files["path"])
            revisions[name] = lake.revision(name, snapshot.version)
            if name in COPIED_TABLES:
                touched[name] = db.copy_files(connection, lake_table(name), snapshot.files)
            else:
                all_partitions = db.set_view_files(connection, lake_table(name), snapshot.files)
                partitions = _changed_partitions(lake, name, before.get(name, ""), snapshot.version)
                touched[name] = all_partitions if partitions is None else partitions
        refresh_summaries(connection, touched)
        plates = _plates_to_report(connection, touched)
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    return revisions, plates


def _changed_partitions(lake: Lake, name: str, before: str, version: int) -> pl.DataFrame | None:
    """The partitions that changed since a revision; None: unknown, or the table was recreated."""
    since = int(before.partition("-")[0] or -1)
    return lake.changes(name, since, version) if since >= 0 and lake.revision(name, since) == before else None


def _plates_to_report(connection: duckdb.DuckDBPyConnection, touched: dict[str, pl.DataFrame]) -> tuple[str, ...]:
    """The plates with changed rows in tables that reports show. Rows of other models than champions are ignored."""
    champions = connection.sql("SELECT model_run FROM champions").pl()
    plates: set[str] = set()
    for rows in (touched[name] for name in _REPORTED_TABLES if name in touched):
        of_champion = rows.join(champions, on="model_run", how="semi") if "model_run" in rows.columns else rows
        plates.update(of_champion["Metadata_Plate"])
    return tuple(sorted(plates))


def _published_revisions(lake: Lake, database: Path) -> dict[str, str] | None:
    """The revisions of the lake tables that the file was published from; None: it must be rebuilt."""
    notes = _read_notes(database)
    return notes.get("tables") if notes.get("made_for") == _layout_digest(lake) else None


def _read_notes(database: Path) -> dict[str, Any]:
    """The notes on this file; empty if there are none or the file was modified since."""
    try:
        notes = read_json(_notes_path(database))[_fingerprint(database)]
        return notes if isinstance(notes, dict) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _write_notes(lake: Lake, database: Path, work: Path, revisions: dict[str, str], unchecked: list[str]) -> None:
    """Write the notes on the next file, keeping those on the current one: a crash can leave either in place."""
    current = {_fingerprint(database): notes} if (notes := _read_notes(database)) else {}
    new_notes = {"made_for": _layout_digest(lake), "tables": revisions, "unchecked": unchecked}
    write_json(_notes_path(database), current | {_fingerprint(work): new_notes})


def _layout_digest(lake: Lake) -> str:
    return digest([db.schema_version(), address(lake.root)])


def _fingerprint(database: Path) -> str:
    """Size of the file and a digest of DuckDB's headers, which every session that modifies the file rewrites."""
    size, header = read_start(database, _HEADER_BYTES)
    return f"{size}-{hashlib.sha256(header).hexdigest()[:16]}"


def _notes_path(database: Path) -> Path:
    # Hidden names are scratch files of this machine where the home is in a bucket.
    return database.with_name(f"{'' if is_in_bucket(database) else '.'}{database.name}.json")


def _wal_path(database: Path) -> Path:
    return database.with_name(f"{database.name}.wal")


def _remove_database(database: Path) -> None:
    remove(database, _wal_path(database))
