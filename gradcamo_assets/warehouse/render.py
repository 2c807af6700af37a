"""Answers as text or files: a table for the terminal, CSV, JSON, Parquet."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl
import polars.selectors as cs

from gradcamo_assets.common.errors import StoreError
from gradcamo_assets.common.files import replaced_file
from gradcamo_assets.warehouse.columns import KEY_COLUMNS

Format = Literal["table", "csv", "json", "parquet"]
_LONGEST_CELL = 60


def render(frame: pl.DataFrame, format: Format = "table", out: Path | IO[Any] | None = None) -> None:
    """Write a frame.

    Args:
        format: ``table`` is for people: four digits, columns that say the same in every row stand above a table that
            would be too wide. ``csv`` and ``json`` (an array of objects) keep every digit, and nested values as JSON.
        out: a path (written whole or not at all), a text or binary stream, or None for standard output.

    Raises:
        StoreError: for another format.
    """
    if format == "table":
        content = as_table(frame, shutil.get_terminal_size((100, 24)).columns).encode()
    elif format == "csv":
        content = _flat(frame).write_csv().encode()
    elif format == "json":
        rows = frame.with_columns(cs.float().fill_nan(None)).to_dicts()
        content = (json.dumps(rows, default=_plain, indent=1) + "\n").encode()
    elif format == "parquet":
        content = _parquet(frame)
    else:
        raise StoreError(f"there is no format {format!r}", "Choose table, csv, json or parquet.")
    if isinstance(out, Path):
        with replaced_file(out) as temporary:
            temporary.write_bytes(content)
        return
    stream: Any = out or sys.stdout
    if hasattr(stream, "encoding") and format != "parquet":
        stream.write(content.decode())
    else:
        getattr(stream, "buffer", stream).write(content)


def _plain(value: Any) -> float | str:
    return float(value) if isinstance(value, Decimal) else str(value)


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Nested values as JSON text, since CSV has none."""
    return frame.with_columns(
        pl.Series(column.name, [None if v is None else json.dumps(v, default=_plain) for v in column.to_list()])
        for column in frame.iter_columns()
        if column.dtype.is_nested()
    )


def as_table(frame: pl.DataFrame, width: int) -> str:
    """A frame as lines of text for people, ``width`` characters wide where that can be had."""
    names = frame.columns
    columns = {name: [_text(value) for value in frame[name].to_list()] for name in names}
    head: list[str] = []
    if len(frame) > 1 and _width(columns, {name: [name] for name in names}) > width:
        text = {n for n in names if frame.schema[n] == pl.String} | set(KEY_COLUMNS.values())
        alike = [n for n in names if n in text and len(set(columns[n])) == 1]
        head = [f"{name}: {columns.pop(name)[0]}" for name in alike if len(columns) > 1]
    titles = {name: [name] for name in columns}
    if _width(columns, titles) > width:
        titles = {name: name.removeprefix("Metadata_").replace("_", "_ ").split() for name in columns}
    depth = max((len(title) for title in titles.values()), default=0)
    right = {name for name in columns if frame.schema[name].is_numeric()}
    widths = {name: max(map(len, [*titles[name], *columns[name]])) for name in columns}

    def line(cells: Sequence[str]) -> str:
        pairs = zip(columns, cells, strict=True)
        return "  ".join(c.rjust(widths[n]) if n in right else c.ljust(widths[n]) for n, c in pairs).rstrip()

    padded = [[""] * (depth - len(title)) + title for title in titles.values()]
    lines = [*head, *(line(cells) for cells in zip(*padded, strict=True))]
    lines.append("  ".join("─" * widths[name] for name in columns))
    lines += [line(cells) for cells in zip(*columns.values(), strict=True)]
    lines.append(f"({len(frame)} row{'' if len(frame) == 1 else 's'})")
    return "\n".join(lines) + "\n"


def _width(columns: dict[str, list[str]], titles: dict[str, list[str]]) -> int:
    return sum(2 + max(map(len, [*titles[name], *columns[name]])) for name in columns) - 2


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | dict):
        value = json.dumps(value, default=_plain)
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
