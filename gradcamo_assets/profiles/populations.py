"""Which cells a profile is made of: all of them, or those that Grad-CAMO vouches for, beside a fair draw of as many."""

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
    "matched": "as many cells of each field as are on target, drawn at random: what on_target is to be held against",
    "weighted": "every cell, weighted by its adjusted score, from 0 at chance to 1 at the best the map allows",
}
FIELD = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]


def population(cells: pl.DataFrame, name: str, seed: int = 0) -> pl.DataFrame:
    """The cells of one population, sorted, with its name in ``population``, and ``cells_in_field`` of all cells.

    Args:
        cells: one row a cell of one model version, with ``FIELD``, ``Metadata_CellID``, and for all but ``all`` what
            the score says of it: ``on_target``, ``looks_at``, ``gradcamo_adjusted`` (NULL: not scored, and so in
            no such population).
        seed: of the draw of ``matched``, which is the same for the same cells, whatever their order.

    Returns:
        The rows; those of ``weighted`` have a column ``weight`` above 0.
    """
    if name not in POPULATIONS:
        known = "; ".join(f"{name}: {text}" for name, text in POPULATIONS.items())
        raise GradcamoError(f"there is no population {name!r}", f"The populations are {known}.")
    cells = cells.sort("Metadata_CellID").with_columns(population=pl.lit(name), cells_in_field=pl.len().over(FIELD))
    if name == "on_target":
        return cells.filter("on_target")
    if name == "trusted":
        return cells.filter(looks_at="target")
    if name == "matched":
        cells = cells.with_columns(pl.Series("lot", np.random.default_rng(seed).random(len(cells))))
        return cells.filter(pl.col("lot").rank().over(FIELD) <= pl.col("on_target").sum().over(FIELD)).drop("lot")
    if name == "weighted":
        return cells.with_columns(weight=pl.col("gradcamo_adjusted").clip(0, 1)).filter(pl.col("weight") > 0)
    return cells
