"""Write query results to standard output as a terminal table, CSV, JSON or Parquet."""

from __future__ import annotations

import json
import shutil
import sys
from decimal import Decimal
from typing import Any, Literal

import polars as pl
import polars.selectors as cs

from gradcamo_assets.csv_text import to_csv
from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables.columns import KEY_COLUMNS

Format = Literal["table", "csv", "json", "parquet"]


def render(frame: pl.DataFrame, format: Format = "table") -> None:
    """Write a frame to standard output.

    Args:
        format: ``table`` is readable text, see ``format_table``. ``csv`` and ``json`` (an array of objects) keep every
            digit. CSV writes nested values as JSON, and texts as in ``to_csv``.

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
        sys.stdout.write(_json(frame.with_columns(cs.float().fill_nan(None)).to_dicts(), indent=1) + "\n")
    elif format == "parquet":
        frame.write_parquet(sys.stdout.buffer)
    else:
        raise StoreError(f"unknown format {format!r}", "Choose table, csv, json or parquet.")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, default=lambda v: float(v) if isinstance(v, Decimal) else str(v), indent=indent)


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
