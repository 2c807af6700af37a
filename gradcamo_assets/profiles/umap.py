"""Map embeddings to two dimensions with UMAP, fitted once per model version; later cells are placed on that map."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from gradcamo_assets.errors import GradcamoError

_NEIGHBOURS = 5
_APPROXIMATE_FROM = 4096
"""Number of rows from which UMAP itself would search neighbours approximately."""


def umap_embedding(matrix: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return two finite coordinates per row, (n, 2) float32, reproducible with the seed.

    Fewer than five rows have no meaningful neighbourhoods. They get their first two principal components instead, as do
    rows of one dimension and equal rows.

    Args:
        matrix: (n, d), finite.
    """
    from sklearn.decomposition import PCA

    x = np.asarray(matrix, np.float64)
    components = np.zeros((len(x), 2), np.float32)
    n_components = min(2, *x.shape)
    if n_components:
        with np.errstate(invalid="ignore", divide="ignore"):  # Equal rows have no variance to explain.
            components[:, :n_components] = PCA(n_components, random_state=seed).fit_transform(x)
    if len(x) < 5 or n_components < 2 or not components.any():
        return components
    from numba.core.errors import NumbaWarning
    from umap import UMAP

    _cache_compiled_code()
    count = min(15, len(x) - 1)
    # The approximate search takes half a minute to compile, an exact one of 20,000 rows a few seconds.
    known = {"precomputed_knn": _exact_neighbours(x, count)} if len(x) >= _APPROXIMATE_FROM else {}
    reducer = UMAP(n_neighbors=count, init="pca", random_state=seed, n_jobs=1, **known)
    with warnings.catch_warnings():
        # Two functions of pynndescent cannot be cached.
        warnings.simplefilter("ignore", NumbaWarning)
        # Given neighbours make UMAP's own transform unavailable, which is not used.
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)
        return np.asarray(reducer.fit_transform(x), np.float32)


def _exact_neighbours(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and distances (n, count) of the rows nearest to each row, itself included."""
    from sklearn.neighbors import NearestNeighbors

    distances, indices = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(x).kneighbors(x)
    return indices, distances.astype(np.float32)


def _cache_compiled_code() -> None:
    """Let numba store the machine code of UMAP on disk.

    UMAP asks numba for no cache. Every process would compile for 11 s, or 40 s above 4,095 rows, to fit for one.
    """
    from numba.core.dispatcher import Dispatcher

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("umap", "pynndescent"):
            continue
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                with suppress(RuntimeError):  # No folder for the cache is writable: this process compiles.
                    function.enable_caching()


@dataclass(frozen=True, eq=False)
class CellMap:
    """A map, defined by the cells it was fitted on: ``vectors`` (n, d) and ``coordinates`` (n, 2), both float32.

    UMAP's own object is not kept, for three reasons: it is stored as a pickle; refitting it moves points by a twentieth
    of the map through rounding alone; and the position that ``transform`` gives a cell depends on the other cells.
    """

    vectors: np.ndarray
    coordinates: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, seed: int = 0) -> CellMap:
        """Fit a map on vectors (n, d) with n at least 1."""
        return cls(np.asarray(vectors, np.float32), umap_embedding(vectors, seed))

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """Return the coordinates (m, 2) float32 of cells (m, d) on the map.

        A cell gets the mean coordinates of its 5 nearest fitted cells, weighted by inverse distance. A fitted cell
        keeps its coordinates. No result depends on the other cells in the call.

        Raises:
            GradcamoError: if the vectors have another length than the fitted ones.
        """
        from sklearn.neighbors import KNeighborsRegressor

        if np.shape(vectors)[1:] != self.vectors.shape[1:]:
            raise GradcamoError(
                f"expected vectors of {self.vectors.shape[1]} dimensions, got shape {np.shape(vectors)}",
                "Use the map of the same model version.",
            )
        nearest = KNeighborsRegressor(min(_NEIGHBOURS, len(self.vectors)), weights="distance")
        placed = nearest.fit(self.vectors, self.coordinates).predict(np.asarray(vectors, np.float32))
        return np.asarray(placed, np.float32)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays for ``save_fitted``."""
        return {"vectors": self.vectors, "coordinates": self.coordinates}
