"""Write query results to standard output as a terminal table, CSV, JSON or Parquet."""

from __future__ import annotations

import shutil
import sys
from typing import Any, Literal

import polars as pl
import polars.selectors as cs
from pydantic_core import to_json

from gradcamo_assets.csv_text import to_csv
from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables.columns import KEY_COLUMNS

Format = Literal["table", "csv", "json", "parquet"]


def render(frame: pl.DataFrame, format: Format = "table") -> None:
    """Write a frame to standard output.

    Args:
        format: ``table`` is readable text, see ``format_table``. ``csv`` and ``json`` (an array of objects) keep every
            digit. CSV writes nested values as JSON, and texts as in ``to_csv``. Both write durations as in ISO 8601.
            JSON writes what its numbers cannot express as text: NaN, Infinity, and decimals of more than 15 digits.
            Parquet holds integers beyond 64 bits as text.

    Raises:
        StoreError: for an unknown format.
    """
    if format == "table":
        sys.stdout.write(format_table(frame, shutil.get_terminal_size((100, 24)).columns))
    elif format == "csv":
        nested = [column for column in frame.iter_columns() if column.dtype.is_nested()]
        texts = [pl.Series(c.name, [None if v is None else _json(v) for v in c.to_list()], pl.String) for c in nested]
        sys.stdout.write(to_csv(frame.with_columns(texts)))
    elif format == "json":
        # Python's datetime has no nanoseconds.
        exact = frame.with_columns(*_short_decimals(frame), cs.datetime("ns").dt.to_string("iso"))
        sys.stdout.write(_json(exact.to_dicts(), indent=1) + "\n")
    elif format == "parquet":
        # Other readers of Parquet do not know 128-bit integers.
        frame.with_columns(cs.by_dtype(pl.Int128, pl.UInt128).cast(pl.String)).write_parquet(sys.stdout.buffer)
    else:
        raise StoreError(f"unknown format {format!r}", "Choose table, csv, json or parquet.")


def _json(value: Any, indent: int | None = None) -> str:
    # Bytes are valid UTF-8: frames hold no other binary values (``answers``).
    return to_json(value, indent=indent, inf_nan_mode="strings").decode()


def _short_decimals(frame: pl.DataFrame) -> list[pl.Expr]:
    """Decimals of at most 15 digits, which numbers of JSON hold exactly; longer ones are written as text."""
    short = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Decimal) and kind.precision <= 15]
    return [pl.col(name).cast(pl.Float64) for name in short]


def format_table(frame: pl.DataFrame, width: int) -> str:
    """Format a frame as a table for the terminal, with four significant digits.

    If the table is wider than ``width`` characters, text and key columns with the same value in every row are moved
    above the table, and column names are broken at underscores.
    """
    lines, header = _table_lines(frame), ""
    if max(map(len, lines), default=0) > width:
        movable = set(frame.select(cs.string()).columns) | set(frame.columns) & set(KEY_COLUMNS.values())
        constant = [
            name for name in frame.columns if name in movable and len(frame) > 1 and frame[name].n_unique() == 1
        ]
        header = "".join(f"{name}: {frame[name][0]}\n" for name in constant)
        lines = _table_lines(frame.drop(constant).rename(lambda name: name.replace("_", "_\n")))
    return header + "\n".join(lines) + f"\n({len(frame)} row{'' if len(frame) == 1 else 's'})\n"


def _table_lines(frame: pl.DataFrame) -> list[str]:
    with pl.Config(
        tbl_formatting="NOTHING",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_cell_numeric_alignment="RIGHT",
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=60_000,
        fmt_str_lengths=60,
        fmt_table_cell_list_len=-1,
    ):
        return str(frame.with_columns(cs.float().round_sig_figs(4))).splitlines()
