"""Parse treatments from the text of a table: compound, dose, unit, perturbation type, dose rank and class."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import polars as pl

from gradcamo_assets.errors import PlateMapError

TEXT_COLUMNS = ("compound", "dose", "unit", "column_unit", "pert_type", "control_type", "solvent")
"""The text columns that ``parse_treatments`` reads."""
TREATMENT_COLUMNS = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
_SCALES = {
    "M": ("uM", 6), "mM": ("uM", 3), "uM": ("uM", 0), "nM": ("uM", -3), "pM": ("uM", -6),
    "mg/mL": ("ug/mL", 3), "ug/mL": ("ug/mL", 0), "ng/mL": ("ug/mL", -3), "%": ("%", 0),
}  # fmt: skip
"""Known units: the unit to which they are converted, and the power of ten of the conversion."""
_DOSE_DIGITS = 6
"""Significant digits of a dose. Doses that differ by rounding, such as 3.3333333 and 3.33333333333, become equal here;
everything later compares doses exactly."""
_MAX_NAME_LENGTH = 255
_MONTH = "(?:jan|feb|m[aä]r|mrz|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)"
_DATE = re.compile(
    rf"\d{{4}}-\d\d-\d\d(?:[ t][\d:.]+)?|\d{{1,2}}[-. ]+{_MONTH}(?:[-. ]+\d{{2,4}})?|{_MONTH}-\d\d"
    r"|\d{1,2}([./])\d{1,2}\1\d{2,4}",
    re.IGNORECASE,
)
"""A date as a workbook stores it, or as Excel shows it: it turns MARCH1 into 1-Mar."""
_PREFIX, _LITRE = r"(pico|nano|micro|milli|mc|[pnum]?)", r"l(?:iters?|itres?)?(?:-1)?"
_UNITS = {
    re.compile(rf"{_PREFIX}(?:m|molar|mol(?:ar|es?|s)?(?:/|per|){_LITRE})"): "M",
    re.compile(rf"{_PREFIX}g(?:rams?)?(?:/|per|)m(?:illi)?{_LITRE}"): "g/mL",
    re.compile(r"()(?:(?:%|percent|pct)(?:[vw]/[vw])?|[vw]/[vw]%?)"): "%",
}
_LETTERS = {"pico": "p", "nano": "n", "micro": "u", "milli": "m", "mc": "u"}
_DOSE = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([^0-9.,+\-].*)?")

_TYPE_SPELLINGS = {
    "trt": {"trt", "trtcp", "treatment", "compound", "sample"},
    "negcon": {
        "dmso", "negcon", "negative", "neg", "vehicle", "ctlvehicle", "vehicledmso", "dmsovehicle", "untreated",
        "ctluntrt", "nottreated", "nontreated", "notreatment", "mock", "media", "medium", "pbs", "water", "h2o",
        "dimethylsulfoxide", "dimethylsulphoxide", "scramble", "scrambled", "nontargeting",
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

    The unit in the dose cell wins over the unit column, which wins over the unit in the name of the dose column. Molar
    doses are converted to uM and masses per volume to ug/mL, so that doses of all plates compare. Doses are rounded to
    six significant digits. A dose of 0 or none has no unit.

    Args:
        table: text, with Metadata_Well and all of ``TEXT_COLUMNS``.

    Raises:
        PlateMapError: a dose that is negative or not a number, two doses in one cell, an unknown unit, two units for
            one dose, an unknown perturbation type, or a compound that is a date, too long or not printable.
    """
    distinct = table.group_by(TEXT_COLUMNS, maintain_order=True).agg(pl.col("Metadata_Well").first())
    parsed = []
    for *cells, well in distinct.iter_rows():
        try:
            parsed.append(_parse_treatment(*cells))
        except PlateMapError as error:
            raise error.at(well=well, path=path) from error
    types = dict(zip(TREATMENT_COLUMNS, (pl.String, pl.Float64, pl.String, pl.String), strict=True))
    lookup = distinct.select(TEXT_COLUMNS).hstack(pl.DataFrame(parsed, schema=types, orient="row"))
    joined = table.join(lookup, on=TEXT_COLUMNS, how="left", nulls_equal=True, maintain_order="left")
    return joined.select(TREATMENT_COLUMNS)


