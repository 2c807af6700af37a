"""How a table or view is described: columns with type and comment, the key its files are filed under, what names a row.

The tables are in ``schema`` and ``schema_scores``, which share the columns at the end of this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

TEXTS = pl.List(pl.String)
NUMBERS = pl.List(pl.Float64)
TIME = pl.Datetime("us")

KEY_COLUMNS = {"plate": "Metadata_Plate", "site": "Metadata_Site", "model_run": "model_run"}
"""What a commit to the lake may replace, and the column that holds it."""


@dataclass(frozen=True)
class Column:
    """One column. ``allowed`` lists the only values a text column may hold, NULL aside."""

    name: str
    dtype: pl.DataType | type[pl.DataType]
    comment: str
    nullable: bool = True
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        keys: (of ``KEY_COLUMNS``) what a commit to the lake replaces together; none: rows are merged one by one.
        partitioned_by: those of ``keys`` that have files of their own. Small files of one partition can be merged.
        unique: the columns that name a row.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    partitioned_by: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()

    @property
    def polars(self) -> dict[str, Any]:
        """Column name to polars type, as ``pl.DataFrame(rows, schema=...)`` takes it."""
        return {column.name: column.dtype for column in self.columns}

    @property
    def partitions(self) -> list[str]:
        """The columns that have files of their own: they stand in the paths of files, not in the files."""
        return [KEY_COLUMNS[name] for name in self.partitioned_by]

    @property
    def counted(self) -> list[str]:
        """Columns whose extremes Delta's log keeps: what a commit looks for in files, and all of a version table."""
        wanted = [KEY_COLUMNS[name] for name in self.keys if name not in self.partitioned_by]
        return wanted + [column.name for column in self.columns if column in VERSIONS]

    def empty(self) -> pl.DataFrame:
        """A frame of no rows with the table's columns."""
        return pl.DataFrame(schema=self.polars)


@dataclass(frozen=True)
class View:
    """One view: its query, and a comment for every column that means something else than in the tables it reads."""

    name: str
    comment: str
    sql: str
    columns: dict[str, str] = field(default_factory=dict)


VERSIONS = (
    Column("version", pl.String, "Version (digest) of what stands there now", nullable=False),
    Column("made_from", pl.String, "Version of what it was made from; NULL: of nothing that has one"),
    Column(
        "n", pl.Int64, "How many there are: readable fields, fields with masks, cells, crops or scores", nullable=False
    ),
)


def _key(name: str, dtype: Any, comment: str) -> Column:
    return Column(name, dtype, comment, nullable=False)


PLATE = _key("Metadata_Plate", pl.String, "Plate name")
WELL = _key("Metadata_Well", pl.String, "Well, row letters and two-digit column: A01")
SITE = _key("Metadata_Site", pl.Int32, "Field of view within the well, from 1, in natural order of the field paths")
CELL_ID = _key("Metadata_CellID", pl.String, "Cell, as plate/well/site/label")
DOSE = (
    Column("Metadata_Compound", pl.String, "Compound; NULL where the plate map names none"),
    Column("Metadata_Dose", pl.Float64, "Dose in Metadata_Dose_Unit, 0 for controls"),
    Column("Metadata_Dose_Unit", pl.String, "Unit of the dose, as the plate map gives it"),
)
DOSE_NAMES = tuple(column.name for column in DOSE)
_KINDS = ("trt", "negcon", "poscon", "empty")
TREATMENT = (
    *DOSE,
    Column("Metadata_Dose_Rank", pl.Int32, "Rank of the dose among the doses of its compound, 0 for controls"),
    Column("Metadata_pert_type", pl.String, f"Kind of treatment: {', '.join(_KINDS)}", allowed=_KINDS),
)
CELL = (PLATE, WELL, SITE, *TREATMENT, CELL_ID)
MODEL = (
    _key("model_name", pl.String, "Registered model name"),
    _key("model_version", pl.Int32, "Registered model version"),
    _key("model_run", pl.String, "MLflow run that trained the version: its identity, since version numbers begin anew"),
)
MADE_FROM = (
    Column("mask_version", pl.String, "Version (digest) of the masks the row comes from"),
    Column("crop_version", pl.String, "Version (digest) of the crops the row comes from"),
)
