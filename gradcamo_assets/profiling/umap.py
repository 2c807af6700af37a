"""UMAP to two dimensions, also for the few rows of a small plate."""

from __future__ import annotations

import numpy as np


def umap_embedding(matrix: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two coordinates a row, (n, 2) float32, finite, the same for the same seed.

    Fewer than five rows have no neighbourhoods worth the name: they get their two principal components, as do rows
    of one dimension, and rows that are all the same.

    Args:
        matrix: (n, d), finite.
    """
    from sklearn.decomposition import PCA

    x = np.asarray(matrix, np.float64)
    components = np.zeros((len(x), 2), np.float32)
    if kept := min(2, *x.shape):
        with np.errstate(invalid="ignore", divide="ignore"):  # equal rows explain nothing of no variance
            components[:, :kept] = PCA(kept, random_state=seed).fit_transform(x)
    if len(x) < 5 or kept < 2 or not components.any():
        return components
    from umap import UMAP

    reducer = UMAP(n_neighbors=min(15, len(x) - 1), init="pca", random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(x), np.float32)
