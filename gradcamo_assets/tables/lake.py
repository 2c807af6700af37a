"""The lake: the source of truth. One Delta Lake table (https://delta.io) for each lake table.

A commit replaces what stands under one key (plate, site, MLflow run), whole. Nothing here knows DuckDB: the QC database
is made from these tables and can be made again at any time.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
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
from gradcamo_assets.storage import list_visible, read_bytes, read_json, remove
from gradcamo_assets.tables.columns import KEY_COLUMNS, Table
from gradcamo_assets.tables.conform import conform
from gradcamo_assets.tables.schema import LAKE_TABLES, lake_table

if TYPE_CHECKING:
    from deltalake import DeltaTable

_ATTEMPTS = 40
_ODD = r"[\[\]\\\x00-\x1f]|%[0-9A-Fa-f]{2}"
_LONGEST_PAUSE_SECONDS = 2.0
# Merged in one commit, and again where a writer overtook it.
_PLATES_AT_ONCE = 50


@dataclass(frozen=True)
class Snapshot:
    """A table at one moment.

    Attributes:
        version: of the Delta table; -1 where there is none yet.
        files: one row a data file: ``path`` (absolute), ``rows``, and the columns that the table is partitioned by.
    """

    version: int
    files: pl.DataFrame


@dataclass(frozen=True)
class Lake:
    """The tables under one folder. Writers of different keys never meet; of one key, the last one wins whole.

    Keys are given by name, such as ``plate="P1", site=3``. Writers on several machines need no lock: a commit that
    another one overtook is made again.
    """

    root: Path

    def __post_init__(self) -> None:
        if odd := re.search(_ODD, str(self.root)):
            problem = f"the path holds {odd.group()!r}, which Delta Lake reads as something else"
            raise StoreError(problem, "Rename the folder, or move GRADCAMO_HOME.", path=self.root)
        columns = {name for table in LAKE_TABLES.values() for name in table.polars}
        if alike := [part for part in self.root.absolute().parts if part.partition("=")[0] in columns and "=" in part]:
            problem = f"the folder {alike[0]} reads like a column of the lake's tables"
            raise StoreError(problem, "Rename the folder, or move GRADCAMO_HOME.", path=self.root)

    def write(self, table: str, frame: pl.DataFrame, **keys: Any) -> None:
        """Replace what the lake holds under one key, given by all of ``lake_table(table).keys``.

        Raises:
            StoreError: where the rows do not fit the table or do not lie in the key.
        """
        self._write(table, frame, keys)

    def _write(
        self, table: str, frame: pl.DataFrame, keys: dict[str, Any], still: Callable[[], None] | None = None
    ) -> None:
        """``still`` is called before each try to commit, which fails where another commit to the key came after it."""
        from deltalake import write_deltalake

        description = lake_table(table)
        rows = conform(description, frame)
        predicate = _predicate(table, keys)
        if wanted := sorted(set(description.keys) - set(keys)):
            raise StoreError(f"{table} is filed by {', '.join(description.keys)}", f"Give {', '.join(wanted)} too.")
        for name, value in keys.items():
            if len(astray := rows[KEY_COLUMNS[name]].filter(rows[KEY_COLUMNS[name]] != value)):
                raise StoreError(
                    f"{len(astray)} rows of {table} have {KEY_COLUMNS[name]} {astray[0]}, "
                    f"but were to be filed under {name} {value}",
                    "Write every row under its own key.",
                    plate=keys.get("plate"),
                    site=keys.get("site"),
                )
        if not keys:
            raise StoreError(f"{table} is filed by nothing", "Use replace or append.")

        def commit(delta: DeltaTable) -> None:
            if still:
                still()
            write_deltalake(delta, rows, mode="overwrite", predicate=predicate)

        self._commit(description, commit)

    def replace(self, table: str, frame: pl.DataFrame) -> None:
        """Replace all rows of a table in one commit.

        Raises:
            StoreError: for rows that do not fit the table.
        """
        self._rewrite(lake_table(table), lambda _: frame)

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows to a table without keys (``models``, ``promotions``); a row with the same identity is replaced.

        Raises:
            StoreError: for a table that is filed by keys, or rows that do not fit it.
        """
        description = lake_table(table)
        if description.keys:
            raise StoreError(f"{table} is filed by {', '.join(description.keys)}", "Write it key by key.")
        new = conform(description, frame)
        self._rewrite(
            description,
            lambda there: pl.concat([there, new]).unique(description.unique, keep="last", maintain_order=True),
        )

    def _rewrite(self, table: Table, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Replace all rows by what ``change`` makes of them; it is asked again where another commit came between."""
        from deltalake import write_deltalake

        def commit(delta: DeltaTable) -> None:
            before = scan_files(table, _files(table, _listing(self.root / table.name, delta))).collect()
            write_deltalake(delta, conform(table, change(before)), mode="overwrite")

        self._commit(table, commit)

    def drop(self, table: str, **keys: Any) -> None:
        """Remove the rows under ``keys``."""
        predicate = _predicate(table, keys)
        if self._delta(lake_table(table)) is not None:
            self._commit(lake_table(table), lambda delta: delta.delete(predicate))

    def scan(self, table: str, **keys: Any) -> pl.LazyFrame:
        """The rows under ``keys`` (all, without any), lazily; none: an empty frame with the table's columns."""
        _predicate(table, keys)
        description = lake_table(table)
        of_files = {name: value for name, value in keys.items() if name in description.partitioned_by}
        files = self.snapshot(table).files.filter(**{KEY_COLUMNS[name]: value for name, value in of_files.items()})
        found = scan_files(description, files)
        return found.filter(**{KEY_COLUMNS[k]: v for k, v in keys.items() if k not in of_files}) if keys else found

    def read(self, table: str, **keys: Any) -> pl.DataFrame:
        """The rows under ``keys``.

        Raises:
            StoreError: where a file cannot be read; polars' own error names it.
        """
        try:
            return self.scan(table, **keys).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise StoreError(
                f"the table {table} cannot be read: {error}", "Make the partition anew whose file is damaged."
            ) from error

    def snapshot(self, table: str, version: int | None = None) -> Snapshot:
        """The files of a table, now or at a version.

        Raises:
            StoreError: where the table cannot be read, or was written by an earlier release.
        """
        description = lake_table(table)
        number = self.version(table) if version is None else version
        if number < 0:
            types = {name: description.polars[name] for name in description.partitions}
            return Snapshot(-1, pl.DataFrame(schema={"path": pl.String, "rows": pl.Int64, **types}))
        return Snapshot(number, _files(description, _listed(self, table, self.revision(table, number))))

    def version(self, table: str) -> int:
        """The version of a Delta table; it grows with every commit. -1 where there is none yet.

        Raises:
            StoreError: where the table cannot be read, or was written by an earlier release.
        """
        log, number = self.root / lake_table(table).name / "_delta_log", -1
        # Not by a listing: a log of thousands of commits is asked for its last one at every tick.
        with suppress(OSError, ValueError, LookupError, TypeError):  # Without it, the commits are counted.
            number = read_json(log / "_last_checkpoint")["version"]
        while (log / f"{number + 1:020}.json").exists():
            number += 1
        if number < 0 and (delta := self._delta(lake_table(table))) is not None:
            number = delta.version()
        return number

    def revision(self, table: str, version: int | None = None) -> str:
        """What tells the rows of a table at a version (its last) from any others, those of a table made anew included.

        The version and a digest of its commit, as ``12-0f3a5c``; the version alone where the log has lost the commit.
        """
        number = self.version(table) if version is None else version
        if (commit := self._commit_file(table, number)) is None:
            return str(number)
        return f"{number}-{hashlib.sha256(commit).hexdigest()[:16]}"

    def versions(self, table: str, **keys: Any) -> pl.DataFrame:
        """The rows of one of the version tables, read from Delta's log alone: no data file is opened.

        Returns:
            The key columns, ``version``, ``made_from`` and ``n``, sorted by the keys.
        """
        _predicate(table, keys)
        description = lake_table(table)
        number = self.version(table)
        columns = [KEY_COLUMNS[name] for name in description.keys]
        files = _listed(self, table, self.revision(table, number)) if number >= 0 else pl.DataFrame()
        if files.is_empty():
            return description.empty()
        # A version table has one row a file, so that the highest value of a file is its only one.
        found = files.select(
            *(pl.col(f"partition.{name}").alias(name) for name in columns),
            *(pl.col(f"max.{name}").alias(name) for name in description.polars if name not in columns),
        )
        found = found.filter(**{KEY_COLUMNS[name]: value for name, value in keys.items()}) if keys else found
        return found.cast(description.polars).sort(columns)  # type: ignore[arg-type]

    def version_of(self, table: str, **keys: Any) -> dict[str, Any] | None:
        """The row of one partition in a version table; None where nothing stands there yet."""
        found = self.versions(table, **keys)
        return found.row(0, named=True) if len(found) else None

    def combined_version(self, table: str, **keys: Any) -> str:
        """One version for all partitions under ``keys`` of a version table: what is made from all of them has it."""
        columns = [KEY_COLUMNS[name] for name in lake_table(table).keys]
        return digest(self.versions(table, **keys).select(*columns, "version").rows())

    def record(self, table: str, version: str, made_from: str | None, n: int, **keys: Any) -> None:
        """Write the version of what now stands in one partition, after it was written itself."""
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
        """Write what a stage made of one partition, and its version last.

        In between, the partition is made from nothing: of a killed writer nothing passes for done. Of two writers at
        once, the one that was overtaken leaves it so.

        Args:
            table: the stage's version table. frames: the rows by table.

        Raises:
            StoreError: where another writer overtook this one, or rows do not fit their table.
        """
        before, mine = self.version_of(table, **keys), f"written since {uuid.uuid4().hex}"
        self.record(table, mine, None, before["n"] if before else 0, **keys)
        for name, frame in frames.items():
            self.write(name, frame, **keys)

        def still() -> None:
            if (there := self.version_of(table, **keys)) is None or there["version"] != mine:
                self.record(table, mine, None, n, **keys)
                problem, remedy = "another run has written the same at the same time", "Run it again."
                raise StoreError(problem, remedy, plate=keys.get("plate"), site=keys.get("site"))

        self._write(table, _version_row(table, keys, version, made_from, n), keys, still)

    def changes(self, table: str, since: int, until: int) -> pl.DataFrame | None:
        """The partitions whose rows changed after version ``since``, up to ``until``; compaction changes none.

        Returns:
            One row a partition, the columns that the table is partitioned by; None where the log does not reach back.
        """
        description = lake_table(table)
        columns = description.partitions
        touched: set[tuple[str, ...]] = set()
        for version in range(since + 1, until + 1):
            if (commit := self._commit_file(table, version)) is None:
                return None
            for action in map(json.loads, commit.splitlines()):
                change = action.get("add") or action.get("remove")
                if change and change["dataChange"]:
                    touched.add(tuple(change["partitionValues"][name] for name in columns))
        schema = {name: description.polars[name] for name in columns}
        return pl.DataFrame(sorted(touched), dict.fromkeys(columns, pl.String), orient="row").cast(schema)  # type: ignore[arg-type]

    def compact(self, table: str) -> int:
        """Merge the small files of each partition, so that readers open fewer. How many files went.

        A version table keeps its files: each is one row of the index. Writers may go on: what one of them overtook is
        merged again.
        """
        description = lake_table(table)
        if description.partitioned_by and set(description.partitioned_by) == set(description.keys):
            return 0
        files = self.snapshot(table).files
        plates = files["Metadata_Plate"].unique().sort().to_list() if description.partitioned_by else []
        starts = range(0, len(plates), _PLATES_AT_ONCE)
        parts: list[Any] = [[("Metadata_Plate", "in", plates[start : start + _PLATES_AT_ONCE])] for start in starts]
        merged: list[int] = []

        def merge(delta: DeltaTable, part: Any) -> None:
            merged.append(delta.optimize.compact(part)["numFilesRemoved"])

        for part in parts or [None] if len(files) > 1 else ():
            self._commit(description, partial(merge, part=part))
        return sum(merged)

    def vacuum(self, table: str, hours: int, keep: set[str]) -> int:
        """Delete files that no version of the last ``hours`` names and that are not in ``keep`` (absolute paths)."""
        delta = self._delta(lake_table(table))
        if delta is None:
            return 0
        delta.create_checkpoint()
        old = delta.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False)
        gone = [path for name in old if str(path := self.root / table / name) not in keep]
        for path in gone:
            remove(path)
        return len(gone)

    def _commit_file(self, table: str, version: int) -> bytes | None:
        return read_bytes(self.root / table / "_delta_log" / f"{version:020}.json")

    def _delta(self, table: Table, version: int | None = None) -> DeltaTable | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        folder = self.root / table.name
        try:
            if (folder / "_delta_log").is_dir():
                return DeltaTable(folder, version=version)
        except (DeltaError, OSError) as error:
            remedy = "Restore its folder from a copy, or delete it and make its partitions again."
            raise StoreError(f"the table {table.name} cannot be read: {error}", remedy, path=folder) from error
        if list_visible(folder, "**/*.parquet"):
            problem = f"the table {table.name} was written by an earlier release, which this one does not read"
            raise StoreError(problem, "Begin a new GRADCAMO_HOME, and ingest the plates into it.", path=folder)
        return None

    def _commit(self, table: Table, change: Callable[[DeltaTable], object]) -> None:
        """Change a table, which is made where it is missing; once more where another commit came between."""
        from deltalake import DeltaTable
        from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

        folder = self.root / table.name
        for attempt in range(_ATTEMPTS):
            try:
                delta = self._delta(table)
                if delta is None:
                    folder.mkdir(parents=True, exist_ok=True)
                    delta = DeltaTable.create(
                        folder,
                        table.empty().to_arrow().schema,
                        mode="ignore",
                        partition_by=table.partitions or None,
                        configuration={
                            # Statistics of all columns would make the log a hundred times as long.
                            "delta.dataSkippingNumIndexedCols": "0",
                            **({"delta.dataSkippingStatsColumns": ",".join(table.counted)} if table.counted else {}),
                        },
                    )
                change(delta)
                return
            except (CommitFailedError, TableNotFoundError) as error:
                overtaken = error
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE_SECONDS, 0.02 * 2**attempt)))
            except DeltaError as error:
                raise StoreError(
                    f"the table {table.name} cannot be written: {error}", "See to the disk, then run it again.",
                    path=folder,
                ) from error  # fmt: skip
        raise StoreError(
            f"the table {table.name} changes faster than it can be written", "Run it again with fewer runs at a time.",
            path=folder,
        ) from overtaken  # fmt: skip


