"""What all pictures share: colours that colour-blind readers can tell apart, names of treatments, the empty page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which vanishes on white.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = "osD^vP*X"
GREY = "#6E6E6E"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with a constrained layout, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def empty_figure(message: str) -> Figure:
    """A figure that says in words why there is nothing to see."""
    figure = new_figure(7, 1.2)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure


def treatment_name(row: Mapping[str, Any]) -> str | None:
    """``aspirin 0.3 uM`` of a row's ``Metadata_Compound``, dose and unit; a control goes by its compound alone."""
    compound, dose = row.get("Metadata_Compound"), row.get("Metadata_Dose")
    return f"{compound} {dose:g} {row.get('Metadata_Dose_Unit') or ''}".strip() if compound and dose else compound
