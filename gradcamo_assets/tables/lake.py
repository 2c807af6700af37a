"""Read and write the lake, the source of truth: one Delta Lake table (https://delta.io) per lake table.

A commit replaces all rows with the same keys (plate, site, MLflow run). This module does not depend on DuckDB: the QC
database is built from these tables and can be rebuilt at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.names import check_name, check_plate_name
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import (
    address,
    exists,
    is_in_bucket,
    names_after,
    read_bytes,
    read_json,
    remove,
)
from gradcamo_assets.tables.columns import KEY_COLUMNS
from gradcamo_assets.tables.conform import conform
from gradcamo_assets.tables.delta_table import commit, files_of, listing, open_table, scan_files
from gradcamo_assets.tables.schema import LAKE_TABLES, lake_table

if TYPE_CHECKING:
    from deltalake import DeltaTable

# Delta Lake misreads brackets, backslashes, control characters and percent-encoding in paths.
_UNSAFE_PATH = r"[\[\]\\\x00-\x1f]|%[0-9A-Fa-f]{2}"
# Plates compacted in one commit. A conflicting commit of a writer repeats the work for all of them.
_PLATES_PER_COMPACTION = 50


@dataclass(frozen=True)
class Snapshot:
    """The files of a table at one version.

    Attributes:
        version: version of the Delta table; -1: the table does not exist yet.
        files: one row per data file: ``path`` (its ``storage.address``), ``rows``, and the partition columns.
    """

    version: int
    files: pl.DataFrame


@dataclass(frozen=True)
class Lake:
    """The tables in one folder. Concurrent writers of the same keys do not mix rows: the last one replaces all of them.

    Keys are keyword arguments, such as ``plate="P1", site=3``. Writers on several machines need no lock: a commit that
    conflicts with another one is repeated.
    """

    root: Path

    def __post_init__(self) -> None:
        if unsafe := re.search(_UNSAFE_PATH, str(self.root)):
            problem = f"the path contains {unsafe.group()!r}, which Delta Lake misreads"
            raise StoreError(problem, "Rename the folder, or move GRADCAMO_HOME.", path=self.root)
        columns = {name for table in LAKE_TABLES.values() for name in table.schema}
        parts = self.root.absolute().parts
        if partition_like := [part for part in parts if "=" in part and part.partition("=")[0] in columns]:
            problem = f"readers would take the folder {partition_like[0]} for a partition of the lake's tables"
            raise StoreError(problem, "Rename the folder, or move GRADCAMO_HOME.", path=self.root)

    def write(self, table: str, frame: pl.DataFrame, **keys: Any) -> None:
        """Replace all rows with the same keys. All of ``lake_table(table).keys`` must be given.

        Raises:
            StoreError: if the rows do not fit the table or have other keys.
        """
        self._write(table, frame, keys)

    def _write(
        self, table: str, frame: pl.DataFrame, keys: dict[str, Any], check: Callable[[], None] | None = None
    ) -> None:
        """Call ``check`` before each commit attempt, which fails if a writer of the same keys commits after that."""
        from deltalake import write_deltalake

        description = lake_table(table)
        rows = conform(description, frame)
        predicate = _predicate(table, keys)
        if missing := sorted(set(description.keys) - set(keys)):
            raise StoreError(f"{table} has the keys {', '.join(description.keys)}", f"Give {', '.join(missing)} too.")
        for name, value in keys.items():
            column = rows[KEY_COLUMNS[name]]
            if len(other_values := column.filter(column != value)):
                raise StoreError(
                    f"{len(other_values)} rows of {table} have {KEY_COLUMNS[name]} {other_values[0]}, expected {value}",
                    "Write every row under its own key.",
                    plate=keys.get("plate"),
                    site=keys.get("site"),
                )
        if not keys:
            raise StoreError(f"{table} has no keys", "Use replace or append.")

        def overwrite(delta: DeltaTable) -> None:
            if check:
                check()
            write_deltalake(delta, rows, mode="overwrite", predicate=predicate)

        commit(self.root, description, overwrite)

    def replace(self, table: str, frame: pl.DataFrame) -> None:
        """Replace all rows of a table in one commit.

        Raises:
            StoreError: if the rows do not fit the table.
        """
        self.change(table, lambda _: frame)

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows to a table without keys (``models``, ``promotions``), replacing rows with the same identity.

        Raises:
            StoreError: if the table has keys or the rows do not fit it.
        """
        description = lake_table(table)
        if description.keys:
            raise StoreError(f"{table} has the keys {', '.join(description.keys)}", "Use write, key by key.")
        new = conform(description, frame)
        self.change(
            table,
            lambda present: pl.concat([present, new]).unique(description.unique, keep="last", maintain_order=True),
        )

    def change(self, table: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Replace all rows with ``change(rows)``, which is called again after a conflict with another commit.

        Raises:
            StoreError: if the rows do not fit the table.
        """
        from deltalake import write_deltalake

        description = lake_table(table)

        def overwrite(delta: DeltaTable) -> None:
            files = files_of(description, listing(self.root, description, delta))
            before = scan_files(description, files).collect()
            # Without a predicate, Delta Lake accepts two first commits, and the table has the rows of both.
            write_deltalake(delta, conform(description, change(before)), mode="overwrite", predicate="true")

        commit(self.root, description, overwrite)

    def drop(self, table: str, **keys: Any) -> None:
        """Delete the rows with these keys."""
        predicate = _predicate(table, keys)
        if open_table(self.root, lake_table(table)) is not None:
            commit(self.root, lake_table(table), lambda delta: delta.delete(predicate))

    def scan(self, table: str, **keys: Any) -> pl.LazyFrame:
        """The rows with these keys as a lazy frame; all rows without keys."""
        _predicate(table, keys)
        description = lake_table(table)
        values = {KEY_COLUMNS[name]: value for name, value in keys.items()}
        of_files = {name: value for name, value in values.items() if name in description.partition_columns}
        of_rows = {name: value for name, value in values.items() if name not in of_files}
        rows = scan_files(description, self.snapshot(table).files.filter(**of_files))
        return rows.filter(**of_rows) if of_rows else rows

    def read(self, table: str, **keys: Any) -> pl.DataFrame:
        """The rows with these keys.

        Raises:
            StoreError: if a file cannot be read; the message includes polars' error, which names the file.
        """
        try:
            return self.scan(table, **keys).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise StoreError(
                f"the table {table} cannot be read: {error}", "Materialise the partition of the damaged file again."
            ) from error

    def snapshot(self, table: str, version: int | None = None) -> Snapshot:
        """The files of a table at a version; default: the current one.

        Raises:
            StoreError: if the table cannot be read or was written by an earlier release.
        """
        description = lake_table(table)
        number = self.delta_version(table) if version is None else version
        if number < 0:
            types = {name: description.schema[name] for name in description.partition_columns}
            return Snapshot(-1, pl.DataFrame(schema={"path": pl.String, "rows": pl.Int64, **types}))
        return Snapshot(number, files_of(description, _cached_listing(self, table, self.revision(table, number))))

    def delta_version(self, table: str) -> int:
        """The version of a Delta table, which increases with every commit; -1: the table does not exist yet.

        Raises:
            StoreError: if the table cannot be read or was written by an earlier release.
        """
        log, number = self.root / lake_table(table).name / "_delta_log", -1
        # Sensors ask for the version at every tick, so that listing a log of thousands of commits would be too slow.
        with suppress(OSError, ValueError, LookupError, TypeError):  # Without the hint, counting starts at 0.
            number = read_json(log / "_last_checkpoint")["version"]
        if is_in_bucket(log):
            # One request lists a thousand commits.
            commits = (name.removesuffix(".json") for name in names_after(log, f"{max(number, 0):020}"))
            number = max((int(commit) for commit in commits if commit.isdecimal()), default=number)
        else:
            while exists(log / f"{number + 1:020}.json"):
                number += 1
        if number < 0 and (delta := open_table(self.root, lake_table(table))) is not None:
            number = delta.version()
        return number

    def revision(self, table: str, version: int | None = None) -> str:
        """An identifier of a table's rows at a version, which differs even if the table was deleted and recreated.

        It consists of the version (default: the current one) and a digest of its commit, such as ``12-0f3a5c``, or of
        the version alone if the log no longer contains the commit.
        """
        number = self.delta_version(table) if version is None else version
        if (commit := self._commit_file(table, number)) is None:
            return str(number)
        return f"{number}-{hashlib.sha256(commit).hexdigest()[:16]}"

    def partition_versions(self, table: str, **keys: Any) -> pl.DataFrame:
        """The rows of a version table. They are read from the Delta log alone, without opening data files.

        Returns:
            One row per partition: the key columns, ``version``, ``made_from`` and ``n``, sorted by the keys.
        """
        _predicate(table, keys)
        description = lake_table(table)
        number = self.delta_version(table)
        columns = [KEY_COLUMNS[name] for name in description.keys]
        files = _cached_listing(self, table, self.revision(table, number)) if number >= 0 else pl.DataFrame()
        if files.is_empty():
            return description.empty()
        # A version table has one row per file, so that the maximum of a column in a file is its only value.
        rows = files.select(
            *(pl.col(f"partition.{name}").alias(name) for name in columns),
            *(pl.col(f"max.{name}").alias(name) for name in description.schema if name not in columns),
        )
        rows = rows.filter(**{KEY_COLUMNS[name]: value for name, value in keys.items()}) if keys else rows
        return rows.cast(description.schema).sort(columns)  # type: ignore[arg-type]

    def partition_version(self, table: str, **keys: Any) -> dict[str, Any] | None:
        """The row of one partition in a version table; None: the partition has no version yet."""
        versions = self.partition_versions(table, **keys)
        return versions.row(0, named=True) if len(versions) else None

    def combined_version(self, table: str, **keys: Any) -> str:
        """A digest of the versions of all partitions with these keys: the input version of results made from them."""
        columns = [KEY_COLUMNS[name] for name in lake_table(table).keys]
        return digest(self.partition_versions(table, **keys).select(*columns, "version").rows())

    def record_version(self, table: str, version: str, made_from: str | None, n: int, **keys: Any) -> None:
        """Record the version of one partition's content. Call it after the content has been written."""
        self.write(table, _version_row(table, keys, version, made_from, n), **keys)

    def write_stage(
        self,
        table: str,
        frames: Mapping[str, pl.DataFrame],
        *,
        version: str,
        made_from: str | None,
        n: int,
        **keys: Any,
    ) -> None:
        """Write the results of a stage for one partition, and their version last.

        While it writes, the partition has a placeholder version with ``made_from`` NULL, so that the partition counts
        as out of date after a crash. If two writers overlap, the one that notices leaves the placeholder in place.

        Args:
            table: version table of the stage.
            frames: the rows, by table.

        Raises:
            StoreError: if another writer wrote the same partition meanwhile, or rows do not fit their table.
        """
        before, placeholder = self.partition_version(table, **keys), f"written since {uuid.uuid4().hex}"
        self.record_version(table, placeholder, None, before["n"] if before else 0, **keys)
        for name, frame in frames.items():
            self.write(name, frame, **keys)

        def check_sole_writer() -> None:
            current = self.partition_version(table, **keys)
            if current is None or current["version"] != placeholder:
                self.record_version(table, placeholder, None, n, **keys)
                raise StoreError(
                    "another run wrote the same partition at the same time",
                    "Run it again.",
                    plate=keys.get("plate"),
                    site=keys.get("site"),
                )

        self._write(table, _version_row(table, keys, version, made_from, n), keys, check_sole_writer)

    def changes(self, table: str, since: int, until: int) -> pl.DataFrame | None:
        """The partitions whose rows changed after version ``since``, up to ``until``. Compaction changes no rows.

        Returns:
            One row per partition, with the partition columns of the table; None: the log no longer has all the commits.
        """
        description = lake_table(table)
        columns = description.partition_columns
        changed: set[tuple[str, ...]] = set()
        for version in range(since + 1, until + 1):
            if (commit := self._commit_file(table, version)) is None:
                return None
            for action in map(json.loads, commit.splitlines()):
                change = action.get("add") or action.get("remove")
                if change and change["dataChange"]:
                    changed.add(tuple(change["partitionValues"][name] for name in columns))
        schema = {name: description.schema[name] for name in columns}
        return pl.DataFrame(sorted(changed), dict.fromkeys(columns, pl.String), orient="row").cast(schema)  # type: ignore[arg-type]

    def compact(self, table: str) -> int:
        """Merge the small files of each partition, so that readers open fewer files.

        Version tables are left alone, since they need one file per row. Writers can continue meanwhile: compaction is
        repeated after a conflict with their commits.

        Returns:
            The number of files replaced.
        """
        description = lake_table(table)
        if description.partitioned_by and set(description.partitioned_by) == set(description.keys):
            return 0
        files = self.snapshot(table).files
        plates = files["Metadata_Plate"].unique().sort().to_list() if description.partitioned_by else []
        starts = range(0, len(plates), _PLATES_PER_COMPACTION)
        parts: list[Any] = [
            [("Metadata_Plate", "in", plates[start : start + _PLATES_PER_COMPACTION])] for start in starts
        ]
        removed: list[int] = []

        def merge(delta: DeltaTable, part: Any) -> None:
            removed.append(delta.optimize.compact(part)["numFilesRemoved"])

        for part in (parts or [None]) if len(files) > 1 else ():
            commit(self.root, description, partial(merge, part=part))
        return sum(removed)

    def vacuum(self, table: str, hours: int, keep: set[str]) -> int:
        """Delete the files that no version of the last ``hours`` uses and that are not in ``keep`` (addresses).

        Among them are files of killed writers, which no commit names, from this age on.

        Returns:
            The number of files deleted.
        """
        delta = open_table(self.root, lake_table(table))
        if delta is None:
            return 0
        delta.create_checkpoint()
        unused = delta.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False, full=True)
        deletable = [path for name in unused if address(path := self.root / table / name) not in keep]
        remove(*deletable)
        return len(deletable)

    def _commit_file(self, table: str, version: int) -> bytes | None:
        return read_bytes(self.root / table / "_delta_log" / f"{version:020}.json")


