"""How a table is described: columns with type and comment, the key its files are filed under, what names a row.

The descriptions themselves are in the ``schema_*`` modules; ``schema`` gathers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

TEXTS = pl.List(pl.String)
NUMBERS = pl.List(pl.Float64)
VECTOR = pl.List(pl.Float32)
TIME = pl.Datetime("us")
METRICS = pl.Map(pl.String, pl.Float64)

_SQL_TYPES: dict[Any, str] = {
    pl.String: "VARCHAR",
    pl.Int32: "INTEGER",
    pl.Int64: "BIGINT",
    pl.Float32: "FLOAT",
    pl.Float64: "DOUBLE",
    pl.Boolean: "BOOLEAN",
    TIME: "TIMESTAMP",
    METRICS: "MAP(VARCHAR, DOUBLE)",
}

KEY_COLUMNS = {
    "plate": "Metadata_Plate",
    "site": "Metadata_Site",
    "model_name": "model_name",
    "model_version": "model_version",
}


@dataclass(frozen=True)
class Column:
    """One column: polars type in the lake, DuckDB type in the database, and what it means.

    ``allowed`` lists the only values a text column may hold, NULL aside.
    """

    name: str
    dtype: pl.DataType | type[pl.DataType]
    comment: str
    nullable: bool = True
    allowed: tuple[str, ...] = ()

    @property
    def sql_type(self) -> str:
        """The DuckDB type."""
        if isinstance(self.dtype, pl.List):
            return f"{_SQL_TYPES[self.dtype.inner]}[]"
        return _SQL_TYPES[self.dtype]


@dataclass(frozen=True)
class Table:
    """One table.

    ``keys`` (of ``plate``, ``site``, ``model_name``, ``model_version``) say which file of the lake a row is filed
    under, and so what is replaced together; no keys: one file for all. ``unique`` columns name a row.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    @property
    def polars(self) -> dict[str, Any]:
        """Column name to polars type, as ``pl.DataFrame(rows, schema=...)`` takes it."""
        return {column.name: column.dtype for column in self.columns}

    def empty(self) -> pl.DataFrame:
        """A frame of no rows with the table's columns."""
        return pl.DataFrame(schema=self.polars)


@dataclass(frozen=True)
class View:
    """One view: its query, and a comment for every column it yields, in order."""

    name: str
    comment: str
    columns: dict[str, str]
    sql: str


def _key(name: str, dtype: Any, comment: str) -> Column:
    return Column(name, dtype, comment, nullable=False)


PLATE = _key("Metadata_Plate", pl.String, "Plate name")
WELL = _key("Metadata_Well", pl.String, "Well, row letters and two-digit column: A01")
SITE = _key("Metadata_Site", pl.Int32, "Field of view within the well, from 1, in natural order of the field paths")
CELL_ID = _key("Metadata_CellID", pl.String, "Cell, as <plate>/<well>/<site>/<label>")
TREATMENT = (
    Column("Metadata_Compound", pl.String, "Compound; NULL where the plate map names none"),
    Column("Metadata_Dose", pl.Float64, "Dose in Metadata_Dose_Unit, 0 for controls"),
    Column("Metadata_Dose_Unit", pl.String, "Unit of the dose, as the plate map gives it"),
    Column("Metadata_Dose_Rank", pl.Int32, "Rank of the dose among the doses of its compound, 0 for controls"),
)
PERT_TYPE = Column(
    "Metadata_pert_type",
    pl.String,
    "Kind of treatment: trt, negcon, poscon or empty",
    allowed=("trt", "negcon", "poscon", "empty"),
)
CELL_KEYS = (PLATE, WELL, SITE, *TREATMENT, PERT_TYPE, CELL_ID)
MODEL_NAME = _key("model_name", pl.String, "Registered model name")
MODEL_VERSION = _key("model_version", pl.Int32, "Registered model version")
MODEL = (MODEL_NAME, MODEL_VERSION)
MASK_VERSION = Column("mask_version", pl.String, "Version (digest) of the masks the row comes from")
CROP_VERSION = Column("crop_version", pl.String, "Version (digest) of the crops the row comes from")
