"""Does a frame fit its table? Checked once, before anything is written, so that the lake needs no checks when read."""

from __future__ import annotations

from typing import Any

import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables.columns import Column, Table


def _fits(have: Any, want: Any) -> bool:
    """Whether one type may stand for another: same family, so that only precision can be lost, never meaning."""
    if have in (want, pl.Null):
        return True
    if isinstance(want, pl.List):
        return isinstance(have, pl.List | pl.Array) and _fits(have.inner, want.inner)
    if want.is_float():
        return have.is_numeric()
    if want.is_integer():
        return have.is_integer()
    if want == pl.String:
        return have in (pl.Categorical, pl.Enum)
    return want == pl.Datetime and have == pl.Datetime


def _cast(column: Column, have: Any) -> pl.Expr:
    value = pl.col(column.name)
    if isinstance(have, pl.Datetime) and have.time_zone:
        value = value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    value = value.cast(column.dtype)
    return value.fill_nan(None) if column.dtype == pl.Float64 else value


def conform(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with the table's columns in the table's order and types.

    Integers may stand for other integers that hold them and for floats, categories for text, times with a zone for UTC.
    NaN becomes NULL in scalar columns: no mean may ever meet one.

    Raises:
        StoreError: naming unknown or missing columns, columns of a wrong type, NULLs or values that a column does not
            take, or a row that stands twice.
    """
    have, want = frame.schema, table.polars
    problems = []
    if unknown := [name for name in have if name not in want]:
        problems.append(f"unknown columns {', '.join(unknown)}")
    if missing := [name for name in want if name not in have]:
        problems.append(f"missing columns {', '.join(missing)}")
    problems += [
        f"{name} is {have[name]} where {dtype} is wanted"
        for name, dtype in want.items()
        if name in have and not _fits(have[name], dtype)
    ]
    if not problems:
        try:
            frame = frame.select(_cast(column, have[column.name]) for column in table.columns)
            problems = _bad_rows(table, frame)
        except pl.exceptions.PolarsError as error:
            problems = [f"a value does not fit its column: {error}"]
    if problems:
        raise StoreError(
            f"the rows do not fit the table {table.name}: {'; '.join(problems)}",
            "Write exactly the columns that the warehouse's schema lists for it.",
        )
    return frame


def _bad_rows(table: Table, frame: pl.DataFrame) -> list[str]:
    problems = []
    for column in table.columns:
        values = frame[column.name]
        if not column.nullable and values.null_count():
            problems.append(f"{column.name} is NULL in {values.null_count()} rows")
        if column.allowed and (odd := sorted(set(values.unique().drop_nulls()) - set(column.allowed))):
            problems.append(f"{column.name} holds {', '.join(odd)}, where only {', '.join(column.allowed)} are known")
    names = frame.select(table.unique)
    if len(twice := names.filter(names.is_duplicated())):
        problems.append(f"{len(twice)} rows share {', '.join(table.unique)}, such as {twice.row(0)}")
    return problems
