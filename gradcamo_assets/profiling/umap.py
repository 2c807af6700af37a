"""UMAP to two dimensions, also for the few rows of a small plate."""

from __future__ import annotations

import numpy as np


def umap_embedding(matrix: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two coordinates a row, (n, 2) float32, finite, the same for the same seed.

    Fewer than five rows have no neighbourhoods worth the name: they get their two principal components.

    Args:
        matrix: (n, d), finite.
    """
    x = np.asarray(matrix, np.float64)
    components = _two_components(x)
    if len(x) < 5:
        return components.astype(np.float32)
    from umap import UMAP

    # UMAP rescales its start to a range and divides by it: a direction without spread would give NaN.
    start = components / max(float(np.abs(components).max()), 1e-12)
    start += np.random.default_rng(seed).normal(scale=1e-4, size=start.shape)
    reducer = UMAP(n_neighbors=min(15, len(x) - 1), init=start.astype(np.float32), random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(x), np.float32)


def _two_components(x: np.ndarray) -> np.ndarray:
    """Scores (n, 2) of the two leading principal components, zeros where there are fewer."""
    scores = np.zeros((len(x), 2))
    if x.size:
        u, s, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        # SVD leaves signs open: the largest loading is made positive.
        signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
        kept = min(2, len(s))
        scores[:, :kept] = (u * s * signs)[:, :kept]
    return scores
