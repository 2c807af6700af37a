"""A value by well, laid out as on the plate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from gradcamo_assets.common.names import row_index, well_name
from gradcamo_assets.figures.style import SEQUENTIAL, empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = [(2, 3), (4, 6), (8, 12), (16, 24), (32, 48)]


def plate_heat_map(
    wells: pl.DataFrame, value: str, label: str, limits: tuple[float, float] | None = (0.0, 1.0), title: str = ""
) -> Figure:
    """Colour by well on the smallest plate format that holds all wells; wells without a value stay grey.

    Args:
        wells: ``Metadata_Well`` and the ``value`` column, one row a well.
        label: name and unit of the value.
        limits: the colour scale's ends; None for those of the data.

    Raises:
        PlateError: for a name that is no well.
    """
    wells = wells.drop_nulls(["Metadata_Well"])
    if wells.is_empty():
        return empty_figure("No wells to show")
    names = [well_name(name) for name in wells["Metadata_Well"]]
    places = [(row_index(name.rstrip("0123456789")), int(name[-2:]) - 1) for name in names]
    most = np.max(places, axis=0)
    rows, columns = next(size for size in _FORMATS if size[0] > most[0] and size[1] > most[1])
    grid = np.full((rows, columns), np.nan)
    for place, amount in zip(places, wells[value].cast(pl.Float64).to_list(), strict=True):
        grid[place] = np.nan if amount is None else amount

    from matplotlib import colormaps

    figure = new_figure(7, 7 * 0.82 * rows / columns + 0.6)
    axes = figure.subplots()
    low, high = limits or (None, None)
    picture = axes.imshow(grid, cmap=colormaps[SEQUENTIAL].with_extremes(bad="#E4E4E4"), vmin=low, vmax=high)
    if rows <= 8:
        for (row, column), amount in np.ndenumerate(grid):
            if np.isfinite(amount):
                dark = amount < 0.4 * picture.get_clim()[0] + 0.6 * picture.get_clim()[1]
                axes.text(
                    column,
                    row,
                    f"{amount:.2f}" if abs(amount) < 10 else f"{amount:.3g}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="w" if dark else "k",
                )
    letters = [(chr(64 + row // 26) if row >= 26 else "") + chr(65 + row % 26) for row in range(rows)]
    step = 1 if rows <= 16 else 2
    axes.set_yticks(range(0, rows, step), letters[::step], fontsize=8)
    axes.set_xticks(range(0, columns, step), [str(column + 1) for column in range(0, columns, step)], fontsize=8)
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0, top=False, labeltop=True, labelbottom=False)
    axes.set_title(title, fontsize=10)
    figure.colorbar(picture, ax=axes, label=label)
    return figure
