"""Descriptions of tables and views: columns with types and comments, write keys and row identity.

The tables are defined in ``schema``, ``schema_scores`` and ``schema_profiles``. The columns they share are defined at
the end of this module.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

import polars as pl

from gradcamo_assets.thresholds import THRESHOLDS

STRING_LIST = pl.List(pl.String)
FLOAT_LIST = pl.List(pl.Float64)
TIMESTAMP = pl.Datetime("us")

KEY_COLUMNS = {"plate": "Metadata_Plate", "site": "Metadata_Site", "model_run": "model_run"}
"""The keys by which a lake commit can replace rows, and the column that holds each key."""


@dataclass(frozen=True)
class Column:
    """One column. ``allowed`` lists the values that a text column accepts besides NULL; empty: any value."""

    name: str
    dtype: pl.DataType | type[pl.DataType]
    comment: str
    nullable: bool = True
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        keys: names from ``KEY_COLUMNS``. A commit to the lake replaces all rows with the same keys. A table without
            keys is replaced whole or appended to.
        partitioned_by: the ``keys`` by which Delta Lake partitions the files. Compaction merges the small files of one
            partition.
        unique: the columns that identify a row.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    partitioned_by: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """Column names and polars types, as ``pl.DataFrame(rows, schema=...)`` takes them."""
        return {column.name: column.dtype for column in self.columns}

    @property
    def partition_columns(self) -> list[str]:
        """The columns that partition the files. Their values are in the file paths, not in the files."""
        return [KEY_COLUMNS[name] for name in self.partitioned_by]

    @property
    def statistics_columns(self) -> list[str]:
        """The columns whose minimum and maximum the Delta log keeps.

        Commits use the keys among them to find the files to replace. ``Lake.partition_versions`` reads version tables
        from them alone.
        """
        keys = [KEY_COLUMNS[name] for name in self.keys if name not in self.partitioned_by]
        return keys + [column.name for column in self.columns if column in VERSIONS]

    def empty(self) -> pl.DataFrame:
        """A frame with the table's columns and no rows."""
        return pl.DataFrame(schema=self.schema)


@dataclass(frozen=True)
class View:
    """One view: its query, and comments for the columns whose meaning differs from the tables it reads."""

    name: str
    comment: str
    sql: str
    columns: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_file(cls, name: str, comment: str, columns: dict[str, str]) -> View:
        """The view whose query is in ``sql/<name>.sql``, without the schema of the name."""
        return cls(name, comment, read_sql(name.rpartition(".")[2]), columns)


def read_sql(name: str) -> str:
    """The content of ``sql/<name>.sql``, with the values of ``THRESHOLDS`` in place of ``$<name>``."""
    text = files("gradcamo_assets.tables").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    return Template(text).substitute(asdict(THRESHOLDS))


VERSIONS = (
    Column("version", pl.String, "Version (digest) of the stored result", nullable=False),
    Column("made_from", pl.String, "Version of the input it was made from; NULL: the input has no version"),
    Column("n", pl.Int64, "Number of readable fields, fields with masks, cells, crops or scores", nullable=False),
)


def _key(name: str, dtype: Any, comment: str) -> Column:
    return Column(name, dtype, comment, nullable=False)


PLATE = _key("Metadata_Plate", pl.String, "Plate name")
WELL = _key("Metadata_Well", pl.String, "Well, row letters and two-digit column: A01")
SITE = _key("Metadata_Site", pl.Int32, "Field of view within the well, from 1, in natural order of the field paths")
CELL_ID = _key("Metadata_CellID", pl.String, "Cell, as plate/well/site/label")
DOSE = (
    Column("Metadata_Compound", pl.String, "Compound; NULL: the plate map names none"),
    Column("Metadata_Dose", pl.Float64, "Dose in Metadata_Dose_Unit, six significant digits, 0 for controls"),
    Column(
        "Metadata_Dose_Unit", pl.String, "uM, ug/mL or %; NULL for a dose of 0 and where the plate map gives no unit"
    ),
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
    _key(
        "model_run",
        pl.String,
        "MLflow run that trained the version; identifies the model, since version numbers can be reused",
    ),
)
MADE_FROM = (
    Column("mask_version", pl.String, "Version (digest) of the masks the row was made from"),
    Column("crop_version", pl.String, "Version (digest) of the crops the row was made from"),
)
