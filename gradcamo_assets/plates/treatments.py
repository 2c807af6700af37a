"""Parse treatments from the text of a table: compound, dose, unit, perturbation type, dose rank and class."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import polars as pl

from gradcamo_assets.errors import PlateMapError

TEXT_COLUMNS = ("compound", "dose", "unit", "column_unit", "pert_type", "control_type", "solvent")
"""The text columns that ``parse_treatments`` reads."""
TREATMENT_COLUMNS = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
_SCALES = {
    "M": ("uM", 1e6), "mM": ("uM", 1e3), "uM": ("uM", 1.0), "nM": ("uM", 1e-3), "pM": ("uM", 1e-6),
    "mg/mL": ("ug/mL", 1e3), "ug/mL": ("ug/mL", 1.0), "ng/mL": ("ug/mL", 1e-3), "%": ("%", 1.0),
}  # fmt: skip
"""Known units: the base unit to which mixed units are converted, and the conversion factor."""
_PREFIX, _LITRE = r"(pico|nano|micro|milli|mc|[pnum]?)", r"l(?:iters?|itres?)?(?:-1)?"
_UNITS = {
    re.compile(rf"{_PREFIX}(?:m|molar|mol(?:ar|es?|s)?(?:/|per|){_LITRE})"): "M",
    re.compile(rf"{_PREFIX}g(?:rams?)?(?:/|per|)m(?:illi)?{_LITRE}"): "g/mL",
    re.compile(r"()(?:(?:%|percent|pct)(?:[vw]/[vw])?|[vw]/[vw]%?)"): "%",
}
_LETTERS = {"pico": "p", "nano": "n", "micro": "u", "milli": "m", "mc": "u"}
_DOSE = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([^0-9.,+\-].*)?")
_DOSE_TOLERANCE = 1e-9
"""Doses that differ by a smaller fraction count as equal."""

_TYPE_SPELLINGS = {
    "trt": {"trt", "trtcp", "treatment", "compound", "sample"},
    "negcon": {
        "dmso", "negcon", "negative", "neg", "vehicle", "ctlvehicle", "vehicledmso", "dmsovehicle", "untreated",
        "ctluntrt", "nottreated", "nontreated", "notreatment", "mock", "media", "medium", "pbs", "water", "h2o",
    },
    "poscon": {"poscon", "posconcp", "poscondiverse", "posconorf", "positive", "pos"},
    "empty": {"empty", "blank"},
}  # fmt: skip
"""Accepted spellings of each perturbation type."""
_TYPES = {spelling: pert_type for pert_type, spellings in _TYPE_SPELLINGS.items() for spelling in spellings}


class Treatment(NamedTuple):
    """The treatment of one well."""

    compound: str | None
    dose: float | None
    unit: str | None
    pert_type: str


def normalise_unit(text: str) -> str | None:
    """Return a unit in its standard spelling (nM, uM, mM, M, pM, mg/mL, ug/mL, ng/mL, %), or None if it is unknown."""
    plain = re.sub(r"[\s._^()\[\]]", "", unicodedata.normalize("NFKC", text).casefold()).replace("\u03bc", "u")
    for pattern, unit in _UNITS.items():
        if match := pattern.fullmatch(plain):
            name = _LETTERS.get(match[1], match[1]) + unit
            return name if name in _SCALES else None
    return None


def parse_treatments(table: pl.DataFrame, path: Path | None) -> pl.DataFrame:
    """Parse the ``TREATMENT_COLUMNS`` of a table, row by row.

    The unit in the dose cell wins over the unit column, which wins over the unit in the name of the dose column. If a
    table mixes molar units, all of them become uM; mixed masses per volume become ug/mL. A single unit stays as given.

    Args:
        table: text, with Metadata_Well and all of ``TEXT_COLUMNS``.

    Raises:
        PlateMapError: a dose that is negative or not a number, an unknown unit, two units for one dose, an unknown
            perturbation type.
    """
    distinct = table.group_by(TEXT_COLUMNS, maintain_order=True).agg(pl.col("Metadata_Well").first())
    parsed = []
    for *cells, well in distinct.iter_rows():
        try:
            parsed.append(_parse_treatment(*cells))
        except PlateMapError as error:
            raise error.at(well=well, path=path) from error
    base_units = [_SCALES[unit][0] for unit in {row.unit for row in parsed if row.unit}]
    converted = [
        _to_base_unit(row) if row.unit and base_units.count(_SCALES[row.unit][0]) > 1 else row for row in parsed
    ]
    types = dict(zip(TREATMENT_COLUMNS, (pl.String, pl.Float64, pl.String, pl.String), strict=True))
    lookup = distinct.select(TEXT_COLUMNS).hstack(pl.DataFrame(converted, schema=types, orient="row"))
    joined = table.join(lookup, on=TEXT_COLUMNS, how="left", nulls_equal=True, maintain_order="left")
    return joined.select(TREATMENT_COLUMNS)


def add_dose_ranks(frame: pl.DataFrame) -> pl.DataFrame:
    """Add Metadata_Dose_Rank: 0 for a dose of 0, else 1, 2, ... by dose within compound and unit, NULL without dose."""
    dose = pl.col("Metadata_Dose")
    positive = pl.when(dose > 0).then(dose)
    is_higher = positive > positive.shift() * (1 + _DOSE_TOLERANCE)
    starts_rank = positive.is_not_null() & (positive.shift().is_null() | is_higher)
    dose_series = ("Metadata_Compound", "Metadata_Dose_Unit")
    count = starts_rank.cast(pl.Int32).cum_sum().over(dose_series, order_by="Metadata_Dose")
    rank = pl.when(dose == 0).then(0).when(dose > 0).then(count)
    return frame.with_columns(rank.cast(pl.Int32).alias("Metadata_Dose_Rank"))


def treatment_class() -> pl.Expr:
    """Expression for the class of a row with plate map columns, as text.

    ``negcon`` for negative controls, ``<compound>@<dose><unit>`` for treatments (only the compound if the dose is
    unknown), NULL for empty wells and unknown compounds.
    """
    pert_type, unit = pl.col("Metadata_pert_type"), pl.col("Metadata_Dose_Unit").fill_null("")
    dose = pl.col("Metadata_Dose").map_elements(lambda value: f"{value:g}", return_dtype=pl.String)
    treatment = pl.concat_str("Metadata_Compound", pl.concat_str(pl.lit("@"), dose, unit).fill_null(""))
    return pl.when(pert_type == "negcon").then(pl.lit("negcon")).when(pert_type != "empty").then(treatment)


def _parse_treatment(
    compound: str | None, dose: str | None, unit: str | None, column_unit: str | None,
    pert_type: str | None, control_type: str | None, solvent: str | None,
) -> Treatment:  # fmt: skip
    kind = _parse_pert_type(compound, control_type or pert_type, solvent)
    value, cell_unit = (None, None) if dose is None else _parse_dose(dose)
    row_unit = None if unit is None else _parse_unit(unit)
    if cell_unit and row_unit and cell_unit != row_unit:
        problem = f"dose {dose!r} has two units, its own and {unit!r} from the unit column"
        raise PlateMapError(problem, "Give each dose one unit.")
    if kind == "negcon" or (kind == "poscon" and value is None):
        value = 0.0
    if compound is None and kind == "negcon":
        compound = solvent
    return Treatment(compound, value, cell_unit or row_unit or (dose and column_unit), kind)


def _parse_pert_type(compound: str | None, given: str | None, solvent: str | None) -> str:
    """The perturbation type from the ``given`` text, or from the name of the compound or solvent."""
    # In Broad's maps a well with a solvent and no compound is a control.
    by_name = _TYPES.get(_normalise(compound or solvent or "empty"))
    if given is None and compound is not None and not _normalise(compound):
        problem = f"{compound[:40]!r} does not say whether the control is negative or positive"
        raise PlateMapError(problem, "Add a column Metadata_pert_type with negcon or poscon.")
    if by_name not in ("negcon", "poscon", "empty"):
        by_name = "trt" if compound else "empty"
    if given is None:
        return by_name
    # A plain 'control' gets its type from the compound's name.
    kind = _TYPES.get(_normalise(given), by_name if not _normalise(given) and by_name == "negcon" else None)
    if kind is None:
        problem = f"unknown perturbation type {given[:40]!r}"
        raise PlateMapError(problem, f"Use {', '.join(_TYPE_SPELLINGS)}, or control with a control_type.")
    return kind


def _normalise(text: str) -> str:
    """Reduce to letters and digits, without a strength and the word control: ``DMSO 0.1% v/v`` gives ``dmso``."""
    bare = re.sub(r"[0-9.,]+\s*%\s*\(?(?:[vw]/[vw])?", "", text[:100].lower())
    return re.sub(r"(?:control|controls|ctrl|ctl|only)$", "", re.sub(r"[^a-z0-9]", "", bare))


def _parse_dose(text: str) -> tuple[float, str | None]:
    match = _DOSE.fullmatch(text)
    value = float(match[1]) if match else -1.0
    if match is None or not 0 <= value < float("inf"):
        remedy = "Give doses as numbers of at least 0, with or without a unit, for example 10 uM."
        raise PlateMapError(f"{text[:40]!r} is not a dose", remedy)
    return value, _parse_unit(match[2]) if match[2] else None


def _parse_unit(unit: str) -> str:
    name = normalise_unit(unit)
    if name is None:
        raise PlateMapError(f"unknown unit {unit[:40]!r}", f"Use one of {', '.join(_SCALES)}.")
    return name


def _to_base_unit(row: Treatment) -> Treatment:
    base, factor = _SCALES[row.unit or "%"]
    # Rounded to 12 digits, so that 70 nM gives exactly 0.07 uM. A rounding error would show in class names.
    return row._replace(unit=base, dose=None if row.dose is None else float(f"{row.dose * factor:.12g}"))
