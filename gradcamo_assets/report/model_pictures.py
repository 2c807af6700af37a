"""Draw model versions: training curves, confusion, calibration, and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gradcamo_assets.report.style import COLOURS, GREY, MARKERS, empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_CLASSES_NAMED, _MAX_CLASSES_COUNTED = 40, 12


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the share of each true class's cells by predicted class; counts are printed for up to 12 classes.

    Args:
        counts: (K, K), true class by predicted class.
        classes: K names.
    """
    if not counts.sum():
        return empty_figure("No cells to show")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.35 * len(classes) + 2.5, 3.5, 9))
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
    if len(classes) <= _MAX_CLASSES_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "w" if share[row, column] < 0.5 else "k"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    if len(classes) <= _MAX_CLASSES_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="Predicted class", ylabel="True class")
    figure.colorbar(picture, ax=axes, label="Share of the true class's cells")
    return figure


def reliability(bins: pl.DataFrame) -> Figure:
    """Draw accuracy over confidence, one point per bin; the area of a point shows the number of cells.

    Args:
        bins: ``confidence``, ``accuracy``, ``cells``.
    """
    if bins.is_empty():
        return empty_figure("No cells to show")
    figure = new_figure(4.2, 3.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
    axes.plot(bins["confidence"], bins["accuracy"], color=COLOURS[0], linewidth=1)
    size = 20 + 180 * bins["cells"].to_numpy() / bins["cells"].sum()
    axes.scatter(bins["confidence"], bins["accuracy"], s=size, color=COLOURS[0], zorder=3, label="confidence bins")
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="Mean confidence", ylabel="Accuracy")
    axes.legend(fontsize=8, frameon=False)
    return figure


def training_curves(history: pl.DataFrame) -> Figure:
    """Draw one panel per metric, with one line per split.

    Args:
        history: ``epoch`` and columns named ``<split>_<metric>``, such as ``val_loss``; nulls are skipped.
    """
    numeric = history.select(pl.selectors.numeric())
    split_metrics = [name.split("_", 1) for name in numeric.columns if "_" in name and numeric[name].count()]
    metrics = list(dict.fromkeys(metric for _, metric in split_metrics))
    if not metrics:
        return empty_figure("No training history to show")
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    panels = new_figure(7, 2.6 * rows).subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    for axes, metric in zip(panels, metrics, strict=False):
        splits = [split for split, its_metric in split_metrics if its_metric == metric]
        for number, split in enumerate(splits):
            points = history.select("epoch", f"{split}_{metric}").drop_nulls().sort("epoch")
            style = {"color": COLOURS[number % 7], "marker": MARKERS[number % 8], "markersize": 3}
            axes.plot(*points.get_columns(), label=split, **style)
        axes.set(xlabel="Epoch", ylabel=metric.replace("_", " "))
        axes.legend(fontsize=8, frameon=False)
    return panels[0].figure


def accuracy_against_score(points: pl.DataFrame, x: str = "on_target_fraction", y: str = "accuracy") -> Figure:
    """Draw one point per row with its 95% intervals; accurate versions that look at the cell are at the top right.

    Args:
        points: ``name``, the columns ``x`` and ``y``, each with ``<column>_low`` and ``<column>_high`` (may be NULL),
            and ``part``, which determines the marker.
    """
    points = points.drop_nulls([x, y])
    if points.is_empty():
        return empty_figure("No scored versions to show")
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    names, parts = (points[column].unique(maintain_order=True).to_list() for column in ("name", "part"))
    for row in points.iter_rows(named=True):
        colour = COLOURS[names.index(row["name"]) % len(COLOURS)]
        axes.errorbar(
            row[x], row[y], xerr=_error_bar(row, x), yerr=_error_bar(row, y), fmt=MARKERS[parts.index(row["part"]) % 8],
            color=colour, capsize=3, label=f"{row['name']}, {row['part']}",
        )  # fmt: skip
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=_axis_label(x), ylabel=_axis_label(y))
    axes.grid(color="#DDDDDD")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def paired_differences(pairs: pl.DataFrame) -> Figure:
    """Draw the differences of other versions from the champion on the same cells: one panel per measure.

    Args:
        pairs: ``name``, ``n_cells``, ``measure``, ``difference``, ``low``, ``high`` (may be NULL).
    """
    pairs = pairs.drop_nulls("difference")
    if pairs.is_empty():
        return empty_figure("No two versions were evaluated on the same cells")
    measures = pairs["measure"].unique(maintain_order=True).to_list()
    names = pairs["name"].unique(maintain_order=True).to_list()
    panels = new_figure(7, 0.35 * len(names) + 1.3).subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
        for row in pairs.filter(measure=measure).iter_rows(named=True):
            error_bar = _error_bar({"d": row["difference"], "d_low": row["low"], "d_high": row["high"]}, "d")
            axes.errorbar(
                row["difference"], names.index(row["name"]), xerr=error_bar, fmt="o", color=COLOURS[0], capsize=3
            )
        axes.set_title(_axis_label(measure), fontsize=9)
        axes.set_xlabel("difference from champion", fontsize=8)
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return panels[0].figure


