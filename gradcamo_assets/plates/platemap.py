"""What each well was given: plate maps, label tables of pooled screens, and the treatment class.

Files come as people write them: column and well names are brought into the field's spelling, and what cannot be
understood is an error rather than a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gradcamo_assets.common.errors import PlateError, PlateMapError
from gradcamo_assets.common.names import well_name

PERT_TYPES = ("trt", "negcon", "poscon", "empty")
_OTHER_TYPES = {"treatment": "trt", "compound": "trt", "negative": "negcon", "positive": "poscon"}
_NEGATIVE = ("dmso", "negcon", "negative", "negativecontrol", "vehicle", "untreated", "mock")
_NOTHING = ("empty", "blank")
_SPELLINGS = {
    "Metadata_Well": ("well", "wellposition", "wellid", "wellname"),
    "Metadata_Site": ("site", "field", "fov"),
    "Metadata_Compound": ("compound", "compoundname", "compoundid", "pertiname", "pertid", "broadsample", "treatment"),
    "Metadata_Dose": ("dose", "dosevalue", "concentration", "conc", "mmolesperliter"),
    "Metadata_Dose_Unit": ("doseunit", "doseunits", "concentrationunit", "concunit", "unit", "units"),
    "Metadata_pert_type": ("perttype",),
    "label": ("label",),
    "kind": ("kind",),
}
"""The field's column names, and how people spell them, the likeliest first."""
_GIVEN = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
_COLUMNS = ("Metadata_Well", *_GIVEN[:3], "Metadata_Dose_Rank", "Metadata_pert_type")
_FORMAT = f"Give a CSV or TSV file with the columns Metadata_Well, {', '.join(_GIVEN)}."
_BLANK = r"^(nan|na|n/a|none|null|)$"


@dataclass(frozen=True)
class PlateMap:
    """``frame``: one row for every well of the plate, in plate order. ``missing``: wells that the map lacks (they stand
    in the frame as empty). ``unknown``: wells of the map that the plate lacks (left out)."""

    frame: pl.DataFrame
    missing: list[str]
    unknown: list[str]


def read_plate_map(path: Path | None, wells: Sequence[str]) -> PlateMap:
    """The treatment of every well in ``wells``.

    Columns of the frame: Metadata_Well, Metadata_Compound, Metadata_Dose (0 for controls), Metadata_Dose_Unit,
    Metadata_Dose_Rank (0 for a dose of 0, else 1, 2, ... by dose within compound and unit) and Metadata_pert_type (trt,
    negcon, poscon or empty). DMSO and its like are negative controls. Without a file every well is empty.

    Raises:
        PlateMapError: an unreadable file, no well or compound column, no well's name, a well twice, a dose that is
            negative or no number, an unknown perturbation type.
    """
    names = list(dict.fromkeys(well_name(well) for well in wells))
    plate = pl.DataFrame({"Metadata_Well": names}, schema={"Metadata_Well": pl.String})
    found = plate.clear() if path is None else _read(path, required=("Metadata_Well", "Metadata_Compound"))
    twice = found.filter(pl.col("Metadata_Well").is_duplicated())["Metadata_Well"].unique(maintain_order=True)
    if len(twice):
        raise PlateMapError(f"wells appear twice: {', '.join(twice[:5])}", "List every well once.", path=path)
    mapped = set(found["Metadata_Well"])
    frame = _with_ranks(plate.join(_treatments(found, path), on="Metadata_Well", how="left", maintain_order="left"))
    frame = frame.with_columns(pl.col("Metadata_pert_type").fill_null("empty"))
    return PlateMap(
        frame.select(_COLUMNS),
        missing=[name for name in names if name not in mapped],
        unknown=[name for name in found["Metadata_Well"] if name not in set(names)],
    )


def read_label_table(path: Path) -> pl.DataFrame:
    """A label table: the treatment of every labelled cell, where cells of one well differ.

    Columns: Metadata_Well, Metadata_Site (Int32), label (Int64), kind (``target`` or ``bystander``), then as in a plate
    map.

    Raises:
        PlateMapError: as for a plate map; and a label twice in a field, a site or label below 1, an unknown kind.
    """
    frame = _read(path, required=("Metadata_Well", "Metadata_Site", "label", "Metadata_Compound"))
    kind = pl.col("kind").fill_null("target") if "kind" in frame.columns else pl.lit("target").alias("kind")
    site, label = pl.col("Metadata_Site").cast(pl.Int32, strict=False), pl.col("label").cast(pl.Int64, strict=False)
    numbers = frame.select(site, label, kind)
    if not numbers.select(((site >= 1) & (label >= 1)).fill_null(False).all()).item():
        raise PlateMapError("a site or a label is no number from 1", "Number sites and labels from 1.", path=path)
    odd = sorted(set(numbers["kind"]) - {"target", "bystander"})
    if odd:
        raise PlateMapError(f"{odd[0]!r} is no kind of cell", "Use target or bystander.", path=path)
    table = pl.concat([_treatments(frame, path), numbers], how="horizontal")
    if table.select("Metadata_Well", "Metadata_Site", "label").is_duplicated().any():
        raise PlateMapError("a label appears twice in one field", "List every cell once.", path=path)
    return _with_ranks(table).select("Metadata_Well", "Metadata_Site", "label", "kind", *_COLUMNS[1:])


