"""Read hand-made tables (CSV, TSV, XLSX) as text. The meaning of the columns is left to the caller."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from gradcamo_assets.errors import PlateMapError, one_line

MAX_COLUMNS, MAX_ROWS, MAX_BYTES = 1_000, 100_000, 20_000_000
MAX_UNPACKED = 64 << 20
"""Total unpacked size of a workbook, in bytes."""
MAX_NAME_LENGTH = 255
"""Characters of a column name."""
_FORMULA = r"^(=|#(REF|VALUE|DIV/0|NAME|NULL|NUM)[!?])"


def read_table(path: Path, size_factor: int = 1) -> tuple[pl.DataFrame, bool]:
    """Read every named column as text, without blank rows. Also return whether numbers have decimal commas.

    CSV may use ``,``, ``;`` or tab: the most frequent one in the header counts, and ``;`` implies decimal commas. It
    may be encoded in UTF-8, in UTF-16 with a byte order mark, or in Windows Latin-1. Of an XLSX file (ECMA-376 part 1)
    the first sheet is read, with the saved values of formulas.

    Args:
        size_factor: multiplies the limits of 100,000 rows and 20 MB.

    Raises:
        PlateMapError: not a readable table, too large, a formula, rows of different lengths, or two columns of one
            name.
    """
    try:
        if path.stat().st_size > MAX_BYTES * size_factor:
            raise ValueError(f"it is larger than {MAX_BYTES * size_factor // 10**6} MB")
        data = path.read_bytes()
        is_zip = data.startswith(b"PK\3\4")
        if not is_zip and (path.suffix.lower().startswith(".xls") or data.startswith(b"\xd0\xcf\x11\xe0")):
            raise ValueError("it is not an XLSX workbook")
        text = "" if is_zip else _decode(data)
        separator = _find_separator(text)
        if is_zip:
            rows = _read_first_sheet(data)
        else:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return _build_frame(rows, MAX_ROWS * size_factor), separator == ";"
    except (OSError, ValueError, csv.Error) as error:
        remedy = "Save it again as CSV, TSV or XLSX, with one table that begins in the first row."
        raise PlateMapError(f"unreadable table: {error}", remedy, path=path) from error


def _build_frame(rows: Iterator[list[str]], max_rows: int) -> pl.DataFrame:
    filled_rows = (row for row in rows if any(cell.strip() for cell in row))
    header = [name.strip() for name in next(filled_rows, [])]
    if not header:
        raise ValueError("it is empty")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    if too_long := next((name for name in header if len(name) > MAX_NAME_LENGTH), None):
        raise ValueError(f"the name of column {too_long[:40]!r} has more than {MAX_NAME_LENGTH} characters")
    if repeated := next((name for name in header if name and header.count(name) > 1), None):
        raise ValueError(f"two columns are called {repeated!r}")
    kept: list[list[str]] = []
    for row in filled_rows:
        if len(row) != len(header):
            raise ValueError(f"the row starting with {row[0][:40]!r} has {len(row)} cells, the header {len(header)}")
        if len(kept) == max_rows:
            raise ValueError(f"it has more than {max_rows:,} rows")
        kept.append(row)
    columns = zip(header, zip(*kept, strict=True) if kept else [()] * len(header), strict=True)
    frame = pl.DataFrame([pl.Series(name, cells, dtype=pl.String).str.strip_chars() for name, cells in columns if name])
    for column in frame:
        if len(formulas := column.filter(column.str.contains(_FORMULA))):
            raise ValueError(f"{formulas[0][:40]!r} is a formula or a formula error, not a value")
    # ``to_csv`` and users of Excel write '+x for the text +x.
    return frame.with_columns(pl.all().str.replace(r"^'([+@-])", "$1"))


def _decode(data: bytes) -> str:
    has_utf16_mark = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ["utf-16"] if has_utf16_mark else ["utf-8-sig", "cp1252", "latin-1"]:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise ValueError("it is not text")
    if "\0" in text:
        raise ValueError("it contains NUL bytes, so it is not text")
    # Excel may name the separator in a first line; the header shows it anyway.
    return re.sub(r"\Asep=.\r?\n", "", text)


def _find_separator(text: str) -> str:
    header = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0])
    separator = max("\t;,", key=header.count)
    if header.count(separator) >= MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    return separator


def _read_first_sheet(data: bytes) -> Iterator[list[str]]:
    """Yield the rows of a workbook's first sheet, padded to the length of its first row."""
    width = 0
    for number, (row, formulas) in enumerate(_iter_cells(data), start=1):
        if any(value is None and formula is not None for value, formula in zip(row, formulas, strict=True)):
            raise ValueError(f"a formula in row {number} was never computed: open the file in Excel and save it")
        cells = ["" if value is None else str(value).strip() for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if len(cells) > MAX_COLUMNS:
            raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
        width = width or len(cells)
        yield cells + [""] * (width - len(cells))


def _iter_cells(data: bytes) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield the values and the formulas of each row; both are None in a blank cell."""
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as book:
            if sum(part.file_size for part in book.infolist()) > MAX_UNPACKED:
                raise _WorkbookError(f"unpacked it is larger than {MAX_UNPACKED >> 20} MB")
            if any(b"<!DOCTYPE" in book.read(part).replace(b"\0", b"") for part in book.infolist()):
                raise _WorkbookError("it declares a document type, which no XLSX workbook needs")
        sheets = []
        for values in (True, False):
            sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=values).worksheets[0]
            # The size declared in the file may be wrong.
            sheet.reset_dimensions()
            sheets.append(sheet.iter_rows(values_only=True))
        yield from zip(*sheets, strict=True)
    except _WorkbookError:
        raise
    # zipfile, the XML parser and openpyxl share no error class.
    except Exception as error:
        raise _WorkbookError(f"it is a damaged XLSX workbook ({one_line(error, 100)})") from error


class _WorkbookError(ValueError):
    """A workbook is rejected; the message is our own."""
