"""Write tables as CSV that spreadsheets do not execute."""

from __future__ import annotations

import polars as pl

_FORMULA_START = r"^([=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])"
"""Spreadsheets read a cell that begins with one of these as a formula (OWASP, CSV injection)."""


def to_csv(frame: pl.DataFrame) -> str:
    """Return a frame as CSV, with ``'`` before texts and column names that a spreadsheet would read as a formula.

    Numbers stay as they are; durations are written as in ISO 8601.
    """
    texts = pl.selectors.by_dtype(pl.String, pl.Categorical, pl.Enum)
    durations = pl.selectors.duration().dt.to_string("iso")
    escaped = frame.with_columns(texts.cast(pl.String).str.replace(_FORMULA_START, "'$1"), durations)
    names = pl.Series(frame.columns, dtype=pl.String).str.replace(_FORMULA_START, "'$1")
    return escaped.rename(dict(zip(frame.columns, names, strict=True))).write_csv()
