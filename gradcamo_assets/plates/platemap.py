"""What stands in plate maps and label tables of pooled screens, under the field's names, a row a well or cell.

Files come as people write them: column and well names are brought into the field's spelling, and what cannot be
understood is an error rather than a guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError, PlateMapError
from gradcamo_assets.names import normalise_well_name
from gradcamo_assets.plates.spreadsheets import read_table
from gradcamo_assets.plates.treatments import GIVEN, TEXT, treatment_class, treatments, unit_name, with_ranks

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
"""What a column means, and how people spell it, the likeliest first. A dose may have its unit behind its name."""
_SAMPLES = ("broad_sample", "pert_iname", "pert_id")
_COLUMNS = ("Metadata_Well", *GIVEN[:3], "Metadata_Dose_Rank", "Metadata_pert_type")
_FORMAT = f"Give a CSV, TSV or XLSX file with the columns Metadata_Well, {', '.join(GIVEN)}."
_BLANK = r"^(nan|na|n/a|#n/a|none|null|-|)$"


@dataclass(frozen=True)
class PlateMap:
    """``frame``: one row for every well of the plate, in plate order. ``missing``: wells that the map lacks (they stand
    in the frame as empty). ``unknown``: wells of the map that the plate lacks (left out)."""

    frame: pl.DataFrame
    missing: list[str]
    unknown: list[str]


def read_plate_map(path: Path | None, wells: Sequence[str], metadata: Sequence[Path] = ()) -> PlateMap:
    """The treatment of every well in ``wells``.

    Columns of the frame: Metadata_Well, Metadata_Compound, Metadata_Dose (0 for controls), Metadata_Dose_Unit,
    Metadata_Dose_Rank (0 for a dose of 0, else 1, 2, ... by dose within compound and unit) and Metadata_pert_type (trt,
    negcon, poscon or empty). DMSO and its like are negative controls. Without a file every well is empty.

    Args:
        metadata: tables of what the samples of the map are (Broad's ``external_metadata.tsv``), joined on
            ``broad_sample``, ``pert_iname`` or ``pert_id``; they give compounds their names, and kinds of treatment.

    Raises:
        PlateMapError: an unreadable file, no well or compound column, no well's name, a well twice, a dose that is
            negative or no number, an unknown unit or perturbation type, a sample with two descriptions.
    """
    names = list(dict.fromkeys(normalise_well_name(well) for well in wells))
    plate = pl.DataFrame({"Metadata_Well": names}, schema={"Metadata_Well": pl.String})
    found = pl.DataFrame(schema=dict.fromkeys(("Metadata_Well", *TEXT), pl.String))
    if path is not None:
        found = _read(path, required=("Metadata_Well", "compound"))
    twice = found.filter(pl.col("Metadata_Well").is_duplicated())["Metadata_Well"].unique(maintain_order=True)
    if len(twice):
        raise PlateMapError(f"wells appear twice: {', '.join(twice[:5])}", "List every well once.", path=path)
    for file in metadata:
        found = _described(found, file)
    given = found.select("Metadata_Well").hstack(treatments(found, path))
    frame = with_ranks(plate.join(given, on="Metadata_Well", how="left", maintain_order="left"))
    frame = frame.with_columns(pl.col("Metadata_pert_type").fill_null("empty"))
    mapped, asked = set(found["Metadata_Well"]), set(names)
    return PlateMap(
        frame.select(_COLUMNS),
        missing=[name for name in names if name not in mapped],
        unknown=[name for name in found["Metadata_Well"] if name not in asked],
    )


def read_label_table(path: Path) -> pl.DataFrame:
    """A label table: the treatment of every labelled cell, where cells of one well differ.

    Columns: Metadata_Well, Metadata_Site (Int32), label (Int64), kind (``target`` or ``bystander``), then as in a plate
    map.

    Raises:
        PlateMapError: as for a plate map; and a label twice in a field, a site or label below 1, an unknown kind.
    """
    frame = _read(path, required=("Metadata_Well", "Metadata_Site", "label", "compound"), times=50)
    kind = pl.col("kind").fill_null("target") if "kind" in frame.columns else pl.lit("target").alias("kind")
    site, label = pl.col("Metadata_Site").cast(pl.Int32, strict=False), pl.col("label").cast(pl.Int64, strict=False)
    numbers = frame.select("Metadata_Well", site, label, kind)
    if not numbers.select(((site >= 1) & (label >= 1)).fill_null(False).all()).item():
        raise PlateMapError("a site or a label is no number from 1", "Number sites and labels from 1.", path=path)
    odd = sorted(set(numbers["kind"]) - {"target", "bystander"})
    if odd:
        raise PlateMapError(f"{odd[0]!r} is no kind of cell", "Use target or bystander.", path=path)
    table = numbers.hstack(treatments(frame, path))
    if table.select("Metadata_Well", "Metadata_Site", "label").is_duplicated().any():
        raise PlateMapError("a label appears twice in one field", "List every cell once.", path=path)
    return with_ranks(table).select("Metadata_Well", "Metadata_Site", "label", "kind", *_COLUMNS[1:])


def _read(path: Path, required: tuple[str, ...] = (), times: int = 1) -> pl.DataFrame:
    """The file as text under the names of ``_SPELLINGS`` and all of ``TEXT``, wells normalised, blanks as NULL."""
    raw, decimal_comma = read_table(path, times)
    text = pl.when(~pl.all().str.to_lowercase().str.contains(_BLANK)).then(pl.all()).name.keep()
    chosen, column_unit = _columns(raw.columns, path)
    frame = raw.select(text).select(**chosen).filter(~pl.all_horizontal(pl.all().is_null()))
    if "Metadata_Well" not in chosen and {"row", "column"} <= chosen.keys():
        # A row may be a number from 1: 2 is B, 27 is AA.
        numbers = {str(row): ("A" if row > 26 else "") + chr(ord("A") + (row - 1) % 26) for row in range(1, 33)}
        row = pl.col("row").str.strip_chars_start("0").replace(numbers)
        frame = frame.with_columns(Metadata_Well=pl.concat_str(row, "column"))
    for column in required:
        if column not in frame.columns:
            told = "Metadata_Compound" if column == "compound" else column
            raise PlateMapError(f"no column {told}, only {', '.join(raw.columns[:20])}", _FORMAT, path=path)
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
            problem = f"dose {grouped[0]!r} may be a fraction or have its thousands set apart"
            raise PlateMapError(problem, "Write doses without points between thousands.", path=path)
        frame = frame.with_columns(pl.col("dose").str.replace_all(",", ".", literal=True))
    added = {name: pl.lit(None, pl.String) for name in TEXT if name not in frame.columns}
    return frame.with_columns(**added | {"column_unit": pl.lit(column_unit, pl.String)})


def _columns(found: Sequence[str], path: Path) -> tuple[dict[str, str], str | None]:
    """The column of the file that means each of ours, and the unit that the dose column's name ends in.

    ``Well Position``, ``well`` and ``Metadata_Well`` are all one, so are ``Conc (uM)`` and ``conc_um``.
    """
    plain = {name: _plain(name) for name in found}
    chosen: dict[str, str] = {}
    for ours, spellings in _SPELLINGS.items():
        meant = ([name for name in found if plain[name][0] == spelling] for spelling in spellings)
        matches = next(filter(None, meant), [])
        if len(matches) > 1:
            raise PlateMapError(f"columns {matches} both mean {ours}", "Keep one of them.", path=path)
        if matches:
            chosen[ours] = matches[0]
    return chosen, plain[chosen["dose"]][1] if "dose" in chosen else None


def _plain(name: str) -> tuple[str, str | None]:
    """A column's name in letters and digits, and the unit behind it if it is a dose with one."""
    text = unicodedata.normalize("NFKC", name).lower().removeprefix("metadata_").replace("\u03bc", "u")
    full = re.sub(r"[^a-z0-9%/]", "", text)
    for dose in _SPELLINGS["dose"]:
        behind = full.removeprefix(dose)
        if full.startswith(dose) and (unit := unit_name(behind or dose)):
            return dose, unit
    return re.sub(r"[^a-z0-9]", "", full), None


def _described(found: pl.DataFrame, file: Path) -> pl.DataFrame:
    """The map with what ``file`` says of its samples; what the map says itself stays, but for bare identifiers."""
    table = _read(file)
    key = next((name for name in _SAMPLES if name in table.columns and name in found.columns), None)
    if key is None:
        return found
    told = table.drop_nulls(key).select(key, "compound", "pert_type", "control_type").unique()
    twice = told.filter(pl.col(key).is_duplicated())[key]
    if len(twice):
        raise PlateMapError(f"{twice[0]} is described twice", "Describe every sample once.", path=file)
    named = pl.when(pl.col("compound") == pl.col(key)).then(pl.coalesce("compound_told", "compound"))
    joined = found.join(told, on=key, how="left", suffix="_told", maintain_order="left").with_columns(
        named.otherwise("compound").alias("compound"),
        pl.coalesce("pert_type", "pert_type_told"),
        pl.coalesce("control_type", "control_type_told"),
    )
    return joined.select(found.columns)
