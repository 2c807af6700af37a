"""How a training went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from gradcamo_assets.figures.style import COLOURS, MARKERS, empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(history: pl.DataFrame) -> Figure:
    """One panel a metric, one line a split.

    Args:
        history: ``epoch`` and columns named ``<split>_<metric>``, such as ``val_loss``; nulls are left out.
    """
    metrics: dict[str, list[str]] = {}
    for column in history.columns:
        split, _, metric = column.partition("_")
        if metric and history[column].dtype.is_numeric() and history[column].drop_nulls().len():
            metrics.setdefault(metric, []).append(split)
    if not metrics:
        return empty_figure("No training history to show")
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    figure = new_figure(7, 2.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (metric, splits) in zip(panels, metrics.items(), strict=False):
        for number, split in enumerate(splits):
            points = history.select("epoch", f"{split}_{metric}").drop_nulls().sort("epoch")
            axes.plot(
                points["epoch"], points[f"{split}_{metric}"],
                color=COLOURS[number % 7], marker=MARKERS[number % 8], markersize=3, label=split,
            )  # fmt: skip
        axes.set(xlabel="Epoch", ylabel=metric.replace("_", " "))
        axes.legend(fontsize=8, frameon=False)
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    return figure
