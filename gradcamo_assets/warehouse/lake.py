"""The lake: the source of truth. One Parquet file a table and key (plate, site, model version), whole or not at all.

Nothing here knows DuckDB: the QC database is made from these files and can be made again at any time.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from gradcamo_assets.common.errors import StoreError
from gradcamo_assets.common.files import replaced_file
from gradcamo_assets.common.names import plate_name, slug
from gradcamo_assets.warehouse.columns import KEY_COLUMNS, Table
from gradcamo_assets.warehouse.conform import conform
from gradcamo_assets.warehouse.schema import LAKE_TABLES, lake_table


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
        table, _, rest = path.removesuffix(".parquet").partition("/")
        pairs = [part.partition("=") for part in rest.split("/")] if rest != "all" else []
        if table not in LAKE_TABLES or tuple(name for name, _, _ in pairs) != LAKE_TABLES[table].keys:
            return None
        values: dict[str, Any] = {name: value for name, _, value in pairs}
        try:
            for name in ("site", "model_version"):
                if name in values:
                    values[name] = int(values[name])
        except ValueError:
            return None
        return cls(table, **values)


@dataclass(frozen=True)
class Lake:
    """The tables under one folder. Writers of different keys never meet; of one key, the last one wins whole."""

    root: Path

    def write(
        self,
        table: str,
        frame: pl.DataFrame,
        *,
        plate: str | None = None,
        site: int | None = None,
        model_name: str | None = None,
        model_version: int | None = None,
    ) -> Path:
        """Replace what the lake holds under one key. The path of the file.

        The keys to give are those of ``lake_table(table).keys``; ``model_name`` may be left out where the rows say it.

        Raises:
            StoreError: where the rows do not fit the table or do not lie in the key.
        """
        description = lake_table(table)
        rows = conform(description, frame)
        if model_name is None and "model_name" in description.keys and rows["model_name"].n_unique() == 1:
            model_name = rows["model_name"][0]
        key = self._key(table, plate=plate, site=site, model_name=model_name, model_version=model_version)
        if wanted := sorted(name for name in description.keys if getattr(key, name) is None):
            raise StoreError(f"{table} is filed by {', '.join(description.keys)}", f"Give {', '.join(wanted)} too.")
        self._check_rows(description, rows, key)
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
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{table}.lock"):
            both = pl.concat([self.read(table), conform(description, frame)])
            return self.write(table, both.unique(description.unique, keep="last", maintain_order=True))

    def keys(self, table: str, **keys: Any) -> list[Key]:
        """What is there, sorted by path; ``keys`` (such as ``plate="P1", model_version=3``) narrow it."""
        wanted = {name: value for name, value in self._checked(table, keys).items() if value is not None}
        found = (key for key, _ in self.files(table))
        return [key for key in found if all(getattr(key, name) == value for name, value in wanted.items())]

    def files(self, table: str) -> Iterator[tuple[Key, Path]]:
        """Every file of a table with its key, sorted by path. Files that are none of the lake's are left alone."""
        for path in sorted((self.root / lake_table(table).name).rglob("*.parquet")):
            if key := Key.of_path(path.relative_to(self.root).as_posix()):
                yield key, path

    def scan(self, table: str, **keys: Any) -> pl.LazyFrame:
        """The rows under ``keys`` (all, without any), lazily; none: an empty frame with the table's columns."""
        paths = [self.root / key.path for key in self.keys(table, **keys)]
        return pl.scan_parquet(paths, hive_partitioning=False) if paths else lake_table(table).empty().lazy()

    def read(self, table: str, **keys: Any) -> pl.DataFrame:
        """The rows under ``keys``. Polars' own errors name a file that is damaged.

        Raises:
            StoreError: where a file cannot be read.
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

    def _key(self, table: str, **keys: Any) -> Key:
        return Key(table, **self._checked(table, keys))

    def _checked(self, table: str, keys: dict[str, Any]) -> dict[str, Any]:
        """The keys, if the table is filed by them and their values are safe in a path."""
        given = {name: value for name, value in keys.items() if value is not None}
        if alien := sorted(set(given) - set(lake_table(table).keys)):
            raise StoreError(
                f"{table} is not filed by {', '.join(alien)}",
                f"It is filed by {', '.join(lake_table(table).keys) or 'nothing: it is one file'}.",
            )
        if "plate" in given:
            plate_name(given["plate"])
        if "model_name" in given:
            slug(given["model_name"], "model name")
        for name in given.keys() & {"site", "model_version"}:
            try:
                given[name] = operator.index(given[name])
            except TypeError as error:
                raise StoreError(f"{name} {given[name]!r} is no whole number", "Give it as an integer.") from error
        return given

    @staticmethod
    def _check_rows(table: Table, rows: pl.DataFrame, key: Key) -> None:
        for name in table.keys:
            astray = rows.filter(pl.col(KEY_COLUMNS[name]) != getattr(key, name))
            if len(astray):
                raise StoreError(
                    f"{len(astray)} rows of {table.name} have {KEY_COLUMNS[name]} {astray[KEY_COLUMNS[name]][0]}, "
                    f"but were to be filed under {name} {getattr(key, name)}",
                    "Write every row under its own key.",
                    plate=key.plate,
                    site=key.site,
                )
