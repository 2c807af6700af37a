"""The map of a model version: UMAP to two dimensions, fitted once and kept; later cells are placed on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradcamo_assets.errors import GradcamoError

_NEIGHBOURS = 5


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


@dataclass(frozen=True, eq=False)
class CellMap:
    """The cells a map was fitted on: ``vectors`` (n, d) and ``coordinates`` (n, 2), both float32.

    That is all of it. UMAP's own object is a pickle; made again from the vectors, rounding alone moves its points by a
    twentieth of the map; and its ``transform`` places a cell differently in different company.
    """

    vectors: np.ndarray
    coordinates: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, seed: int = 0) -> CellMap:
        """UMAP of some cells' vectors, (n, d) with n at least 1."""
        return cls(np.asarray(vectors, np.float32), umap_embedding(vectors, seed))

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """Where cells (m, d) lie on the map, (m, 2) float32: the mean of their 5 nearest fitted cells, weighted by the
        inverse of the distance. A fitted cell lies where it was, and no cell's place depends on the others asked for.

        Raises:
            GradcamoError: where the vectors have another length than those it was fitted on.
        """
        from sklearn.neighbors import KNeighborsRegressor

        if np.shape(vectors)[1:] != self.vectors.shape[1:]:
            raise GradcamoError(
                f"vectors of shape {np.shape(vectors)} meet a map of {self.vectors.shape[1]} dimensions",
                "Place cells on the map of their own model version.",
            )
        nearest = KNeighborsRegressor(min(_NEIGHBOURS, len(self.vectors)), weights="distance")
        placed = nearest.fit(self.vectors, self.coordinates).predict(np.asarray(vectors, np.float32))
        return np.asarray(placed, np.float32)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What ``save_fitted`` keeps of it."""
        return {"vectors": self.vectors, "coordinates": self.coordinates}
