"""Read plate maps and label tables of pooled screens into the field's standard columns, one row a well or cell.

Column and well names may be spelled in many ways and are normalised. Ambiguous content raises an error; nothing is
guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError, PlateMapError
from gradcamo_assets.names import normalise_well_name, row_letters
from gradcamo_assets.plates.spreadsheets import read_table
from gradcamo_assets.plates.treatments import (
    TEXT_COLUMNS,
    TREATMENT_COLUMNS,
    add_dose_ranks,
    normalise_unit,
    parse_treatments,
    treatment_class,
)

__all__ = ["PlateMap", "read_label_table", "read_plate_map", "treatment_class"]

_SPELLINGS = {
    "Metadata_Well": ("well", "wellposition", "wellid", "wellname", "destinationwell"),
    "Metadata_Site": ("site", "field", "fov"),
    "compound": (
        "compound", "compoundname", "cmpd", "cmpdname", "drug", "drugname", "pertiname", "perturbation", "compoundid",
        "cmpdid", "pertid", "broadsample", "treatment", "sample", "samplename", "inchikey",
    ),
    "dose": (
        "dose", "dosevalue", "pertdose", "finaldose", "finalconcentration", "finalconc", "concentration", "conc",
        "mmolesperliter", "mgperml",
    ),
    "unit": (
        "doseunit", "doseunits", "pertdoseunit", "pertdoseunits", "concentrationunit", "concentrationunits",
        "concunit", "concunits", "unit", "units",
    ),
    "pert_type": ("perttype", "perturbationtype"),
    "control_type": ("controltype",),
    "solvent": ("solvent",),
    "row": ("row", "wellrow", "platerow"),
    "column": ("column", "col", "wellcolumn", "wellcol", "platecolumn"),
    "broad_sample": ("broadsample",),
    "pert_iname": ("pertiname",),
    "pert_id": ("pertid",),
    "label": ("label",),
    "kind": ("kind",),
}  # fmt: skip
"""Accepted spellings of each column, most likely first. The name of a dose column may end in a unit."""
_SAMPLE_COLUMNS = ("broad_sample", "pert_iname", "pert_id")
_COLUMNS = ("Metadata_Well", *TREATMENT_COLUMNS[:3], "Metadata_Dose_Rank", "Metadata_pert_type")
_REMEDY = f"Give a CSV, TSV or XLSX file with the columns Metadata_Well, {', '.join(TREATMENT_COLUMNS)}."
_BLANK = r"^(nan|na|n/a|#n/a|none|null|-|)$"
_LABEL_TABLE_SIZE = 50
"""A label table may have this many times the rows and bytes of a plate map."""


@dataclass(frozen=True)
class PlateMap:
    """The treatments of a plate.

    Attributes:
        frame: one row for every well of the plate, in plate order.
        missing: wells of the plate that the map lacks; they are empty in ``frame``.
        unknown: wells of the map that the plate lacks; they are left out of ``frame``.
    """

    frame: pl.DataFrame
    missing: list[str]
    unknown: list[str]


def read_plate_map(path: Path | None, wells: Sequence[str], metadata: Sequence[Path] = ()) -> PlateMap:
    """Read the treatment of every well in ``wells``.

    Columns of the frame: Metadata_Well, Metadata_Compound, Metadata_Dose (0 for controls), Metadata_Dose_Unit,
    Metadata_Dose_Rank (0 for a dose of 0, else 1, 2, ... by dose within compound and unit) and Metadata_pert_type (trt,
    negcon, poscon or empty). DMSO and other vehicles are negative controls. Without a file, every well is empty.

    Args:
        metadata: tables that describe the samples of the map (Broad's ``external_metadata.tsv``), joined on
            ``broad_sample``, ``pert_iname`` or ``pert_id``. They supply compound names and perturbation types.

    Raises:
        PlateMapError: an unreadable file, no well or compound column, an invalid well name, a well listed twice, a dose
            that is negative or not a number, an unknown unit or perturbation type, a sample described twice.
    """
    names = list(dict.fromkeys(normalise_well_name(well) for well in wells))
    plate = pl.DataFrame({"Metadata_Well": names}, schema={"Metadata_Well": pl.String})
    plate_map = pl.DataFrame(schema=dict.fromkeys(("Metadata_Well", *TEXT_COLUMNS), pl.String))
    if path is not None:
        plate_map = _read_text_columns(path, required=("Metadata_Well", "compound"))
    listed = plate_map["Metadata_Well"]
    repeated = listed.filter(listed.is_duplicated()).unique(maintain_order=True)
    if len(repeated):
        raise PlateMapError(f"wells appear twice: {', '.join(repeated[:5])}", "List every well once.", path=path)
    for file in metadata:
        plate_map = _add_sample_descriptions(plate_map, file)
    treated = plate_map.select("Metadata_Well").hstack(parse_treatments(plate_map, path))
    frame = add_dose_ranks(plate.join(treated, on="Metadata_Well", how="left", maintain_order="left"))
    frame = frame.with_columns(pl.col("Metadata_pert_type").fill_null("empty"))
    in_map, in_plate = set(listed), set(names)
    return PlateMap(
        frame.select(_COLUMNS),
        missing=[name for name in names if name not in in_map],
        unknown=[name for name in listed if name not in in_plate],
    )


def read_label_table(path: Path) -> pl.DataFrame:
    """Read a label table: the treatment of every labelled cell, for wells whose cells differ.

    Columns: Metadata_Well, Metadata_Site (Int32), label (Int64), kind (``target`` or ``bystander``), then as in a plate
    map.

    Raises:
        PlateMapError: as for a plate map; also a label listed twice in a field, a site or label below 1, or an unknown
            kind.
    """
    required = ("Metadata_Well", "Metadata_Site", "label", "compound")
    frame = _read_text_columns(path, required, size_factor=_LABEL_TABLE_SIZE)
    kind = pl.col("kind").fill_null("target") if "kind" in frame.columns else pl.lit("target").alias("kind")
    site, label = pl.col("Metadata_Site").cast(pl.Int32, strict=False), pl.col("label").cast(pl.Int64, strict=False)
    numbers = frame.select("Metadata_Well", site, label, kind)
    if not numbers.select(((site >= 1) & (label >= 1)).fill_null(False).all()).item():
        raise PlateMapError("a site or label is not an integer from 1", "Number sites and labels from 1.", path=path)
    unknown_kinds = sorted(set(numbers["kind"]) - {"target", "bystander"})
    if unknown_kinds:
        raise PlateMapError(f"unknown kind of cell {unknown_kinds[0]!r}", "Use target or bystander.", path=path)
    table = numbers.hstack(parse_treatments(frame, path))
    if table.select("Metadata_Well", "Metadata_Site", "label").is_duplicated().any():
        raise PlateMapError("a label appears twice in one field", "List every cell once.", path=path)
    return add_dose_ranks(table).select("Metadata_Well", "Metadata_Site", "label", "kind", *_COLUMNS[1:])


def _read_text_columns(path: Path, required: tuple[str, ...] = (), size_factor: int = 1) -> pl.DataFrame:
    """Read a file as text under the column names of ``_SPELLINGS``, with all of ``TEXT_COLUMNS``.

    Wells are normalised, blank cells become NULL.
    """
    raw, decimal_comma = read_table(path, size_factor)
    text = pl.when(~pl.all().str.to_lowercase().str.contains(_BLANK)).then(pl.all()).name.keep()
    chosen, column_unit = _match_columns(raw.columns, path)
    frame = raw.select(text).select(**chosen).filter(~pl.all_horizontal(pl.all().is_null()))
    if "Metadata_Well" not in chosen and {"row", "column"} <= chosen.keys():
        # Rows may be numbered from 1: 2 is B, 27 is AA.
        numbers = {str(row): row_letters(row - 1) for row in range(1, 33)}
        row = pl.col("row").str.strip_chars_start("0").replace(numbers)
        frame = frame.with_columns(Metadata_Well=pl.concat_str(row, "column"))
    for column in required:
        if column not in frame.columns:
            shown = "Metadata_Compound" if column == "compound" else column
            problem = f"no column {shown}, only {', '.join(raw.columns[:20])}"
            raise PlateMapError(problem, _REMEDY, path=path)
    if "Metadata_Well" in required:
        try:
            wells = {
                well: normalise_well_name(well or "") for well in frame["Metadata_Well"].unique(maintain_order=True)
            }
        except PlateError as error:
            raise error.at(PlateMapError, path=path) from error
        frame = frame.with_columns(pl.col("Metadata_Well").replace(wells))
    if decimal_comma and "dose" in chosen:
        grouped = frame["dose"].filter(frame["dose"].str.contains(r"^[1-9]\d{0,2}(\.\d{3})+(,|\s|$)"))
        if len(grouped) and frame["dose"].str.contains(",", literal=True).any():
            problem = f"dose {grouped[0]!r} is ambiguous: its point may be a decimal point or separate thousands"
            raise PlateMapError(problem, "Write doses without thousands separators.", path=path)
        frame = frame.with_columns(pl.col("dose").str.replace_all(",", ".", literal=True))
    added = {name: pl.lit(None, pl.String) for name in TEXT_COLUMNS if name not in frame.columns}
    return frame.with_columns(**added | {"column_unit": pl.lit(column_unit, pl.String)})


def _match_columns(names: Sequence[str], path: Path) -> tuple[dict[str, str], str | None]:
    """Map each standard column to the file's column of that meaning; also return the unit in the dose column's name.

    ``Well Position``, ``well`` and ``Metadata_Well`` mean the same column, and so do ``Conc (uM)`` and ``conc_um``.
    """
    normalised = {name: _normalise_column_name(name) for name in names}
    chosen: dict[str, str] = {}
    for standard, spellings in _SPELLINGS.items():
        by_spelling = ([name for name in names if normalised[name][0] == spelling] for spelling in spellings)
        matches = next(filter(None, by_spelling), [])
        if len(matches) > 1:
            raise PlateMapError(f"columns {matches} both mean {standard}", "Keep one of them.", path=path)
        if matches:
            chosen[standard] = matches[0]
    return chosen, normalised[chosen["dose"]][1] if "dose" in chosen else None


def _normalise_column_name(name: str) -> tuple[str, str | None]:
    """Reduce a column name to letters and digits, and split the unit off the name of a dose column."""
    text = unicodedata.normalize("NFKC", name).lower().removeprefix("metadata_").replace("\u03bc", "u")
    compact = re.sub(r"[^a-z0-9%/]", "", text)
    for dose in _SPELLINGS["dose"]:
        suffix = compact.removeprefix(dose)
        if compact.startswith(dose) and (unit := normalise_unit(suffix or dose)):
            return dose, unit
    return re.sub(r"[^a-z0-9]", "", compact), None


def _add_sample_descriptions(plate_map: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Complete the map from a table of samples. The map's own values win, except compounds that are bare sample IDs."""
    table = _read_text_columns(file)
    key = next((name for name in _SAMPLE_COLUMNS if name in table.columns and name in plate_map.columns), None)
    if key is None:
        return plate_map
    described = table.drop_nulls(key).select(key, "compound", "pert_type", "control_type").unique()
    repeated = described.filter(pl.col(key).is_duplicated())[key]
    if len(repeated):
        raise PlateMapError(f"sample {repeated[0]} is described twice", "Describe every sample once.", path=file)
    is_bare_id = pl.col("compound") == pl.col(key)
    compound = pl.when(is_bare_id).then(pl.coalesce("compound_described", "compound")).otherwise("compound")
    joined = plate_map.join(described, on=key, how="left", suffix="_described", maintain_order="left").with_columns(
        compound.alias("compound"),
        pl.coalesce("pert_type", "pert_type_described"),
        pl.coalesce("control_type", "control_type_described"),
    )
    return joined.select(plate_map.columns)
