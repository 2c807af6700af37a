"""How alike two stains are inside a cell: Pearson's correlation over the voxels of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl


def stain_correlation(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pearson's correlation between the stains of one cell, (C, C) float64.

    NaN for a stain that is the same everywhere in the cell, and for a cell of one voxel.

    Args:
        image: (C, Z, Y, X), raw or standardised: a stain's offset and scale change nothing. mask: (Z, Y, X) bool.
    """
    values = image[:, mask].astype(np.float64)
    if values.shape[1] < 2:
        return np.full((len(image), len(image)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(values))


def correlation_table(correlations: np.ndarray, channels: Sequence[str]) -> pl.DataFrame:
    """Each pair of stains once: ``channel_a``, ``channel_b``, quartiles over the cells, ``n_cells``.

    Args:
        correlations: (N, C, C), a cell each; NaN is left out. channels: C names.
    """
    rows = []
    for a, b in combinations(range(len(channels)), 2):
        values = correlations[:, a, b]
        values = values[np.isfinite(values)]
        quartiles = np.quantile(values, [0.5, 0.25, 0.75]).tolist() if len(values) else [None] * 3
        rows.append((channels[a], channels[b], *quartiles, len(values)))
    quartiles_of = {f"{name}_correlation": pl.Float64() for name in ("median", "q25", "q75")}
    schema = {"channel_a": pl.String(), "channel_b": pl.String(), **quartiles_of, "n_cells": pl.Int64()}
    return pl.DataFrame(rows, schema, orient="row")
