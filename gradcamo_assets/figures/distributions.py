"""Scores by dose and by site, and the share of cells on target with its uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gradcamo_assets.figures.style import COLOURS, GREY, empty_figure, new_figure, treatment_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TREATMENT = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
_MOST_ROWS, _MOST_POINTS = 40, 200


def score_distributions(
    scores: pl.DataFrame, value: str = "gradcamo", label: str = "Grad-CAMO", threshold: float | None = 0.5
) -> Figure:
    """Boxes (median, quartiles, whiskers to 1.5 interquartile ranges) with cells as points, by treatment and by site.

    Args:
        scores: one row a cell: ``Metadata_Compound``, ``Metadata_Dose``, ``Metadata_Dose_Unit``, ``Metadata_Site`` and
            the ``value`` column; rows without a value are left out.
        threshold: a line is drawn there, unless None.
    """
    scores = scores.drop_nulls(value)
    if scores.is_empty():
        return empty_figure("No scores to show")
    by_treatment = [
        (f"{treatment_name(*key)} (n={rows.height})", rows[value].to_numpy())
        for key, rows in scores.sort(pl.col("Metadata_Dose") != 0, "Metadata_Compound", "Metadata_Dose").group_by(
            _TREATMENT, maintain_order=True
        )
    ]
    by_site = [
        (f"site {key[0]} (n={rows.height})", rows[value].to_numpy())
        for key, rows in scores.sort("Metadata_Site").group_by(["Metadata_Site"], maintain_order=True)
    ]
    shown = max(min(len(by_treatment), _MOST_ROWS), min(len(by_site), _MOST_ROWS))
    figure = new_figure(7, 0.32 * shown + 1.4)
    for axes, groups, colour in zip(figure.subplots(1, 2, sharex=True), (by_treatment, by_site), COLOURS, strict=False):
        _boxes(axes, groups, colour)
        axes.set_ylim(shown - 0.5, -0.5)  # boxes of the same height in both panels
        axes.set(xlabel=label)
        if threshold is not None:
            axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    return figure


def _boxes(axes: Any, groups: list[tuple[str, np.ndarray]], colour: str) -> None:
    rng = np.random.default_rng(0)
    kept = groups[:_MOST_ROWS]
    for row, (_, values) in enumerate(kept):
        points = values if len(values) <= _MOST_POINTS else rng.choice(values, _MOST_POINTS, replace=False)
        axes.scatter(points, row + rng.uniform(-0.25, 0.25, len(points)), s=6, color=colour, alpha=0.35, linewidths=0)
    axes.boxplot(
        [values for _, values in kept], positions=range(len(kept)), orientation="horizontal", widths=0.6,
        showfliers=False, medianprops={"color": "black", "linewidth": 2},
    )  # fmt: skip
    _name_rows(axes, [name for name, _ in groups])


def _name_rows(axes: Any, names: list[str]) -> None:
    """Labels from top to bottom; says so where there are more than fit."""
    shown = min(len(names), _MOST_ROWS)
    axes.set_yticks(range(shown), names[:shown], fontsize=8)
    axes.set_ylim(shown - 0.5, -0.5)
    if len(names) > shown:
        axes.set_title(f"first {shown} of {len(names)}", fontsize=8)


def on_target_intervals(table: pl.DataFrame) -> Figure:
    """The share of cells on target, a row each, with its confidence interval where there is one.

    Args:
        table: rows of a ``qc_by_*`` table: ``on_target_fraction``, ``ci_low``, ``ci_high`` (may be NULL), ``n_cells``,
            and, to name the row, any of ``Metadata_Compound`` with dose and unit, ``Metadata_Well``, ``Metadata_Site``.
    """
    table = table.drop_nulls("on_target_fraction")
    if table.is_empty():
        return empty_figure("No scores to show")
    names = []
    for row in table.iter_rows(named=True):
        parts = [treatment_name(*(row.get(key) for key in _TREATMENT))] if row.get("Metadata_Compound") else []
        parts += [str(row["Metadata_Well"])] if row.get("Metadata_Well") else []
        parts += [f"site {row['Metadata_Site']}"] if row.get("Metadata_Site") is not None else []
        names.append(f"{', '.join(parts) or 'all cells'} (n={row['n_cells']})")
    table = table.head(_MOST_ROWS)
    share, rows = table["on_target_fraction"].to_numpy(), np.arange(table.height)
    figure = new_figure(7, 0.3 * table.height + 1.1)
    axes = figure.subplots()
    low, high = (table[end].cast(pl.Float64).fill_null(float("nan")).to_numpy() for end in ("ci_low", "ci_high"))
    axes.hlines(rows, low, high, color=COLOURS[0], linewidth=2)
    certain = np.isfinite(low)
    axes.scatter(share[certain], rows[certain], color=COLOURS[0], zorder=3, label="with 95% interval over wells")
    if not certain.all():
        axes.scatter(
            share[~certain], rows[~certain], facecolors="white", edgecolors=COLOURS[0], zorder=3,
            label="too few wells for an interval",
        )  # fmt: skip
    _name_rows(axes, names)
    axes.set(xlim=(-0.02, 1.02), xlabel="Share of cells on target")
    axes.grid(axis="x", color="#DDDDDD")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure
