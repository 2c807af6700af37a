"""Open, change and list one Delta Lake table (https://delta.io) in a folder or a bucket, and scan its files."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.local_copies import fetch_unchanging
from gradcamo_assets.storage import address, delta_options, exists, is_in_bucket, list_visible, path_of
from gradcamo_assets.tables.columns import Table

if TYPE_CHECKING:
    from deltalake import DeltaTable

_MAX_COMMIT_ATTEMPTS = 40
_MAX_PAUSE_SECONDS = 2.0
# No column of a table has this name.
_PATH_COLUMN = "source file path"


def open_table(root: Path, table: Table, version: int | None = None) -> DeltaTable | None:
    """Open a table of the lake in a folder at a version; default: the last one.

    Returns:
        None if there is no table.

    Raises:
        StoreError: if the table cannot be read.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    folder = root / table.name
    log = folder / "_delta_log"
    try:
        if exists(log):
            return DeltaTable(address(folder), version=version, storage_options=delta_options(folder))
    except (DeltaError, OSError) as error:
        # Without a commit, the process that creates the table has not written it yet, or was killed before that.
        if list_visible(log, "*.json") or list_visible(log, "*.parquet"):
            remedy = "Restore the folder from a backup, or delete it and materialise its partitions again."
            raise StoreError(f"the table {table.name} cannot be read: {error}", remedy, path=folder) from error
    if not is_in_bucket(folder) and any(folder.glob("**/*.parquet")):
        problem = f"the table {table.name} was written by an earlier release in a format that this one cannot read"
        raise StoreError(problem, "Create a new GRADCAMO_HOME and ingest the plates into it.", path=folder)
    return None


def commit(root: Path, table: Table, change: Callable[[DeltaTable], object]) -> None:
    """Change a table of the lake in a folder, creating it if it does not exist.

    The change is repeated after a conflict with another commit.

    Raises:
        StoreError: if the table cannot be written, or every attempt conflicted with another commit.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

    folder = root / table.name
    for attempt in range(_MAX_COMMIT_ATTEMPTS):
        try:
            delta = open_table(root, table)
            if delta is None:
                if not is_in_bucket(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                delta = DeltaTable.create(
                    address(folder),
                    table.empty().to_arrow().schema,
                    mode="ignore",
                    partition_by=table.partition_columns or None,
                    storage_options=delta_options(folder),
                    configuration={
                        # Statistics of all columns would make the log a hundred times longer.
                        "delta.dataSkippingNumIndexedCols": "0",
                        **(
                            {"delta.dataSkippingStatsColumns": ",".join(table.statistics_columns)}
                            if table.statistics_columns
                            else {}
                        ),
                    },
                )
            change(delta)
            return
        except (CommitFailedError, TableNotFoundError) as error:
            conflict = error
            time.sleep(random.uniform(0, min(_MAX_PAUSE_SECONDS, 0.02 * 2**attempt)))
        except DeltaError as error:
            raise StoreError(
                f"the table {table.name} cannot be written: {error}", "Check the disk, then run it again.",
                path=folder,
            ) from error  # fmt: skip
    raise StoreError(
        f"{_MAX_COMMIT_ATTEMPTS} attempts to write the table {table.name} conflicted with other commits",
        "Run it again with fewer concurrent runs.", path=folder,
    ) from conflict  # fmt: skip


def listing(root: Path, table: Table, delta: DeltaTable) -> pl.DataFrame:
    """One row per file, sorted: ``path`` (its address), ``num_records``, ``partition.*``, and ``max.*`` if recorded."""
    from urllib.parse import unquote

    files = pl.DataFrame(delta.get_add_actions(flatten=True))
    folder = address(root / table.name)
    paths = [f"{folder}/{unquote(path)}" for path in files["path"]]
    return files.with_columns(pl.Series("path", paths, pl.String)).sort("path")


def files_of(table: Table, listed: pl.DataFrame) -> pl.DataFrame:
    """The columns of ``Snapshot.files`` from a ``listing``."""
    return listed.select(
        "path",
        pl.col("num_records").alias("rows"),
        *(pl.col(f"partition.{name}").cast(table.schema[name]).alias(name) for name in table.partition_columns),
    )


def scan_files(table: Table, files: pl.DataFrame) -> pl.LazyFrame:
    """The rows of files of a table as a lazy frame. ``files`` has the columns of ``Snapshot.files``."""
    if files.is_empty():
        return table.empty().lazy()
    schema, partitions = table.schema, table.partition_columns
    paths = [path_of(place) for place in files["path"]]
    fetch_unchanging(paths)
    rows = pl.scan_parquet(
        paths,
        # Do not interpret paths as glob patterns, nor a folder named a=b above the lake as a column.
        glob=False,
        hive_partitioning=False,
        schema={name: dtype for name, dtype in schema.items() if name not in partitions},
        include_file_paths=_PATH_COLUMN if partitions else None,
    )
    if partitions:
        names = pl.Series(_PATH_COLUMN, [str(path) for path in paths])
        places = files.lazy().select(names, *partitions)
        # Versions are digests of rows: equal rows must come in the same order.
        rows = rows.join(places, on=_PATH_COLUMN, maintain_order="left")
    return rows.select(*schema)
