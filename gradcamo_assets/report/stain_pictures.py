"""Draw the correlation between the stains of a plate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from gradcamo_assets.report.style import empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ["channel_a", "channel_b", "median_correlation", "q25_correlation", "q75_correlation"]


def channel_correlations(table: pl.DataFrame) -> Figure:
    """Draw Pearson's correlation for every pair of stains: its median over cells, and its quartiles.

    Args:
        table: ``channel_a``, ``channel_b``, ``median_correlation``, ``q25_correlation``, ``q75_correlation``, one row
            per pair; a pair without a value is grey.
    """
    from matplotlib import colormaps

    if table.is_empty():
        return empty_figure("There is only one stain, so there are no pairs to compare")
    names = list(dict.fromkeys([*table["channel_a"], *table["channel_b"]]))
    grid = np.where(np.eye(len(names)), 1.0, np.nan)
    figure = new_figure(1.1 * len(names) + 1.3, 0.8 * len(names) + 0.5)
    axes = figure.subplots()
    for a, b, median, low, high in table.select(_COLUMNS).drop_nulls().iter_rows():
        row, column = names.index(b), names.index(a)
        grid[row, column] = grid[column, row] = median
        colour = "w" if abs(median) > 0.6 else "k"
        for x, y, text in ((column, row, f"{median:.2f}"), (row, column, f"{low:.2f} to\n{high:.2f}")):
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    colours = colormaps["RdBu_r"].with_extremes(bad="#E4E4E4")
    picture = axes.imshow(grid, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title("below the diagonal: median over cells; above: quartiles", fontsize=8)
    figure.colorbar(picture, ax=axes, label="Pearson's correlation")
    return figure
