"""Draw charts of scores by dose, site and well, and of embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gradcamo_assets.names import normalise_well_name, row_index
from gradcamo_assets.report.style import COLOURS, GREY, MARKERS, empty_figure, new_figure, treatment_name
from gradcamo_assets.thresholds import THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TREATMENT = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
_MAX_ROWS, _MAX_POINTS_PER_ROW, _MAX_POINTS = 40, 200, 3000
_PLATE_FORMATS = [(2, 3), (4, 6), (8, 12), (16, 24), (32, 48)]


def score_distributions(
    scores: pl.DataFrame, value: str = "gradcamo", label: str = "Grad-CAMO", threshold: float | None = THRESHOLDS.paper
) -> Figure:
    """Draw box plots (median, quartiles, whiskers to 1.5 interquartile ranges) by treatment and by site.

    Cells are points; at most 200 per box are drawn.

    Args:
        scores: one row per cell: ``Metadata_Compound``, ``Metadata_Dose``, ``Metadata_Dose_Unit``, ``Metadata_Site``
            and the ``value`` column. Rows without a value are ignored.
        value: column of the scores.
        label: of the axis.
        threshold: position of a line; None for no line.
    """
    scores = scores.drop_nulls(value)
    if scores.is_empty():
        return empty_figure("No scores to show")
    groups_by_panel = [
        scores.sort(pl.col("Metadata_Dose") != 0, *_TREATMENT[:2]).partition_by(_TREATMENT),
        scores.sort("Metadata_Site").partition_by("Metadata_Site"),
    ]
    n_rows = min(max(map(len, groups_by_panel)), _MAX_ROWS)
    figure = new_figure(7, 0.32 * n_rows + 1.4)
    for number, axes in enumerate(figure.subplots(1, 2, sharex=True)):
        keys = ["Metadata_Site"] if number else _TREATMENT
        rng = np.random.default_rng(0)
        groups = groups_by_panel[number]
        values_by_row = [group[value].to_numpy() for group in groups[:_MAX_ROWS]]
        for row, points in enumerate(values_by_row):
            if len(points) > _MAX_POINTS_PER_ROW:
                points = rng.choice(points, _MAX_POINTS_PER_ROW, replace=False)
            heights = row + rng.uniform(-0.25, 0.25, len(points))
            axes.scatter(points, heights, s=6, color=COLOURS[number], alpha=0.35, linewidths=0)
        axes.boxplot(
            values_by_row, positions=range(len(values_by_row)), orientation="horizontal", widths=0.6,
            showfliers=False, medianprops={"color": "black", "linewidth": 2},
        )  # fmt: skip
        _name_rows(axes, [_name(group.select(keys).row(0, named=True), len(group)) for group in groups])
        axes.set_ylim(n_rows - 0.5, -0.5)  # Boxes have the same height in both panels.
        axes.set(xlabel=label)
        if threshold is not None:
            axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    return figure


def score_intervals(
    table: pl.DataFrame,
    columns: tuple[str, str, str] = ("on_target_fraction", "ci_low", "ci_high"),
    label: str = "Share of cells on target",
    threshold: float | None = None,
) -> Figure:
    """Draw a mean or share, one line per row of the table, with its confidence interval if known.

    Args:
        table: rows of a ``qc_by_*`` table: the ``columns``, ``n_cells``, and, as names, any of ``Metadata_Compound``
            with dose and unit, ``Metadata_Well``, ``Metadata_Site``.
        columns: value, lower and upper bound. Rows without a value are left out; bounds may be NULL.
        label: of the axis.
        threshold: position of a line; None for no line.
    """
    table = table.drop_nulls(columns[0])
    if table.is_empty():
        return empty_figure("No scores to show")
    names = [_name(row, row["n_cells"]) for row in table.iter_rows(named=True)]
    table = table.head(_MAX_ROWS)
    share, low, high = (table[column].cast(pl.Float64).fill_null(float("nan")).to_numpy() for column in columns)
    rows = np.arange(table.height)
    figure = new_figure(7, 0.3 * table.height + 1.1)
    axes = figure.subplots()
    axes.hlines(rows, low, high, color=COLOURS[0], linewidth=2)
    for fill, label, dots in (
        (COLOURS[0], "with 95% confidence interval over wells", np.isfinite(low)),
        ("white", "too few wells for an interval", np.isnan(low)),
    ):
        if dots.any():
            axes.scatter(share[dots], rows[dots], facecolors=fill, edgecolors=COLOURS[0], zorder=3, label=label)
    _name_rows(axes, names)
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(min(-0.02, *axes.get_xlim()), 1.02), xlabel=label)
    axes.grid(axis="x", color="#DDDDDD")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def _name(row: dict[str, Any], cells: int) -> str:
    """Return a name such as ``aspirin 0.3 uM, site 2 (n=40)``; a control, with dose 0, has its compound only."""
    well, site = row.get("Metadata_Well"), row.get("Metadata_Site")
    names = [treatment_name(row), well, f"site {site}" if site else None]
    return f"{', '.join(filter(None, names)) or 'cells'} (n={cells})"


def _name_rows(axes: Any, names: list[str]) -> None:
    """Label the rows from top to bottom; a title gives the number of rows if some are missing."""
    n_rows = min(len(names), _MAX_ROWS)
    axes.set_yticks(range(n_rows), names[:n_rows], fontsize=8)
    axes.set_ylim(n_rows - 0.5, -0.5)
    if len(names) > n_rows:
        axes.set_title(f"first {n_rows} of {len(names)}", fontsize=8)


def plate_heat_map(
    wells: pl.DataFrame, value: str, label: str, limits: tuple[float, float] | None = (0.0, 1.0)
) -> Figure:
    """Draw a heat map of wells on the smallest plate format that holds them; wells without a value are grey.

    Args:
        wells: ``Metadata_Well`` and the ``value`` column, one row per well.
        value: column of the values.
        label: name and unit of the value.
        limits: ends of the colour scale; None for the range of the data.

    Raises:
        PlateError: for an invalid well name.
    """
    from matplotlib import colormaps

    if wells.is_empty():
        return empty_figure("No wells to show")
    (rows, columns), letters, positions = plate_grid(wells["Metadata_Well"])
    grid = np.full((rows, columns), np.nan)
    grid[*positions.T] = wells[value].cast(pl.Float64).fill_null(float("nan")).to_numpy()

    figure = new_figure(7, 7 * 0.82 * rows / columns + 0.6)
    axes = figure.subplots()
    low, high = limits or (None, None)
    picture = axes.imshow(grid, cmap=colormaps["viridis"].with_extremes(bad="#E4E4E4"), vmin=low, vmax=high)
    if rows <= 8:
        for (row, column), number in np.ndenumerate(grid):
            if np.isfinite(number):
                text = f"{number:.2f}" if abs(number) < 10 else f"{number:.3g}"
                colour = "w" if number < np.dot(picture.get_clim(), (0.4, 0.6)) else "k"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    step = 1 if rows <= 16 else 2
    axes.set_yticks(range(0, rows, step), letters[::step], fontsize=8)
    axes.set_xticks(range(0, columns, step), [str(column + 1) for column in range(0, columns, step)], fontsize=8)
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0, top=False, labeltop=True, labelbottom=False)
    figure.colorbar(picture, ax=axes, label=label)
    return figure


def plate_grid(wells: Iterable[str]) -> tuple[tuple[int, int], list[str], np.ndarray]:
    """Find the smallest plate format that holds all wells.

    Returns:
        Its (rows, columns), the letters of its rows, and each well's row and column (N, 2), 0-based.

    Raises:
        PlateError: for an invalid well name.
    """
    names = [normalise_well_name(name) for name in wells]
    positions = np.array([(row_index(name[:-2]), int(name[-2:]) - 1) for name in names])
    size = next(size for size in _PLATE_FORMATS if (positions < size).all())
    letters = [*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase)]
    return size, letters[: size[0]], positions


def umap_scatter(table: pl.DataFrame) -> Figure:
    """Draw cells on the UMAP in two panels: by treatment (colour) and site (marker), and by Grad-CAMO (colour).

    The colours are those of compounds if there are 2 to 7 besides the controls, otherwise those of doses.

    Args:
        table: ``umap_x``, ``umap_y``, ``Metadata_Compound``, ``Metadata_Dose``, ``Metadata_Dose_Unit``,
            ``Metadata_Site`` and ``gradcamo`` (a cell without a score is drawn hollow).
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    if table.is_empty():
        return empty_figure("No embeddings to show")
    figure = new_figure(7, 3.9)
    by_dose, by_score = figure.subplots(1, 2, sharex=True, sharey=True)
    x, y, sites = (table[column].to_numpy() for column in ("umap_x", "umap_y", "Metadata_Site"))
    size = float(np.clip(3000 / table.height, 5, 40))

    subject, groups, names = _umap_groups(table)
    markers = {site: MARKERS[number % 8] for number, site in enumerate(np.unique(sites))}
    handles = []
    for number, name in enumerate(names):
        if not (groups == number).any():
            continue
        # Skip the palest end of the scale, which is hard to see on white.
        shade = colormaps["viridis"]((number - 1) / (len(names) - 1) * 0.95) if number else GREY
        if number and subject == "Compound":
            shade = COLOURS[number - 1]
        for site, marker in markers.items():
            dots = (groups == number) & (sites == site)
            by_dose.scatter(x[dots], y[dots], s=size, color=shade, marker=marker, linewidths=0, alpha=0.8)
        handles.append(Line2D([], [], color=shade, marker="o", linestyle="", label=name))
    if len(markers) > 1:
        for site, marker in markers.items():
            handles.append(Line2D([], [], color="black", marker=marker, linestyle="", label=f"site {site}"))
    by_dose.set_title(f"{subject} and site" if len(markers) > 1 else subject, fontsize=10)

    score = table["gradcamo"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    has_score = np.isfinite(score)
    by_score.scatter(x[~has_score], y[~has_score], s=size, facecolors="none", edgecolors=GREY, linewidths=0.6)
    points = by_score.scatter(
        x[has_score], y[has_score], s=size, c=score[has_score], cmap="cividis", vmin=0, vmax=1, linewidths=0
    )
    figure.colorbar(points, ax=by_score, label="Grad-CAMO")
    by_score.set_title("Score", fontsize=10)
    for axes in (by_dose, by_score):
        axes.set(xlabel="UMAP 1", ylabel="UMAP 2" if axes is by_dose else "", xticks=[], yticks=[])
    figure.legend(handles=handles[:24], loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _umap_groups(table: pl.DataFrame) -> tuple[str, np.ndarray, list[str]]:
    """Return what the colours show, the number of each cell's group, and the groups' names; 0 is the controls."""
    treatments = table.select(_TREATMENT).rows()
    compounds = sorted({compound for compound, dose, _ in treatments if compound and dose != 0})
    if 2 <= len(compounds) <= len(COLOURS):
        groups = [0 if dose == 0 or not compound else 1 + compounds.index(compound) for compound, dose, _ in treatments]
        return "Compound", np.array(groups), ["control", *compounds]
    unknown = (math.inf, "")
    doses = [
        (dose, unit or "") if dose else unknown if compound and dose is None else (0.0, "")
        for compound, dose, unit in treatments
    ]
    order = sorted({(0.0, ""), *doses})
    names = ["no dose" if dose == math.inf else f"{dose:g} {unit}".strip() for dose, unit in order[1:]]
    return "Dose", np.array([order.index(dose) for dose in doses]), ["control", *names]


def score_against_ceiling(scores: pl.DataFrame) -> Figure:
    """Draw each cell's score over its ceiling, the highest score its map allows, with medians in bins of the ceiling.

    Args:
        scores: ``gradcamo``, ``gradcamo_max``, ``mask_fraction`` and ``looks_at``, one row per cell; rows without the
            first two are ignored. At most 3000 cells are drawn.
    """
    scores = scores.drop_nulls(["gradcamo", "gradcamo_max"])
    if scores.is_empty():
        return empty_figure("No scores to show")
    figure = new_figure(7, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="ceiling")
    drawn = scores.sample(min(_MAX_POINTS, len(scores)), seed=0)
    for number, region in enumerate(("target", "neighbour", "background", "none")):
        part = drawn.filter(looks_at=region)
        if len(part):
            axes.scatter(
                part["gradcamo_max"], part["gradcamo"], s=12, color=COLOURS[number], marker=MARKERS[number], alpha=0.5,
                linewidths=0, label=f"looks at {region}" if number < 3 else "looks at no particular region",
            )  # fmt: skip
    bins = (
        scores.with_columns(pl.col("gradcamo_max").rank("ordinal").mul(8).floordiv(len(scores) + 1).alias("bin"))
        .group_by("bin")
        .agg(pl.col("gradcamo_max", "gradcamo", "mask_fraction").median())
        .sort("gradcamo_max")
    )
    axes.plot(
        bins["gradcamo_max"],
        bins["gradcamo"],
        color="black",
        marker="o",
        markersize=4,
        label="median per eighth of the cells",
    )
    axes.plot(bins["gradcamo_max"], bins["mask_fraction"], color="black", linestyle=":", label="chance")
    axes.axhline(0.5, color=GREY, linewidth=0.8, label="on-target threshold")
    low = max(0.0, float(scores["gradcamo_max"].quantile(0.005) or 0) - 0.05)
    axes.set(xlim=(low, 1.03), ylim=(-0.02, 1.02), xlabel="Highest score the map allows (ceiling)", ylabel="Grad-CAMO")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure
