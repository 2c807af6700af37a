"""Convert the answer of a query to a polars frame in which every value is right.

The direct conversion reads 128-bit integers as decimals (the largest as -1), drops time zones of times, and fails on
intervals and unions. Infinite times end the process that prints them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date

import duckdb
import polars as pl
import polars.selectors as cs

from gradcamo_assets.errors import StoreError

_INTEGERS = {"HUGEINT", "UHUGEINT"}
_AS_TEXT = re.compile(r"BLOB|BIT|BIGNUM|GEOMETRY|TIME WITH TIME ZONE|TIME_NS|UNION\(.*|VARIANT", re.DOTALL)
_UNSUPPORTED = re.compile(rf"\b(HUGEINT|UHUGEINT|INTERVAL|{_AS_TEXT.pattern})\b|UNION", re.DOTALL)
_UNIX_EPOCH = date(1970, 1, 1).toordinal()
_TICKS_PER_DAY = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def to_frame(answer: duckdb.DuckDBPyRelation) -> pl.DataFrame:
    """Fetch an answer.

    Returns:
        128-bit integers: as Int64 if all fit, else Int128 or UInt128. Intervals: as Duration (microseconds) if none has
        months, else as text. Values of types that polars lacks: as DuckDB's text. Nested values that contain such a
        type: as JSON text.

    Raises:
        StoreError: for an infinite time or a year outside 1 to 9999.
    """
    kinds = [str(kind) for kind in answer.types]
    columns = [_fetched_as(kind, f"#{place}") for place, kind in enumerate(kinds, 1)]
    if any(column != f"#{place}" for place, column in enumerate(columns, 1)):
        names = ['"' + name.replace('"', '""') + '"' for name in answer.columns]
        answer = answer.project(", ".join(f"{column} AS {name}" for column, name in zip(columns, names, strict=True)))
    frame = answer.pl()
    _check_times(frame)
    return frame.with_columns(
        _read_integers(column) if kind in _INTEGERS else _read_intervals(column)
        for column, kind in zip(frame.get_columns(), kinds, strict=True)
        if kind in _INTEGERS or kind == "INTERVAL"
    )


def _fetched_as(kind: str, column: str) -> str:
    """The SQL expression that fetches a column of this type."""
    if kind == "INTERVAL":
        months = f"12 * date_part('year', {column}) + date_part('month', {column})"
        parts = f"{{'months': {months}, 'us': epoch_us({column}), 'text': {column}::VARCHAR}}"
        return f"if({column} IS NULL, NULL, {parts})"
    if kind in _INTEGERS or _AS_TEXT.fullmatch(kind):
        return f"{column}::VARCHAR"
    is_nested = kind.endswith("]") or ("(" in kind and not kind.startswith(("DECIMAL", "ENUM")))
    return f"to_json({column})::VARCHAR" if is_nested and _UNSUPPORTED.search(kind) else column


def _read_integers(texts: pl.Series) -> pl.Series:
    for dtype in (pl.Int64, pl.Int128):
        with suppress(pl.exceptions.InvalidOperationError):
            return texts.cast(dtype)
    return texts.cast(pl.UInt128)


def _read_intervals(parts: pl.Series) -> pl.Series:
    if (parts.struct.field("months") != 0).any():
        return parts.struct.field("text").alias(parts.name)
    return parts.struct.field("us").cast(pl.Duration("us")).alias(parts.name)


def _check_times(frame: pl.DataFrame) -> None:
    for column in frame.select(cs.date() | cs.datetime()).iter_columns():
        ticks = _TICKS_PER_DAY.get(getattr(column.dtype, "time_unit", ""), 1)
        days = column.to_physical().drop_nulls() // ticks + _UNIX_EPOCH
        if len(days) and not 1 <= days.min() <= days.max() <= date.max.toordinal():  # type: ignore[operator]
            raise StoreError(
                f"column {column.name!r} has infinite times or years outside 1 to 9999",
                "Cast the column to VARCHAR.",
            )