def _version_row(table: str, keys: dict[str, Any], version: str, made_from: str | None, n: int) -> pl.DataFrame:
    row = {KEY_COLUMNS[name]: value for name, value in keys.items()}
    row |= {"version": version, "made_from": made_from, "n": n}
    return pl.DataFrame([row], schema=lake_table(table).polars)


def scan_files(table: Table, files: pl.DataFrame) -> pl.LazyFrame:
    """The rows of some files of a table, as ``Snapshot.files`` has them, lazily."""
    if files.is_empty():
        return table.empty().lazy()
    schema = table.polars
    partitions = table.partitions
    found = pl.scan_parquet(
        files["path"].to_list(),
        # A path is no pattern, and a folder named a=b above the lake is no column.
        glob=False,
        hive_partitioning=False,
        schema={name: dtype for name, dtype in schema.items() if name not in partitions},
        # No column of a table has this name.
        include_file_paths="its file" if partitions else None,
    )
    if partitions:
        found = found.join(files.lazy().select(pl.col("path").alias("its file"), *partitions), on="its file")
    return found.select(*schema)


# A table at a revision never changes. To read the log of a thousand plates takes a tenth of a second.
@lru_cache(maxsize=2 * len(LAKE_TABLES))
def _listed(lake: Lake, table: str, revision: str) -> pl.DataFrame:
    """What the log says of the files of a table at a revision, as ``_listing`` has it."""
    delta = lake._delta(lake_table(table), int(revision.partition("-")[0]))
    return pl.DataFrame() if delta is None else _listing(lake.root / table, delta)


