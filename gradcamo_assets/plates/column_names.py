"""Recognise the columns of plate maps and label tables by the many names that labs give them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from gradcamo_assets.errors import PlateMapError
from gradcamo_assets.plates.treatments import normalise_unit

GENETIC = ("sirna", "shrna", "sgrna", "grna", "orf", "genotype", "genesymbol", "genename", "gene")
"""Columns that name a genetic perturbation, the most specific first."""
SPELLINGS: dict[str, tuple[str, ...]] = {
    "Metadata_Well": ("well", "wellposition", "wellid", "wellname", "destinationwell"),
    "Metadata_Site": ("site", "field", "fov"),
    "compound": (
        "compound", "compoundname", "cmpd", "cmpdname", "drug", "drugname", "pertiname", "perturbation", "compoundid",
        "cmpdid", "pertid", "broadsample", "treatment", "sample", "samplename", "inchikey", *GENETIC,
    ),
    "dose": (
        "dose", "dosevalue", "pertdose", "finaldose", "finalconcentration", "finalconc", "concentration", "conc",
        "compounddose", "drugdose", "compoundconcentration", "compoundconc", "drugconcentration", "drugconc",
        "molarity", "konzentration", "konz", "dosis", "mmolesperliter", "mgperml",
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


def match_columns(names: Sequence[str], path: Path) -> tuple[dict[str, str], str | None]:
    """Map each standard column to the file's column of that meaning; also return the unit in the dose column's name.

    ``Well Position``, ``well`` and ``Metadata_Well`` mean the same column, and so do ``Conc (uM)`` and ``conc_um``.
    """
    normalised = {name: normalise_column_name(name) for name in names}
    chosen: dict[str, str] = {}
    for standard, spellings in SPELLINGS.items():
        by_spelling = ([name for name in names if normalised[name][0] == spelling] for spelling in spellings)
        matches = next(filter(None, by_spelling), [])
        if len(matches) > 1:
            raise PlateMapError(f"columns {matches} both mean {standard}", "Keep one of them.", path=path)
        if matches:
            chosen[standard] = matches[0]
    return chosen, normalised[chosen["dose"]][1] if "dose" in chosen else None


def normalise_column_name(name: str) -> tuple[str, str | None]:
    """Reduce a column name to letters and digits, and split the unit off the name of a dose column."""
    text = unicodedata.normalize("NFKC", name).lower().removeprefix("metadata_").replace("\u03bc", "u")
    compact = re.sub(r"[^a-z0-9%/]", "", text)
    for dose in SPELLINGS["dose"]:
        suffix = compact.removeprefix(dose)
        if compact.startswith(dose) and (unit := normalise_unit(suffix or dose)):
            return dose, unit
    return re.sub(r"[^a-z0-9]", "", compact), None
