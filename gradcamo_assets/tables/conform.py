"""Check and cast frames to the schema of their table before they are written.

Readers of the lake need no checks, since every frame was checked when it was written.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables.columns import Column, Table


def _is_castable(have: Any, want: Any) -> bool:
    """Whether a cast from ``have`` to ``want`` stays within a family of types: it can lose precision, never meaning."""
    if have in (want, pl.Null):
        return True
    if isinstance(want, pl.List):
        return isinstance(have, pl.List | pl.Array) and _is_castable(have.inner, want.inner)
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
    """Return the frame with the table's columns, in the table's order and types.

    Integers are cast to other integer types that hold the values and to floats, categories to text, and times with a
    time zone to UTC. NaN becomes NULL in scalar columns, so that no mean is NaN.

    Raises:
        StoreError: names unknown and missing columns, columns of a wrong type, NULLs and values that a column does not
            accept, and duplicate rows.
    """
    have, want = frame.schema, table.schema
    problems = []
    if unknown := [name for name in have if name not in want]:
        problems.append(f"unknown columns {', '.join(unknown)}")
    if missing := [name for name in want if name not in have]:
        problems.append(f"missing columns {', '.join(missing)}")
    problems += [
        f"{name} is {have[name]}, expected {dtype}"
        for name, dtype in want.items()
        if name in have and not _is_castable(have[name], dtype)
    ]
    if not problems:
        try:
            frame = frame.select(_cast(column, have[column.name]) for column in table.columns)
            problems = _row_problems(table, frame)
        except pl.exceptions.PolarsError as error:
            problems = [f"a value does not fit its column: {error}"]
    if problems:
        raise StoreError(
            f"the rows do not fit the table {table.name}: {'; '.join(problems)}",
            "Write exactly the columns that the table's schema lists.",
        )
    return frame


def _row_problems(table: Table, frame: pl.DataFrame) -> list[str]:
    problems = []
    for column in table.columns:
        values = frame[column.name]
        if not column.nullable and values.null_count():
            problems.append(f"{column.name} is NULL in {values.null_count()} rows")
        if column.allowed and (unknown := sorted(set(values.unique().drop_nulls()) - set(column.allowed))):
            problems.append(f"{column.name} holds {', '.join(unknown)}, expected {', '.join(column.allowed)}")
    identities = frame.select(table.unique)
    if len(duplicates := identities.filter(identities.is_duplicated())):
        problems.append(f"{len(duplicates)} rows share {', '.join(table.unique)}, such as {duplicates.row(0)}")
    return problems
