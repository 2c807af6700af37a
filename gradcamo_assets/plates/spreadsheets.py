"""A table that a person made (CSV, TSV, XLSX), as text. Nothing here knows what its columns mean."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from gradcamo_assets.errors import PlateMapError

MAX_COLUMNS, MAX_ROWS, MAX_BYTES = 1_000, 100_000, 20_000_000
MAX_UNPACKED = 64 << 20
"""Bytes of a workbook, all its parts unpacked."""
_FORMULA = r"^(=|#(REF|VALUE|DIV/0|NAME|NULL|NUM)[!?])"


def read_table(path: Path, times: int = 1) -> tuple[pl.DataFrame, bool]:
    """Every named column as text, without blank rows; and whether its numbers have decimal commas.

    CSV with ``,``, ``;`` or tab (whatever the header uses most; ``;`` goes with decimal commas), in UTF-8, UTF-16 with
    its mark or Windows' Latin-1; or the first sheet of an XLSX file (ECMA-376 part 1), formulas by their saved values.

    Args:
        times: how many times the usual 100,000 rows and 20 MB are allowed.

    Raises:
        PlateMapError: a file that cannot be read as a table or is too large, a formula, rows that differ in length, two
            columns of one name.
    """
    try:
        if path.stat().st_size > MAX_BYTES * times:
            raise ValueError(f"it is larger than {MAX_BYTES * times // 10**6} MB")
        data = path.read_bytes()
        packed = data.startswith(b"PK\3\4")
        if not packed and (path.suffix.lower().startswith(".xls") or data.startswith(b"\xd0\xcf\x11\xe0")):
            raise ValueError("it is no XLSX workbook")
        text = "" if packed else _decoded(data)
        separator = _separator(text)
        rows = _sheet(data) if packed else csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return _frame(rows, MAX_ROWS * times), separator == ";"
    except (OSError, ValueError, csv.Error) as error:
        remedy = "Save it again as CSV, TSV or XLSX, one table from the top."
        raise PlateMapError(f"unreadable table: {error}", remedy, path=path) from error


def _frame(rows: Iterator[list[str]], most: int) -> pl.DataFrame:
    full = (row for row in rows if any(cell.strip() for cell in row))
    header = [name.strip() for name in next(full, [])]
    if not header:
        raise ValueError("it is empty")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise ValueError(f"two columns are called {twice!r}")
    kept: list[list[str]] = []
    for row in full:
        if len(row) != len(header):
            raise ValueError(f"the row that begins with {row[0][:40]!r} has {len(row)} cells, the header {len(header)}")
        if len(kept) == most:
            raise ValueError(f"it has more than {most:,} rows")
        kept.append(row)
    columns = zip(header, zip(*kept, strict=True) if kept else [()] * len(header), strict=True)
    frame = pl.DataFrame([pl.Series(name, cells, dtype=pl.String).str.strip_chars() for name, cells in columns if name])
    for column in frame:
        if len(formulas := column.filter(column.str.contains(_FORMULA))):
            raise ValueError(f"{formulas[0][:40]!r} is a formula or its error, not a value")
    return frame


def _decoded(data: bytes) -> str:
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ["utf-16"] if marked else ["utf-8-sig", "cp1252", "latin-1"]:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise ValueError("it is no text")
    if "\0" in text:
        raise ValueError("it holds NUL bytes, so it is no text")
    # Excel's own first line, with which it is told the separator: the header tells it too.
    return re.sub(r"\Asep=.\r?\n", "", text)


def _separator(text: str) -> str:
    header = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0])
    separator = max("\t;,", key=header.count)
    if header.count(separator) >= MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    return separator


def _sheet(data: bytes) -> Iterator[list[str]]:
    """The rows of a workbook's first sheet, none shorter than its first; formulas count by their saved values."""
    width = 0
    for number, (row, formulas) in enumerate(_cells(data), start=1):
        if any(value is None and formula is not None for value, formula in zip(row, formulas, strict=True)):
            raise ValueError(f"a formula in row {number} was never computed: open the file in Excel and save it")
        cells = ["" if value is None else str(value).strip() for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if len(cells) > MAX_COLUMNS:
            raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
        width = width or len(cells)
        yield cells + [""] * (width - len(cells))


def _cells(data: bytes) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Values and formulas of each row, both None in a blank cell."""
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as book:
            if sum(part.file_size for part in book.infolist()) > MAX_UNPACKED:
                raise _Refused(f"unpacked it is larger than {MAX_UNPACKED >> 20} MB")
            if any(b"<!DOCTYPE" in book.read(part).replace(b"\0", b"") for part in book.infolist()):
                raise _Refused("a workbook declares no document type")
        sheets = []
        for values in (True, False):
            sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=values).worksheets[0]
            # What the file says of its own size may be anything.
            sheet.reset_dimensions()
            sheets.append(sheet.iter_rows(values_only=True))
        yield from zip(*sheets, strict=True)
    except _Refused:
        raise
    # Neither zip nor XML nor openpyxl have an error in common.
    except Exception as error:
        raise _Refused(f"it is no sound XLSX workbook ({' '.join(str(error).split())[:100]})") from error


class _Refused(ValueError):
    """What is wrong with a workbook, in our words."""
