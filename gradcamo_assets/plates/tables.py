"""A table that a person made (CSV, TSV, XLSX), as text. Nothing here knows what its columns mean.

Workbooks are parsed here, since calamine rounds numbers among text to nine decimals (1e-10 becomes 0) and allocates the
whole rectangle up to the last cell used, which can end the process.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, iterparse

import polars as pl

from gradcamo_assets.common.errors import PlateMapError

MAX_COLUMNS, MAX_ROWS, MAX_BYTES = 1_000, 100_000, 20_000_000
MAX_UNPACKED, MAX_ELEMENTS = 64 << 20, 1_000_000
"""Bytes of a workbook, all its parts unpacked, and XML elements of one part."""
_FORMULA = r"^(=|#(REF|VALUE|DIV/0|NAME|NULL|NUM)[!?])"
_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    EOFError,
    csv.Error,
    ParseError,
    zipfile.BadZipFile,
    zlib.error,
)


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
    except _BROKEN as error:
        # What broken links between the parts of a workbook raise says nothing to who made it.
        why = "it is no sound XLSX workbook" if isinstance(error, (LookupError, RuntimeError)) else str(error)
        raise PlateMapError(
            f"unreadable table: {why}", "Save it again as CSV, TSV or XLSX, one table from the top.", path=path
        ) from error


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
    """The rows of a workbook's first sheet, none shorter than its first."""
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        if sum(part.file_size for part in book.infolist()) > MAX_UNPACKED:
            raise ValueError(f"unpacked it is larger than {MAX_UNPACKED >> 20} MB")
        links = _elements(book, "_rels/workbook.xml.rels", "Relationship")
        targets = {link.get("Id"): link.get("Target", "") for link in links}
        first = next(_elements(book, "workbook.xml", "sheet")).attrib
        name = targets[next(value for key, value in first.items() if key.endswith("}id"))]
        shared = [_runs(item) for item in _elements(book, "sharedStrings.xml", "si")]
        width = 0
        for row in _elements(book, name, "row"):
            cells: dict[int, str] = {}
            place = -1
            for cell in row:
                place = _column(reference) if (reference := cell.get("r")) else place + 1
                if text := _value(cell, shared).strip():
                    cells[place] = text
            last = max(cells, default=-1)
            if last >= MAX_COLUMNS:
                raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
            width = width or last + 1
            yield [cells.get(place, "") for place in range(max(width, last + 1))]


def _elements(book: zipfile.ZipFile, name: str, tag: str) -> Iterator[Element]:
    """The elements ``tag`` of one part of the workbook, none where it is not there; each is emptied after its use."""
    name = posixpath.normpath(posixpath.join("/xl", name)).lstrip("/")
    if name not in book.namelist():
        return
    part = book.read(name)
    if b"<!DOCTYPE" in part.replace(b"\0", b""):
        raise ValueError("a workbook declares no document type")
    for count, (_, element) in enumerate(iterparse(io.BytesIO(part))):
        if count == MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_ELEMENTS:,} elements")
        if element.tag.rpartition("}")[2] == tag:
            yield element
            element.clear()


def _value(cell: Element, shared: list[str]) -> str:
    """A cell's text; a formula counts as the value that it had when the file was saved."""
    kind, value = cell.get("t"), cell.findtext("{*}v") or ""
    if kind == "inlineStr":
        return "".join(map(_runs, cell.iterfind("{*}is")))
    if not value and kind != "str" and cell.find("{*}f") is not None:
        raise ValueError(f"the formula in {cell.get('r')} was never computed: open the file in Excel and save it")
    return shared[int(value)] if kind == "s" and value else value


def _runs(item: Element) -> str:
    """A text and its formatted runs, without phonetic hints."""
    return "".join(part.text or "" for path in ("{*}t", "{*}r/{*}t") for part in item.iterfind(path))


def _column(reference: str) -> int:
    """0-based column of a cell's reference: 2 for ``C7``."""
    match = re.fullmatch("([A-Z]{1,3})[0-9]{1,7}", reference)
    if match is None:
        raise ValueError(f"{reference[:40]!r} is no cell")
    index = 0
    for letter in match[1]:
        index = index * 26 + ord(letter) - ord("A") + 1
    return index - 1
