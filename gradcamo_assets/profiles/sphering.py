"""Sphere profiles: a linear map after which the wells it was fitted on vary equally in every direction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles.fitted import fitted_digest


@dataclass(frozen=True, eq=False)
class Sphering:
    """A fitted map from x to (x - mean) V diag(1 / sqrt(s + lambda)) V', with lambda = ``regularisation`` x max(s).

    Attributes:
        mean: (d,).
        spectrum: (r,) variances s along the rows of ``directions``.
        directions: (r, d), r < wells and r <= d; along every other direction the wells do not vary.
        regularisation: lambda relative to max(s).
        fitted_on: the wells, as ``plate/well``.
    """

    mean: np.ndarray
    spectrum: np.ndarray
    directions: np.ndarray
    regularisation: float
    fitted_on: tuple[str, ...] = ()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply the map to profiles (n, d) and return float64. If the fitted wells did not vary, only centre them.

        Raises:
            GradcamoError: if the profiles have another length than the fitted ones.
        """
        if np.shape(x)[1:] != self.mean.shape:
            raise GradcamoError(
                f"expected profiles of {self.mean.size} dimensions, got shape {np.shape(x)}",
                "Use the sphering that was fitted on the same model version, or fit a new one.",
            )
        centred = np.asarray(x, np.float64) - self.mean
        if not self.spectrum.size:
            return centred
        ridge = self.regularisation * self.spectrum[0]
        # Scale all directions as those without variance, then correct the fitted ones.
        base_scale = 1 / np.sqrt(ridge)
        correction = 1 / np.sqrt(self.spectrum + ridge) - base_scale
        return centred * base_scale + centred @ self.directions.T * correction @ self.directions

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays for ``save_fitted``."""
        return {"mean": self.mean, "spectrum": self.spectrum, "directions": self.directions}

    @property
    def notes(self) -> dict[str, str]:
        """The notes for ``save_fitted``: the regularisation and the fitted wells."""
        return {"regularisation": repr(self.regularisation), "fitted_on": json.dumps(self.fitted_on)}

    @property
    def digest(self) -> str:
        """Digest of the map; equal maps have equal digests."""
        return fitted_digest(self.arrays, self.notes)

    @classmethod
    def from_fitted(cls, arrays: dict[str, np.ndarray], notes: dict[str, str]) -> Sphering:
        """Create a sphering from the result of ``load_fitted``."""
        return cls(
            **arrays,
            regularisation=float(notes["regularisation"]),
            fitted_on=tuple(json.loads(notes["fitted_on"])),
        )


def fit_sphering(profiles: np.ndarray, regularisation: float = 1e-2, fitted_on: Sequence[str] = ()) -> Sphering:
    """Fit a sphering on the profiles (n_wells, d) of control wells, or of all wells.

    The method is that of DeepProfiler's experiments (Moshkov et al. 2024), with the mean and covariance V diag(s) V' of
    the control wells. Here lambda is relative to max(s), because embeddings have no natural scale. It is not relative
    to the mean of s, which decreases with the number of directions without variance; such directions always exist if
    there are fewer wells than dimensions. A direction in which no control varies is scaled at most
    1 / sqrt(regularisation) times as much as the direction of the largest variance.

    Args:
        fitted_on: names of the wells, as ``plate/well``.

    Raises:
        GradcamoError: for fewer than two wells, non-finite values, or a regularisation that is not positive.
    """
    profiles = np.asarray(profiles, np.float64)
    if len(profiles) < 2:
        raise GradcamoError(
            f"sphering needs at least 2 wells to fit on, got profiles of shape {profiles.shape}",
            "Mark the control wells as 'negcon' in the plate map, or set fit_on = 'all' or scope = 'screen'.",
        )
    if not np.isfinite(profiles).all():
        bad_wells = int((~np.isfinite(profiles)).any(axis=1).sum())
        raise GradcamoError(
            f"{bad_wells} of {len(profiles)} profiles have values that are not finite",
            "Rescore the wells with a model whose weights are finite.",
        )
    if not 0 < regularisation < np.inf:
        raise GradcamoError(
            f"regularisation must be positive and finite, got {regularisation}", "Use for example 0.01."
        )
    mean = profiles.mean(axis=0)
    _, singular, directions = np.linalg.svd(profiles - mean, full_matrices=False)
    spectrum = singular**2 / (len(profiles) - 1)
    # Equal rows leave rounding noise in the spectrum, which must not be scaled to unit variance.
    noise = (np.finfo(np.float64).eps * np.abs(profiles).max()) ** 2
    kept = spectrum > max(noise, np.finfo(np.float64).eps * spectrum[0])
    return Sphering(
        mean=mean,
        spectrum=spectrum[kept],
        directions=directions[kept],
        regularisation=float(regularisation),
        fitted_on=tuple(fitted_on),
    )