def _listing(folder: Path, delta: DeltaTable) -> pl.DataFrame:
    """One row a file, sorted: ``path`` (absolute), ``num_records``, ``partition.*``, and ``max.*`` where it is kept."""
    from urllib.parse import unquote

    found = pl.DataFrame(delta.get_add_actions(flatten=True))
    paths = [f"{folder}/{unquote(path)}" for path in found["path"]]
    return found.with_columns(pl.Series("path", paths, pl.String)).sort("path")


def _files(table: Table, listing: pl.DataFrame) -> pl.DataFrame:
    """The files of a snapshot, as ``Snapshot.files`` has them."""
    return listing.select(
        "path",
        pl.col("num_records").alias("rows"),
        *(pl.col(f"partition.{name}").cast(table.polars[name]).alias(name) for name in table.partitions),
    )


def _predicate(table: str, keys: dict[str, Any]) -> str | None:
    """The keys as a condition in SQL, if the table is filed by them and their values are safe in paths and SQL."""
    filed_by = lake_table(table).keys
    if alien := sorted(set(keys) - set(filed_by)):
        raise StoreError(
            f"{table} is not filed by {', '.join(alien)}", f"It is filed by {', '.join(filed_by) or 'nothing'}."
        )
    for name, value in keys.items():
        if name == "plate":
            check_plate_name(value)
        elif name == "model_run":
            check_name(value, "MLflow run")
        elif not isinstance(value, Integral):
            raise StoreError(f"{name} {value!r} is no whole number", "Give it as an integer.")
    values = {name: f"'{value}'" if isinstance(value, str) else str(value) for name, value in keys.items()}
    return " AND ".join(f"{KEY_COLUMNS[name]} = {value}" for name, value in values.items()) or None
