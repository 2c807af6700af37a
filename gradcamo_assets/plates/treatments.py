"""What a well was given, from the text of a table: compound, dose, unit, kind of treatment, rank and class."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import polars as pl

from gradcamo_assets.errors import PlateMapError

TEXT = ("compound", "dose", "unit", "column_unit", "pert_type", "control_type", "solvent")
"""The columns of text that ``treatments`` understands."""
GIVEN = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
_SCALES = {
    "M": ("uM", 1e6), "mM": ("uM", 1e3), "uM": ("uM", 1.0), "nM": ("uM", 1e-3), "pM": ("uM", 1e-6),
    "mg/mL": ("ug/mL", 1e3), "ug/mL": ("ug/mL", 1.0), "ng/mL": ("ug/mL", 1e-3), "%": ("%", 1.0),
}  # fmt: skip
"""The units that are known, and what one of each is in the unit to which mixtures are brought."""
_PREFIX, _LITRE = r"(pico|nano|micro|milli|mc|[pnum]?)", r"l(?:iters?|itres?)?(?:-1)?"
_UNITS = {
    re.compile(rf"{_PREFIX}(?:m|molar|mol(?:ar|es?|s)?(?:/|per|){_LITRE})"): "M",
    re.compile(rf"{_PREFIX}g(?:rams?)?(?:/|per|)m(?:illi)?{_LITRE}"): "g/mL",
    re.compile(r"()(?:(?:%|percent|pct)(?:[vw]/[vw])?|[vw]/[vw]%?)"): "%",
}
_LETTERS = {"pico": "p", "nano": "n", "micro": "u", "milli": "m", "mc": "u"}
_DOSE = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([^0-9.,+\-].*)?")
_SAME = 1e-9
"""Doses that differ by less, relative to themselves, are one dose."""

_NAMES = {
    "trt": {"trt", "trtcp", "treatment", "compound", "sample"},
    "negcon": {
        "dmso", "negcon", "negative", "neg", "vehicle", "ctlvehicle", "vehicledmso", "dmsovehicle", "untreated",
        "ctluntrt", "nottreated", "nontreated", "notreatment", "mock", "media", "medium", "pbs", "water", "h2o",
    },
    "poscon": {"poscon", "posconcp", "poscondiverse", "posconorf", "positive", "pos"},
    "empty": {"empty", "blank"},
}  # fmt: skip
"""How people call the kinds of treatment."""
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names}


class Treatment(NamedTuple):
    """What one well was given."""

    compound: str | None
    dose: float | None
    unit: str | None
    pert_type: str


def unit_name(text: str) -> str | None:
    """A unit in its one spelling (nM, uM, mM, M, pM, mg/mL, ug/mL, ng/mL, %), or None where it is none of them."""
    plain = re.sub(r"[\s._^()\[\]]", "", unicodedata.normalize("NFKC", text).casefold()).replace("\u03bc", "u")
    for pattern, unit in _UNITS.items():
        if match := pattern.fullmatch(plain):
            name = _LETTERS.get(match[1], match[1]) + unit
            return name if name in _SCALES else None
    return None


def treatments(table: pl.DataFrame, path: Path | None) -> pl.DataFrame:
    """The columns ``GIVEN`` of a table of text, row by row; ``table`` holds Metadata_Well and all of ``TEXT``.

    A unit in the dose's cell comes before that of the unit column, and this before that of the dose column's name.
    Molar units that are mixed become uM, mixed masses a volume ug/mL; a single one stays as it was given.

    Raises:
        PlateMapError: a dose that is negative or no number, an unknown unit, two units for one dose, an unknown kind.
    """
    distinct = table.group_by(TEXT, maintain_order=True).agg(pl.col("Metadata_Well").first())
    found = []
    for *cells, well in distinct.iter_rows():
        try:
            found.append(_treatment(*cells))
        except PlateMapError as error:
            raise error.at(well=well, path=path) from error
    bases = [_SCALES[unit][0] for unit in {row.unit for row in found if row.unit}]
    scaled = [_scaled(row) if row.unit and bases.count(_SCALES[row.unit][0]) > 1 else row for row in found]
    types = dict(zip(GIVEN, (pl.String, pl.Float64, pl.String, pl.String), strict=True))
    known = distinct.select(TEXT).hstack(pl.DataFrame(scaled, schema=types, orient="row"))
    return table.join(known, on=TEXT, how="left", nulls_equal=True, maintain_order="left").select(GIVEN)


def with_ranks(frame: pl.DataFrame) -> pl.DataFrame:
    """Add Metadata_Dose_Rank: 0 for a dose of 0, else 1, 2, ... by dose within compound and unit; NULL for no dose."""
    dose = pl.col("Metadata_Dose")
    above = pl.when(dose > 0).then(dose)
    higher = above.is_not_null() & (above.shift().is_null() | (above > above.shift() * (1 + _SAME)))
    steps = higher.cast(pl.Int32).cum_sum().over("Metadata_Compound", "Metadata_Dose_Unit", order_by="Metadata_Dose")
    rank = pl.when(dose == 0).then(0).when(dose > 0).then(steps)
    return frame.with_columns(rank.cast(pl.Int32).alias("Metadata_Dose_Rank"))


def treatment_class() -> pl.Expr:
    """The class of a row with plate map columns, as text.

    ``negcon`` for negative controls, ``<compound>@<dose><unit>`` for what was given (without its dose where that is not
    known), NULL for empty wells and unknown compounds.
    """
    kind, unit = pl.col("Metadata_pert_type"), pl.col("Metadata_Dose_Unit").fill_null("")
    dose = pl.col("Metadata_Dose").map_elements(lambda value: f"{value:g}", return_dtype=pl.String)
    given = pl.concat_str("Metadata_Compound", pl.concat_str(pl.lit("@"), dose, unit).fill_null(""))
    return pl.when(kind == "negcon").then(pl.lit("negcon")).when(kind != "empty").then(given)


def _treatment(
    compound: str | None, dose: str | None, unit: str | None, column_unit: str | None,
    pert_type: str | None, control_type: str | None, solvent: str | None,
) -> Treatment:  # fmt: skip
    kind = _kind(compound, control_type or pert_type, solvent)
    value, cell_unit = (None, None) if dose is None else _dose(dose)
    row_unit = None if unit is None else _known(unit)
    if cell_unit and row_unit and cell_unit != row_unit:
        raise PlateMapError(f"dose {dose!r} has two units, the other is {unit!r}", "Give each dose one unit.")
    if kind == "negcon" or (kind == "poscon" and value is None):
        value = 0.0
    if compound is None and kind == "negcon":
        compound = solvent
    return Treatment(compound, value, cell_unit or row_unit or (dose and column_unit), kind)


def _kind(compound: str | None, said: str | None, solvent: str | None) -> str:
    # A well without a compound that has the vehicle is a control (Broad's maps); a 'control' is told by its name.
    by_name = _KINDS.get(_plain(compound or solvent or "empty"))
    if said is None and compound is not None and not _plain(compound):
        raise PlateMapError(f"{compound[:40]!r} may be any control", "Say which in a column Metadata_pert_type.")
    if by_name not in ("negcon", "poscon", "empty"):
        by_name = "trt" if compound else "empty"
    if said is None:
        return by_name
    kind = _KINDS.get(_plain(said), by_name if not _plain(said) and by_name == "negcon" else None)
    if kind is None:
        problem = f"{said[:40]!r} is no perturbation type"
        raise PlateMapError(problem, f"Use {', '.join(_NAMES)}, or control with a control_type.")
    return kind


def _plain(text: str) -> str:
    """Letters and digits, without a strength (``DMSO 0.1% v/v``) and the word control: ``dmso``."""
    bare = re.sub(r"[0-9.,]+\s*%\s*\(?(?:[vw]/[vw])?", "", text[:100].lower())
    return re.sub(r"(?:control|controls|ctrl|ctl|only)$", "", re.sub(r"[^a-z0-9]", "", bare))


def _dose(text: str) -> tuple[float, str | None]:
    match = _DOSE.fullmatch(text)
    value = float(match[1]) if match else -1.0
    if match is None or not 0 <= value < float("inf"):
        remedy = "Give doses as numbers from 0, with their unit if need be: 10 uM."
        raise PlateMapError(f"{text[:40]!r} is no dose", remedy)
    return value, _known(match[2]) if match[2] else None


def _known(unit: str) -> str:
    name = unit_name(unit)
    if name is None:
        raise PlateMapError(f"{unit[:40]!r} is no unit", f"Use one of {', '.join(_SCALES)}.")
    return name


def _scaled(row: Treatment) -> Treatment:
    base, factor = _SCALES[row.unit or "%"]
    # Twelve digits: 70 nM is 0.07 uM, not 0.07 and a rounding error that would show in classes and names.
    return row._replace(unit=base, dose=None if row.dose is None else float(f"{row.dose * factor:.12g}"))