def layer_scores(layers: pl.DataFrame) -> Figure:
    """Draw the scores of the same cells at several layers, one row per layer from the image to the head.

    Args:
        layers: ``layer``, ``on_target_fraction`` with ``_low`` and ``_high`` (may be NULL), ``median_gradcamo``,
            ``median_adjusted``, ``median_ceiling``, ``median_chance``.
    """
    if layers.is_empty():
        return empty_figure("No layers to show")
    figure = new_figure(7, 0.45 * len(layers) + 1.6)
    axes = figure.subplots()
    rows = np.arange(len(layers))
    score, chance, ceiling = (
        layers[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in ("median_gradcamo", "median_chance", "median_ceiling")
    )
    axes.hlines(rows, chance, ceiling, color="#CCCCCC", linewidth=6, label="from chance to ceiling")
    axes.scatter(score, rows, marker="|", s=160, color="black", label="median score", zorder=3)
    for number, name in enumerate(("on_target_fraction", "median_adjusted")):
        for position, row in enumerate(layers.iter_rows(named=True)):
            if row[name] is not None:
                axes.errorbar(
                    row[name], position + 0.18 * (2 * number - 1), xerr=_error_bar(row, name), fmt=MARKERS[number],
                    color=COLOURS[number], capsize=3, label=None if position else _axis_label(name),
                )  # fmt: skip
    axes.set_yticks(rows, layers["layer"].to_list(), fontsize=8)
    axes.set(xlim=(min(-0.02, *axes.get_xlim()), 1.02), ylim=(len(layers) - 0.5, -0.5))
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def _error_bar(row: dict[str, Any], column: str) -> np.ndarray | None:
    """Return the lengths of an error bar, (2, 1); None without an interval."""
    low, middle, high = (row.get(name) for name in (f"{column}_low", column, f"{column}_high"))
    return None if low is None or high is None else np.clip([[middle - low], [high - middle]], 0, None)


def _axis_label(column: str) -> str:
    return {
        "on_target_fraction": "Share of cells on target",
        "median_adjusted": "Median adjusted score",
        "gradcamo_adjusted": "Adjusted score",
        "on_target": "On target",
    }.get(column, column.replace("_", " ").capitalize())


def map_by_epoch(cells: pl.DataFrame) -> list[Figure]:
    """Draw validation cells on the map after every epoch of training, on the same axes.

    Args:
        cells: ``epoch``, ``treatment_class``, ``umap_x``, ``umap_y``.
    """
    names, figures = cells["treatment_class"].unique().sort().to_list(), []
    limits = cells.select(pl.min("umap_x", "umap_y").name.suffix("_0"), pl.max("umap_x", "umap_y")).row(0)
    for (epoch,), rows in cells.group_by("epoch", maintain_order=True):
        figure = new_figure(4.2, 4.4)
        axes = figure.subplots()
        for number, name in enumerate(names):
            part = rows.filter(treatment_class=name)
            axes.scatter(
                part["umap_x"], part["umap_y"], s=14, color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)], linewidths=0, alpha=0.8, label=name,
            )  # fmt: skip
        axes.set(xlim=_with_margin(limits[0], limits[2]), ylim=_with_margin(limits[1], limits[3]), xticks=[], yticks=[])
        axes.set_title(f"Validation cells after epoch {epoch}", fontsize=9)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
        figures.append(figure)
    return figures


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
