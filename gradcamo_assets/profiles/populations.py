"""Select the cells that a profile is computed from: all cells, or a subset chosen by Grad-CAMO, with a control."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from gradcamo_assets.errors import GradcamoError

Population = Literal["all", "on_target", "trusted", "matched", "weighted"]
POPULATIONS: dict[Population, str] = {
    "all": "every embedded cell",
    "on_target": "cells whose score exceeds the threshold",
    "trusted": "cells whose map looks at the cell itself, beyond chance",
    "matched": "random cells, as many per field as are on target: the control for on_target",
    "weighted": "cells weighted by their adjusted score: 0 is chance, 1 the best the map allows",
}
FIELD = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]


def select_population(cells: pl.DataFrame, name: str, seed: int = 0) -> pl.DataFrame:
    """Select the cells of one population.

    Args:
        cells: one row per cell of one model version, with ``FIELD`` and ``Metadata_CellID``. Populations other than
            ``all`` also need ``on_target``, ``looks_at`` and ``gradcamo_adjusted`` (NULL: not scored, so not in such
            a population).
        name: one of ``POPULATIONS``.
        seed: of the random draw of ``matched``. The draw does not depend on the order of the cells.

    Returns:
        The selected rows, sorted, with the new columns ``population`` (its name) and ``cells_in_field`` (number of all
        cells in the field). ``weighted`` adds a column ``weight`` above 0.

    Raises:
        GradcamoError: if the name is unknown.
    """
    if name not in POPULATIONS:
        raise GradcamoError(f"unknown population {name!r}", f"Choose one of {', '.join(POPULATIONS)}.")
    cells = cells.sort("Metadata_CellID").with_columns(population=pl.lit(name), cells_in_field=pl.len().over(FIELD))
    if name == "on_target":
        return cells.filter("on_target")
    if name == "trusted":
        return cells.filter(looks_at="target")
    if name == "matched":
        cells = cells.with_columns(pl.Series("random", np.random.default_rng(seed).random(len(cells))))
        rank, on_target_cells = pl.col("random").rank().over(FIELD), pl.col("on_target").sum().over(FIELD)
        return cells.filter(rank <= on_target_cells).drop("random")
    if name == "weighted":
        return cells.with_columns(weight=pl.col("gradcamo_adjusted").clip(0, 1)).filter(pl.col("weight") > 0)
    return cells