def add_dose_ranks(frame: pl.DataFrame) -> pl.DataFrame:
    """Add Metadata_Dose_Rank: 0 for a dose of 0, else 1, 2, ... by dose within compound and unit, NULL without dose."""
    dose = pl.col("Metadata_Dose")
    rank = pl.when(dose > 0).then(dose).rank("dense").over("Metadata_Compound", "Metadata_Dose_Unit")
    return frame.with_columns(Metadata_Dose_Rank=pl.when(dose == 0).then(0).otherwise(rank).cast(pl.Int32))


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
    compound = None if compound is None else _parse_name(compound)
    kind = _parse_pert_type(compound, control_type or pert_type, solvent)
    value, cell_unit = (None, None) if dose is None else _parse_dose(dose)
    row_unit = None if unit is None else _parse_unit(unit)
    if cell_unit and row_unit and cell_unit != row_unit:
        problem = f"dose {dose[:40]!r} has two units, its own and {unit[:40]!r} from the unit column"
        raise PlateMapError(problem, "Give each dose one unit.")
    if kind == "negcon" or (kind == "poscon" and value is None):
        value = Decimal(0)
    if compound is None and kind == "negcon":
        compound = None if solvent is None else _parse_name(solvent)
    return Treatment(compound, *_convert_dose(value, cell_unit or row_unit or (dose and column_unit)), kind)


def _parse_name(text: str) -> str:
    """Return the name of a compound with composed letters and plain blanks."""
    name = unicodedata.normalize("NFC", text).replace("\u00a0", " ")
    if _DATE.fullmatch(name):
        remedy = "Excel turns names such as MARCH1 into dates: format the column as text and enter the name again."
        raise PlateMapError(f"compound {name!r} is a date", remedy)
    problem = None if name.isprintable() else "has control characters"
    if len(name) > _MAX_NAME_LENGTH:
        problem = f"has {len(name):,} characters"
    if problem:
        remedy = f"Give names of at most {_MAX_NAME_LENGTH} printable characters."
        raise PlateMapError(f"compound {name[:40]!r} {problem}", remedy)
    return name


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
    """Reduce to letters and digits, without a strength, a number and the word control: ``DMSO 0.1% v/v``, ``DMSO_2``
    and ``DMSO control`` give ``dmso``."""
    bare = re.sub(r"[0-9.,]+\s*%\s*\(?(?:[vw]/[vw])?", "", text[:100].lower())
    # Numbered controls: DMSO_2, DMSO1. H2O2 is no numbered H2O.
    bare = re.sub(r"(?:[\s_#-]+|(?<=dmso))[0-9]+$", "", bare)
    return re.sub(r"(?:control|controls|ctrl|ctl|only)$", "", re.sub(r"[^a-z0-9]", "", bare))


def is_dose(text: str) -> bool:
    """Whether a text is a number of at least 0, with or without a known unit."""
    try:
        _parse_dose(text)
    except PlateMapError:
        return False
    return True


def _parse_dose(text: str) -> tuple[Decimal, str | None]:
    match = _DOSE.fullmatch(text)
    number = float(match[1]) if match else -1.0
    if match is None or not 0 <= number < 1e300:
        remedy = "Give doses as numbers of at least 0, with or without a unit, for example 10 uM."
        raise PlateMapError(f"{text[:40]!r} is not a dose", remedy)
    if match[2] and re.search(r"[+;,&|]\s*[0-9.]", match[2]):
        remedy = "A well has one compound and one dose: write a combination as one compound, LPS 1 ug/mL + ATP 1 mM."
        raise PlateMapError(f"{text[:40]!r} are several doses", remedy)
    return Decimal(match[1] if number else 0), _parse_unit(match[2]) if match[2] else None


def _parse_unit(unit: str) -> str:
    name = normalise_unit(unit)
    if name is None:
        raise PlateMapError(f"unknown unit {unit[:40]!r}", f"Use one of {', '.join(_SCALES)}.")
    return name


def _convert_dose(dose: Decimal | None, unit: str | None) -> tuple[float | None, str | None]:
    """Return a dose and its unit as all plates store them; decimals are converted without a rounding error."""
    if not dose:
        return (None if dose is None else 0.0), None
    base, power = _SCALES[unit] if unit else (None, 0)
    return float(f"{dose.scaleb(power):.{_DOSE_DIGITS}g}"), base
