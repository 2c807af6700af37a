"""The lake: the source of truth. One Parquet file a table and key (plate, site, model version), whole or not at all.

Nothing here knows DuckDB: the QC database is made from these files and can be made again at any time.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from gradcamo_assets.common.errors import StoreError
from gradcamo_assets.common.files import replaced_file
from gradcamo_assets.common.names import plate_name, slug
from gradcamo_assets.warehouse.columns import KEY_COLUMNS
from gradcamo_assets.warehouse.conform import conform
from gradcamo_assets.warehouse.schema import LAKE_TABLES, lake_table

_NUMBERS = ("site", "model_version")


@dataclass(frozen=True)
class Key:
    """What one file of the lake holds; what a table is not filed by is None."""

    table: str
    plate: str | None = None
    site: int | None = None
    model_name: str | None = None
    model_version: int | None = None

    @property
    def path(self) -> str:
        """Path within the lake, such as ``scores/plate=P1/site=2/model_name=hepg2/model_version=3.parquet``."""
        parts = [f"{name}={getattr(self, name)}" for name in lake_table(self.table).keys]
        return "/".join([self.table, *(parts or ["all"])]) + ".parquet"

    @classmethod
    def of_path(cls, path: str) -> Key | None:
        """The key whose path this is, or None where the file is none of the lake's."""
        table, *parts = path.removesuffix(".parquet").split("/")
        pairs = [part.split("=", 1) for part in parts if "=" in part]
        try:
            key = cls(table, **{name: int(value) if name in _NUMBERS else value for name, value in pairs})  # type: ignore[arg-type]
            return key if key.path == path else None
        except (StoreError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Lake:
    """The tables under one folder. Writers of different keys never meet; of one key, the last one wins whole.

    Keys are given by name, such as ``plate="P1", model_version=3``.
    """

    root: Path

    def write(self, table: str, frame: pl.DataFrame, **keys: Any) -> Path:
        """Replace what the lake holds under one key, given by all of ``lake_table(table).keys``. The path of the file.

        Raises:
            StoreError: where the rows do not fit the table or do not lie in the key.
        """
        description = lake_table(table)
        rows = conform(description, frame)
        key = Key(table, **_checked(table, keys))
        if wanted := sorted(set(description.keys) - set(keys)):
            raise StoreError(f"{table} is filed by {', '.join(description.keys)}", f"Give {', '.join(wanted)} too.")
        for name, value in keys.items():
            if len(astray := rows[KEY_COLUMNS[name]].filter(rows[KEY_COLUMNS[name]] != value)):
                raise StoreError(
                    f"{len(astray)} rows of {table} have {KEY_COLUMNS[name]} {astray[0]}, "
                    f"but were to be filed under {name} {value}",
                    "Write every row under its own key.",
                    plate=key.plate,
                    site=key.site,
                )
        path = self.root / key.path
        with replaced_file(path) as temporary:
            rows.write_parquet(temporary)
        return path

    def append(self, table: str, frame: pl.DataFrame) -> Path:
        """Add rows to a table that is one file (``models``, ``promotions``); a row with the same identity is replaced.

        Writers wait for each other.

        Raises:
            StoreError: for a table that is filed by keys, or rows that do not fit it.
        """
        description = lake_table(table)
        if description.keys:
            raise StoreError(f"{table} is filed by {', '.join(description.keys)}", "Write it key by key.")
        with FileLock(self.root / f".{table}.lock"):
            both = pl.concat([self.read(table), conform(description, frame)])
            return self.write(table, both.unique(description.unique, keep="last", maintain_order=True))

    def replace(self, table: str, frame: pl.DataFrame) -> None:
        """Overwrite a table without keys whole."""
        self.write(table, frame)

    def keys(self, table: str, **keys: Any) -> list[Key]:
        """What is there, sorted by path; ``keys`` narrow it. Files that are none of the lake's are left alone."""
        wanted = _checked(table, keys)
        paths = sorted((self.root / table).rglob("*.parquet"))
        found = (Key.of_path(path.relative_to(self.root).as_posix()) for path in paths)
        return [key for key in found if key and all(getattr(key, name) == value for name, value in wanted.items())]

    def plates_written_since(self, moment: float) -> set[str]:
        """The plates of which a file was written at or after a moment, in seconds since the epoch."""
        found = set()
        for key in (key for table in LAKE_TABLES for key in self.keys(table)):
            with suppress(FileNotFoundError):
                if key.plate and (self.root / key.path).stat().st_mtime >= moment:
                    found.add(key.plate)
        return found

    def scan(self, table: str, **keys: Any) -> pl.LazyFrame:
        """The rows under ``keys`` (all, without any), lazily; none: an empty frame with the table's columns.

        Files of an earlier release may lack columns, which are NULL then.
        """
        paths = [self.root / key.path for key in self.keys(table, **keys)]
        schema = lake_table(table).polars
        if not paths:
            return lake_table(table).empty().lazy()
        found = pl.scan_parquet(
            paths, schema=schema, hive_partitioning=False, missing_columns="insert", extra_columns="ignore"
        )
        return found.select(*schema)

    def read(self, table: str, **keys: Any) -> pl.DataFrame:
        """The rows under ``keys``.

        Raises:
            StoreError: where a file cannot be read; polars' own error names it.
        """
        try:
            return self.scan(table, **keys).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise StoreError(
                f"the table {table} cannot be read: {error}", "Delete the damaged file and make its partition again."
            ) from error

    def drop(self, table: str, **keys: Any) -> int:
        """Remove what is there under ``keys``. How many files that was."""
        dropped = self.keys(table, **keys)
        for key in dropped:
            (self.root / key.path).unlink(missing_ok=True)
        return len(dropped)


def _checked(table: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys, if the table is filed by them and their values are safe in a path."""
    filed_by = lake_table(table).keys
    if alien := sorted(set(keys) - set(filed_by)):
        raise StoreError(
            f"{table} is not filed by {', '.join(alien)}",
            f"It is filed by {', '.join(filed_by) or 'nothing: it is one file'}.",
        )
    for name, value in keys.items():
        if name == "plate":
            plate_name(value)
        elif name == "model_name":
            slug(value, "model name")
        elif not isinstance(value, Integral):
            raise StoreError(f"{name} {value!r} is no whole number", "Give it as an integer.")
    return keys