def _version_row(table: str, keys: dict[str, Any], version: str, made_from: str | None, n: int) -> pl.DataFrame:
    row = {KEY_COLUMNS[name]: value for name, value in keys.items()}
    row |= {"version": version, "made_from": made_from, "n": n}
    return pl.DataFrame([row], schema=lake_table(table).schema)


# The files of a revision never change, and reading the log of a thousand plates takes a tenth of a second.
@lru_cache(maxsize=2 * len(LAKE_TABLES))
def _cached_listing(lake: Lake, table: str, revision: str) -> pl.DataFrame:
    """``listing`` of a table at a revision; an empty frame if the table does not exist."""
    delta = open_table(lake.root, lake_table(table), int(revision.partition("-")[0]))
    return pl.DataFrame() if delta is None else listing(lake.root, lake_table(table), delta)


def _predicate(table: str, keys: dict[str, Any]) -> str | None:
    """The keys as an SQL condition; None without keys.

    Raises:
        StoreError: if the table does not have one of the keys, or a site is not an integer.
        GradcamoError: if a plate name or run ID is unsafe in paths or SQL.
    """
    known = lake_table(table).keys
    if unknown := sorted(set(keys) - set(known)):
        raise StoreError(
            f"{table} does not have the key {', '.join(unknown)}", f"Its keys: {', '.join(known) or 'none'}."
        )
    for name, value in keys.items():
        if name == "plate":
            check_plate_name(value)
        elif name == "model_run":
            check_name(value, "MLflow run")
        elif not isinstance(value, Integral):
            raise StoreError(f"{name} must be an integer, got {value!r}", "Give it as an integer.")
    values = {name: f"'{value}'" if isinstance(value, str) else str(value) for name, value in keys.items()}
    return " AND ".join(f"{KEY_COLUMNS[name]} = {value}" for name, value in values.items()) or None