def treatment_class() -> pl.Expr:
    """The class of a row with plate map columns, as text.

    ``negcon`` for negative controls, ``<compound>@<dose><unit>`` for what was given (without its dose where that is not
    known), NULL for empty wells and unknown compounds.
    """
    kind, unit = pl.col("Metadata_pert_type"), pl.col("Metadata_Dose_Unit").fill_null("")
    dose = pl.col("Metadata_Dose").map_elements(lambda value: f"{value:g}", return_dtype=pl.String)
    given = pl.concat_str("Metadata_Compound", pl.concat_str(pl.lit("@"), dose, unit).fill_null(""))
    return pl.when(kind == "negcon").then(pl.lit("negcon")).when(kind != "empty").then(given)


def _read(path: Path, required: tuple[str, ...]) -> pl.DataFrame:
    """The file as text columns under the field's names, wells normalised, blanks as NULL."""
    try:
        separator = "\t" if path.suffix in (".tsv", ".txt") else ","
        raw = pl.read_csv(path, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PlateMapError(f"unreadable table: {str(error).splitlines()[0]}", _FORMAT, path=path) from error
    text = pl.all().str.strip_chars()
    text = pl.when(text.str.to_lowercase().str.contains(_BLANK)).then(None).otherwise(text).name.keep()
    frame = raw.select(text).select(**_columns(raw.columns, path))
    for column in required:
        if column not in frame.columns:
            raise PlateMapError(f"no column {column}, only {', '.join(raw.columns)}", _FORMAT, path=path)
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    try:
        wells = [well_name(well or "") for well in frame["Metadata_Well"]]
    except PlateError as error:
        raise PlateMapError(error.problem, error.remedy, path=path) from error
    return frame.with_columns(pl.Series("Metadata_Well", wells, dtype=pl.String))


def _columns(found: Sequence[str], path: Path) -> dict[str, pl.Expr]:
    """The column of the file that means each of ours: ``Well Position``, ``well`` and ``Metadata_Well`` are all one."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("metadata_")) for name in found}
    chosen: dict[str, pl.Expr] = {}
    for ours, spellings in _SPELLINGS.items():
        meant = ([name for name in found if plain[name] == spelling] for spelling in spellings)
        matches = next(filter(None, meant), [])
        if len(matches) > 1:
            raise PlateMapError(f"columns {matches} both mean {ours}", "Keep one of them.", path=path)
        if matches:
            chosen[ours] = pl.col(matches[0])
    return chosen


def _treatments(frame: pl.DataFrame, path: Path | None) -> pl.DataFrame:
    """The plate map columns of a table of text, typed and checked."""
    text = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in _GIVEN if name not in frame.columns)
    dose = text["Metadata_Dose"].cast(pl.Float64, strict=False)
    wrong = text.filter((dose.is_null() & text["Metadata_Dose"].is_not_null()) | ~dose.is_finite() | (dose < 0))
    if wrong.height:
        first = wrong.row(0, named=True)
        raise PlateMapError(
            f"{first['Metadata_Dose']!r} is no dose", "Give doses as numbers from 0, units in a column of their own.",
            well=first["Metadata_Well"], path=path,
        )  # fmt: skip
    compound = pl.col("Metadata_Compound")
    plain = compound.str.to_lowercase().str.replace_all(r"[^a-z0-9]", "")
    kind = pl.col("Metadata_pert_type").str.to_lowercase().replace(_OTHER_TYPES)
    pert_type = (
        pl.when(kind.is_not_null()).then(kind)
        .when(compound.is_null() | plain.is_in(_NOTHING)).then(pl.lit("empty"))
        .when(plain.is_in(_NEGATIVE)).then(pl.lit("negcon"))
        .otherwise(pl.lit("trt"))
    )  # fmt: skip
    typed = text.with_columns(dose, pert_type.alias("Metadata_pert_type"))
    odd = sorted(set(typed["Metadata_pert_type"]) - set(PERT_TYPES))
    if odd:
        raise PlateMapError(f"{odd[0]!r} is no perturbation type", f"Use {', '.join(PERT_TYPES)}.", path=path)
    control = pl.col("Metadata_pert_type") == "negcon"
    undosed = (pl.col("Metadata_pert_type") == "poscon") & pl.col("Metadata_Dose").is_null()
    given = pl.when(control | undosed).then(0.0).otherwise(pl.col("Metadata_Dose")).alias("Metadata_Dose")
    return typed.select("Metadata_Well", "Metadata_Compound", given, "Metadata_Dose_Unit", "Metadata_pert_type")


def _with_ranks(frame: pl.DataFrame) -> pl.DataFrame:
    """Add Metadata_Dose_Rank; NULL where the dose is not known."""
    dose = pl.col("Metadata_Dose")
    above_zero = pl.when(dose > 0).then(dose).rank("dense").over("Metadata_Compound", "Metadata_Dose_Unit")
    rank = pl.when(dose == 0).then(0).otherwise(above_zero)
    return frame.with_columns(rank.cast(pl.Int32).alias("Metadata_Dose_Rank"))
