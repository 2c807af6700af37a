"""Read plate maps and label tables of pooled screens into the field's standard columns, one row a well or cell.

Column and well names may be spelled in many ways and are normalised. Ambiguous content raises an error; nothing is
guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError, PlateMapError
from gradcamo_assets.names import normalise_well_name, row_letters
from gradcamo_assets.plates.column_names import GENETIC, SPELLINGS, match_columns, normalise_column_name
from gradcamo_assets.plates.spreadsheets import read_table
from gradcamo_assets.plates.treatments import (
    TEXT_COLUMNS,
    TREATMENT_COLUMNS,
    add_dose_ranks,
    is_dose,
    normalise_unit,
    parse_treatments,
    treatment_class,
)

__all__ = ["PlateMap", "read_label_table", "read_plate_map", "treatment_class"]

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
        notes: what the map holds and ``frame`` does not: columns of numbers or units that are not read, samples that
            no metadata table describes.
    """

    frame: pl.DataFrame
    missing: list[str]
    unknown: list[str]
    notes: list[str] = field(default_factory=list)


def read_plate_map(path: Path | None, wells: Sequence[str], metadata: Sequence[Path] = ()) -> PlateMap:
    """Read the treatment of every well in ``wells``.

    Columns of the frame: Metadata_Well, Metadata_Compound, Metadata_Dose (0 for controls), Metadata_Dose_Unit,
    Metadata_Dose_Rank (0 for a dose of 0, else 1, 2, ... by dose within compound and unit) and Metadata_pert_type (trt,
    negcon, poscon or empty). DMSO and other vehicles are negative controls. Without a file, every well is empty.

    Args:
        metadata: tables that describe the samples of the map (Broad's ``external_metadata.tsv``), joined on
            ``broad_sample``, ``pert_iname`` or ``pert_id``. They supply compound names and perturbation types.

    Raises:
        PlateMapError: an unreadable file, no well or compound column, two perturbations in one well, an invalid well
            name, a well listed twice, a sample described twice, or a treatment that ``parse_treatments`` rejects.
    """
    names = list(dict.fromkeys(normalise_well_name(well) for well in wells))
    plate = pl.DataFrame({"Metadata_Well": names}, schema={"Metadata_Well": pl.String})
    plate_map, notes = pl.DataFrame(schema=dict.fromkeys(("Metadata_Well", *TEXT_COLUMNS), pl.String)), []
    if path is not None:
        plate_map, unread = _read_text_columns(path, required=("Metadata_Well", "compound"))
        if unread:
            notes.append(f"the plate map has columns of numbers or units that are not read: {', '.join(unread)}")
    listed = plate_map["Metadata_Well"]
    repeated = listed.filter(listed.is_duplicated()).unique(maintain_order=True)
    if len(repeated):
        raise PlateMapError(f"wells appear twice: {', '.join(repeated[:5])}", "List every well once.", path=path)
    lacking = []
    for file in metadata:
        plate_map, undescribed = _add_sample_descriptions(plate_map, file)
        if undescribed is not None:
            lacking.append(undescribed)
    if lacking and (samples := sorted(set.intersection(*lacking))):
        tables, more = ", ".join(file.name for file in metadata), len(samples) - 5
        shown = ", ".join(samples[:5]) + (f" and {more} more" if more > 0 else "")
        notes.append(f"samples of the plate map without a row in {tables}: {shown}")
    treated = plate_map.select("Metadata_Well").hstack(parse_treatments(plate_map, path))
    frame = add_dose_ranks(plate.join(treated, on="Metadata_Well", how="left", maintain_order="left"))
    frame = frame.with_columns(pl.col("Metadata_pert_type").fill_null("empty"))
    in_map, in_plate = set(listed), set(names)
    return PlateMap(
        frame.select(_COLUMNS),
        missing=[name for name in names if name not in in_map],
        unknown=[name for name in listed if name not in in_plate],
        notes=notes,
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
    frame, _ = _read_text_columns(path, required, size_factor=_LABEL_TABLE_SIZE)
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


def _read_text_columns(
    path: Path, required: tuple[str, ...] = (), size_factor: int = 1
) -> tuple[pl.DataFrame, list[str]]:
    """Read a file as text under standard column names, with all of ``TEXT_COLUMNS``.

    Wells are normalised, blank cells become NULL. Also return the names of columns of numbers or units that are
    not read.
    """
    raw, decimal_comma = read_table(path, size_factor)
    chosen, column_unit = match_columns(raw.columns, path)
    names = {name: normalise_column_name(name)[0] for name in raw.columns}
    # The genotype Null is a knock-out.
    blanks = {name: _BLANK.replace("null|", "") if names[name] == "genotype" else _BLANK for name in raw.columns}
    text = raw.select(
        pl.when(~pl.col(name).str.to_lowercase().str.contains(blank)).then(pl.col(name))
        for name, blank in blanks.items()
    )
    if "compound" in chosen:
        for name in (name for name in raw.columns if names[name] in GENETIC and name != chosen["compound"]):
            _check_single_perturbation(text.select(chosen["compound"], name), path)
    # The lower of two amounts in a row, such as mg_per_ml beside mmoles_per_liter, is no loss.
    known = {*chosen.values(), *(name for name in raw.columns if names[name] in SPELLINGS["dose"])}
    unread = [name for name in raw.columns if name not in known and _holds_amounts(text[name], decimal_comma)]
    frame = text.select(**chosen).filter(~pl.all_horizontal(pl.all().is_null()))
    # Programs that read integers beside blank cells write them back as 1.0.
    integers = [name for name in ("row", "column", "Metadata_Site", "label") if name in chosen]
    frame = frame.with_columns(pl.col(integers).str.replace(r"^(\d+)\.0+$", "$1"))
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
    return frame.with_columns(**added | {"column_unit": pl.lit(column_unit, pl.String)}), unread


def _check_single_perturbation(pairs: pl.DataFrame, path: Path) -> None:
    """Check that the second column does not tell apart wells that the first one, the perturbation, makes equal."""
    used, other = pairs.columns
    distinct = pairs.unique(maintain_order=True)
    repeated = distinct.filter(pl.col(used).is_duplicated())
    if len(repeated):
        values = repeated.filter(pl.col(used).eq_missing(repeated[used][0]))[other].to_list()
        problem = (
            f"columns {used} and {other} both name a perturbation: {used} {repeated[used][0]!r} has {other} {values}"
        )
        raise PlateMapError(problem[:300], "Combine them in one column Metadata_Compound.", path=path)


def _holds_amounts(column: pl.Series, decimal_comma: bool) -> bool:
    values = column.drop_nulls().unique()
    if decimal_comma:
        values = values.str.replace_all(",", ".", literal=True)
    return len(values) > 0 and all(is_dose(value) or normalise_unit(value) for value in values)


def _add_sample_descriptions(plate_map: pl.DataFrame, file: Path) -> tuple[pl.DataFrame, set[str] | None]:
    """Complete the map from a table of samples, and return it with the samples that the table lacks, or None.

    The map's own values win, except compounds that are bare sample IDs.
    """
    table, _ = _read_text_columns(file)
    key = next((name for name in _SAMPLE_COLUMNS if name in table.columns and name in plate_map.columns), None)
    if key is None:
        return plate_map, None
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
    return joined.select(plate_map.columns), set(plate_map[key].drop_nulls()) - set(described[key])
