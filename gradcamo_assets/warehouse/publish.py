"""Publishing the QC database: copy, change what changed in the lake, rename over. Never edited in place.

Readers never block a publication and a publication never blocks readers: they keep the file that they opened. A crash
at any moment leaves the last good file. What changed is found by comparing the lake's files with the signatures that
the database itself records, so no caller can forget a table.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
from filelock import FileLock, Timeout

from gradcamo_assets.common.errors import StoreError
from gradcamo_assets.warehouse import database as db
from gradcamo_assets.warehouse.columns import Table
from gradcamo_assets.warehouse.lake import Key, Lake
from gradcamo_assets.warehouse.schema import COPIED_TABLES

_WAIT_SECONDS = 1800.0
_ATTEMPTS = 10
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Publication:
    """What one publication did. ``changed``: the lake files whose rows were replaced or taken out.

    Nothing changed and not rebuilt: the old file stays where it is.
    """

    changed: tuple[Key, ...]
    rebuilt: bool
    seconds: float

    @property
    def plates(self) -> tuple[str, ...]:
        """The plates touched, sorted."""
        return tuple(sorted({key.plate for key in self.changed if key.plate}))


class _LakeMoved(Exception):
    """A lake file was replaced or removed while it was read."""


def publish(lake: Lake, database: Path) -> Publication:
    """Bring the QC database up to the lake.

    Args:
        lake: the source of truth.
        database: the file to publish; made where it is missing, made anew from the lake where it is damaged, of another
            schema, of another lake, or was written to by anybody else.

    Raises:
        StoreError: where another publisher does not finish within half an hour, or a lake file cannot be read.
    """
    database = database.absolute()
    try:
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=_WAIT_SECONDS):
            for _ in range(_ATTEMPTS):
                with suppress(_LakeMoved):
                    return _publish(lake, database)
    except Timeout as error:
        raise StoreError(
            "another publisher has not finished", "End the run that hangs, then publish again.", path=database
        ) from error
    raise StoreError("the lake changes faster than it can be read", "Publish again later.", path=lake.root)


def _publish(lake: Lake, database: Path) -> Publication:
    started = time.perf_counter()
    # Signatures before contents: a file replaced in between is then read once too often, never once too seldom.
    keys = (key for table in COPIED_TABLES for key in lake.keys(table))
    files = {key.path: signature for key in keys if (signature := _sign(lake.root / key.path))}
    work = database.with_name(f".{database.name}.next.tmp")
    _remove(work)
    try:
        recorded = _recorded(database, work, lake)
        rebuilt = recorded is None
        recorded = recorded or {}
        paths = sorted(path for path in files.keys() | recorded if files.get(path) != recorded.get(path))
        changed = tuple(key for path in paths if (key := Key.of_path(path)))
        if changed or rebuilt:
            if not rebuilt:
                shutil.copyfile(database, work)
            _fill(work, lake, changed, files, rebuilt)
            # Before the rename, or a reader in between would find the new file with another's log.
            _log_of(database).unlink(missing_ok=True)
            work.replace(database)
    finally:
        _remove(work)
    return Publication(changed, rebuilt, time.perf_counter() - started)


def _recorded(database: Path, work: Path, lake: Lake) -> dict[str, str] | None:
    """Which lake files the published file holds; None where it cannot be built upon. Leaves no ``work`` behind.

    It is read under another name, without a log that somebody's session left beside it. A link costs nothing, but is
    refused while somebody has the file open for writing.
    """
    for take in (os.link, shutil.copyfile):
        with suppress(OSError, duckdb.Error):
            modified = database.stat().st_mtime_ns
            take(database, work)
            with closing(duckdb.connect(work, read_only=True)) as connection:
                recorded = db.recorded(connection)
            _remove(work)
            built_upon = all(recorded.pop(name, None) == value for name, value in _facts(lake, modified).items())
            return recorded if built_upon else None
        _remove(work)
    return None


def _facts(lake: Lake, modified: int) -> dict[str, str]:
    """What must be so for a published file to be built upon; ``modified`` tells whether it was written to since."""
    return {"schema": db.schema_version(), "lake": str(lake.root.absolute()), "modified_ns": str(modified)}


def _fill(work: Path, lake: Lake, changed: tuple[Key, ...], files: dict[str, str], new: bool) -> None:
    """Change the copy in one transaction, then close it: whole, without a log, read-only."""
    modified = time.time_ns() // _NANOSECONDS * _NANOSECONDS
    with closing(duckdb.connect(work)) as connection:
        connection.execute("BEGIN")
        if new:
            db.create(connection, lake.root)
        for name, table in COPIED_TABLES.items():
            if touched := [key for key in changed if key.table == name]:
                _replace(connection, lake, table, touched, files)
        db.refresh_aggregates(connection, changed)
        db.record(connection, {**files, **_facts(lake, modified)})
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    work.chmod(0o444)
    os.utime(work, ns=(modified, modified))


def _replace(
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table, touched: list[Key], files: dict[str, str]
) -> None:
    present = [key for key in touched if key.path in files]
    try:
        db.replace_rows(connection, table, touched, present, lake.root)
    except duckdb.Error as error:
        if any(_sign(lake.root / key.path) != files[key.path] for key in present):
            raise _LakeMoved from error
        raise StoreError(
            f"the lake's files of {table.name} cannot be read: {error}",
            "Make the partitions anew whose files are damaged or of an earlier schema.",
            path=lake.root / table.name,
        ) from error


def _sign(path: Path) -> str | None:
    """Inode, size and modification time: a lake file is only ever replaced whole. None where it is gone."""
    with suppress(OSError):
        stat = path.stat()
        return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
    return None


def _log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.wal")


def _remove(database: Path) -> None:
    for path in (database, _log_of(database)):
        path.unlink(missing_ok=True)
