"""Publishing the QC database: copy, change what changed in the lake, rename over. Never edited in place.

Readers never block a publication and a publication never blocks readers: they keep the file that they opened. A crash
at any moment leaves the last good file. What changed is found by comparing the lake's files with the signatures that
the database itself records, so no caller can forget a table.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Collection
from contextlib import closing
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
# A file that is mostly holes is written anew; below this size nobody minds.
_HOLES_MATTER_ABOVE_BLOCKS = 400


@dataclass(frozen=True)
class Publication:
    """What one publication did. ``changed``: the lake files whose rows were replaced or taken out."""

    database: Path
    changed: tuple[Key, ...]
    rebuilt: bool
    seconds: float

    @property
    def plates(self) -> tuple[str, ...]:
        """The plates touched, sorted."""
        return tuple(sorted({key.plate for key in self.changed if key.plate}))

    @property
    def published(self) -> bool:
        """Whether a new file took the old one's place; False: nothing had changed."""
        return self.rebuilt or bool(self.changed)


class _LakeMoved(Exception):
    """A lake file was replaced or removed while it was read."""


def publish(lake: Lake, database: Path, plates: Collection[str] | None = None) -> Publication:
    """Bring the QC database up to the lake.

    Args:
        lake: the source of truth.
        database: the file to publish; made where it is missing, made anew from the lake where it is damaged, of another
            schema, of another lake, or was written to by anybody else.
        plates: leave changes of other plates for the next publication; None takes every change. What belongs to no
            plate (models, promotions) is always taken.

    Raises:
        StoreError: where another publisher does not finish within half an hour, or a lake file cannot be read.
    """
    database = database.absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    lake.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=_WAIT_SECONDS):
            for leftover in database.parent.glob(f".{database.name}.*.tmp*"):
                leftover.unlink(missing_ok=True)
            for _ in range(_ATTEMPTS):
                try:
                    return _publish(lake, database, plates)
                except _LakeMoved:
                    continue
    except Timeout as error:
        raise StoreError(
            "another publisher has not finished", "End the run that hangs, then publish again.", path=database
        ) from error
    raise StoreError("the lake changes faster than it can be read", "Publish again later.", path=lake.root)


def _publish(lake: Lake, database: Path, plates: Collection[str] | None) -> Publication:
    started = time.perf_counter()
    # Signatures before contents: a file replaced in between is then read once too often, never once too seldom.
    files = {key: signature for table in COPIED_TABLES for key, path in lake.files(table) if (signature := _sign(path))}
    work = database.with_name(f".{database.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        recorded = _copy(database, work, lake)
        rebuilt = recorded is None
        recorded = recorded or {}
        changed = [
            key
            for key in sorted(files.keys() | recorded.keys(), key=lambda key: key.path)
            if files.get(key) != recorded.get(key)
            and (plates is None or rebuilt or key.plate is None or key.plate in plates)
        ]
        if changed or rebuilt:
            now = {**recorded, **{key: files.get(key) for key in changed}}
            _fill(work, lake, changed, {key: signature for key, signature in now.items() if signature}, rebuilt)
            # Before the rename, or a reader in between would find the new file with another's log.
            _log_of(database).unlink(missing_ok=True)
            work.replace(database)
    finally:
        for leftover in (work, _log_of(work)):
            leftover.unlink(missing_ok=True)
    return Publication(database, tuple(changed), rebuilt, time.perf_counter() - started)


def _copy(database: Path, work: Path, lake: Lake) -> dict[Key, str] | None:
    """Copy the published file, without a log that somebody's session left, and read which lake files it holds.

    None, and no copy, where it cannot be built upon.
    """
    try:
        modified = database.stat().st_mtime_ns
        shutil.copyfile(database, work)
        with closing(duckdb.connect(work, read_only=True)) as connection:
            facts = db.facts(connection)
            _, _, _, total, _, free, *_ = connection.execute("PRAGMA database_size").fetchall()[0]
            wasteful = total > _HOLES_MATTER_ABOVE_BLOCKS and 2 * free > total
            if facts == _facts(lake, modified) and not wasteful:
                return db.recorded_files(connection)
    except (OSError, duckdb.Error):
        pass
    work.unlink(missing_ok=True)
    return None


def _facts(lake: Lake, modified: int) -> dict[str, str]:
    """What must be so for a published file to be built upon; ``modified`` tells whether it was written to since."""
    return {"schema": db.schema_version(), "lake": str(lake.root.absolute()), "modified_ns": str(modified)}


def _fill(work: Path, lake: Lake, changed: list[Key], now: dict[Key, str], new: bool) -> None:
    """Change the copy in one transaction, then close it: whole, without a log, read-only."""
    modified = time.time_ns() // _NANOSECONDS * _NANOSECONDS
    if not new:
        work.chmod(0o644)
    with closing(duckdb.connect(work)) as connection:
        connection.execute("BEGIN")
        if new:
            db.create_tables(connection)
            db.create_views(connection, lake)
        for name, table in COPIED_TABLES.items():
            if touched := [key for key in changed if key.table == name]:
                _replace(connection, lake, table, touched, now)
        db.refresh_aggregates(connection, db.groups_of(changed))
        db.record_files(connection, {key.path: signature for key, signature in now.items()})
        db.record_facts(connection, _facts(lake, modified))
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    work.chmod(0o444)
    os.utime(work, ns=(modified, modified))


def _replace(
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table, touched: list[Key], now: dict[Key, str]
) -> None:
    present = [key for key in touched if key in now]
    try:
        db.replace_rows(connection, table, touched, present, lake.root)
    except duckdb.Error as error:
        if any(_sign(lake.root / key.path) != now[key] for key in present):
            raise _LakeMoved from error
        raise StoreError(
            f"the lake's files of {table.name} cannot be read: {error}",
            "Make the partitions anew whose files are damaged or of an earlier schema.",
            path=lake.root / table.name,
        ) from error


def _sign(path: Path) -> str | None:
    """Inode, size and modification time: a lake file is only ever replaced whole. None where it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"


def _log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.wal")
