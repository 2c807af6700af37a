"""Compute Pearson's correlation between stains over the voxels of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl


def stain_correlation(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation between the stains of one cell, (C, C) float64.

    It is NaN for a stain that is constant in the cell, and for a cell of one voxel.

    Args:
        image: (C, Z, Y, X), raw or standardised; the result does not depend on a stain's offset and scale.
        mask: (Z, Y, X) bool.
    """
    values = image[:, mask].astype(np.float64)
    if values.shape[1] < 2:
        return np.full((len(image), len(image)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(values))


def correlation_table(correlations: np.ndarray, channels: Sequence[str]) -> pl.DataFrame:
    """Summarise correlations over cells, one row per pair of stains.

    Args:
        correlations: (N, C, C), one matrix per cell; NaN is ignored.
        channels: C names.

    Returns:
        ``channel_a``, ``channel_b``, ``median_correlation``, ``q25_correlation``, ``q75_correlation``, ``n_cells``.
    """
    rows = []
    for a, b in combinations(range(len(channels)), 2):
        values = correlations[:, a, b]
        values = values[np.isfinite(values)]
        quartiles = np.quantile(values, [0.5, 0.25, 0.75]).tolist() if len(values) else [None] * 3
        rows.append((channels[a], channels[b], *quartiles, len(values)))
    quartile_columns = {f"{name}_correlation": pl.Float64() for name in ("median", "q25", "q75")}
    schema = {"channel_a": pl.String(), "channel_b": pl.String(), **quartile_columns, "n_cells": pl.Int64()}
    return pl.DataFrame(rows, schema, orient="row")
