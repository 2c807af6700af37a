"""Sphering: the linear map under which control wells have the same variance in every direction. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradcamo_assets.common import GradcamoError


@dataclass(frozen=True)
class Sphering:
    """A fitted transform: ``mean`` (d,) and ``matrix`` (d, d), both float64."""

    mean: np.ndarray
    matrix: np.ndarray

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Profiles (n, d) centred on the controls and sphered, float64."""
        return (np.asarray(x, np.float64) - self.mean) @ self.matrix


def fit_sphering(controls: np.ndarray, regularisation: float = 1e-2) -> Sphering:
    """Fit on well-level control profiles, as DeepProfiler's experiments do (Moshkov et al. 2024).

    With mu and C = V diag(s) V' the controls' mean and covariance, W = V diag(1 / sqrt(s + lambda)) V'. Here
    lambda = ``regularisation`` x max(s): embeddings have no natural scale, so an absolute lambda would mean something
    else for every encoder, and the mean of s would shrink with the number of empty directions (there are always some
    where wells are fewer than dimensions). A direction that no control varies in is stretched 1 / sqrt(regularisation)
    times as much as the widest one at most. Controls that are all the same give centring alone.

    Args:
        controls: (n_wells, d), finite, n_wells >= 2.
        regularisation: lambda relative to the largest eigenvalue, > 0.

    Raises:
        GradcamoError: for fewer than two wells, values that are not finite, or a regularisation that is not positive.
    """
    x = np.asarray(controls, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise GradcamoError(
            f"sphering needs at least 2 control wells, but the controls have shape {x.shape}",
            "Mark the control wells as 'negcon' in the plate map, or fit on the controls of several plates.",
        )
    if not np.isfinite(x).all():
        raise GradcamoError(
            "a control profile holds values that are not finite",
            "Rescore the control wells with a model that is sound.",
        )
    if not (np.isfinite(regularisation) and regularisation > 0):
        raise GradcamoError(f"the regularisation is {regularisation}", "Give a positive number, for example 0.01.")
    mean = x.mean(axis=0)
    spectrum, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
    spectrum = spectrum.clip(min=0)
    # Equal rows leave rounding noise in the spectrum, which must not be stretched to unit variance.
    if spectrum.max() <= (np.finfo(np.float64).eps * np.abs(x).max()) ** 2:
        return Sphering(mean, np.eye(x.shape[1]))
    scale = 1 / np.sqrt(spectrum + regularisation * spectrum.max())
    return Sphering(mean, (vectors * scale) @ vectors.T)
