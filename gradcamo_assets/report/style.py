"""Define what all figures share: a colour-blind safe palette, treatment names, and the empty figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is hard to see on white.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = "osD^vP*X"
GREY = "#6E6E6E"


def new_figure(width: float, height: float) -> Figure:
    """Create a figure with a constrained layout; sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def empty_figure(message: str) -> Figure:
    """Create a figure with a message in place of a chart."""
    figure = new_figure(7, 1.2)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure


def treatment_name(row: Mapping[str, Any]) -> str | None:
    """Return a name such as ``aspirin 0.3 uM``; a control, with dose 0, has its compound only."""
    compound = row.get("Metadata_Compound")
    return f"{compound} {dose_name(row)}".strip() if compound else compound


def dose_name(row: Mapping[str, Any]) -> str:
    """Return a dose such as ``0.3 uM``; empty for a control and an unknown dose."""
    dose = row.get("Metadata_Dose")
    return f"{dose:g} {row.get('Metadata_Dose_Unit') or ''}".strip() if dose else ""
