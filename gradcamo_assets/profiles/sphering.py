"""Sphering: the linear map under which the wells it is fitted on vary alike in every direction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles.fitted import fitted_digest


@dataclass(frozen=True, eq=False)
class Sphering:
    """A fitted map: x to (x - mean) V diag(1 / sqrt(s + lambda)) V', with lambda = ``regularisation`` x max(s).

    Attributes:
        mean: (d,). spectrum: (r,) variances s along the rows of ``directions`` (r, d), r < wells and r <= d; along
            every other direction the wells do not vary.
        fitted_on: the wells, as ``plate/well``.
    """

    mean: np.ndarray
    spectrum: np.ndarray
    directions: np.ndarray
    regularisation: float
    fitted_on: tuple[str, ...] = ()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Profiles (n, d) under the map, float64. Wells without any spread give centring alone.

        Raises:
            GradcamoError: where the profiles have another length than those it was fitted on.
        """
        if np.shape(x)[1:] != self.mean.shape:
            raise GradcamoError(
                f"profiles of shape {np.shape(x)} meet a sphering of {self.mean.size} dimensions",
                "Sphere profiles by what was fitted on the same model version, or fit anew.",
            )
        centred = np.asarray(x, np.float64) - self.mean
        if not self.spectrum.size:
            return centred
        ridge = self.regularisation * self.spectrum[0]
        rest = 1 / np.sqrt(ridge)
        return (
            centred * rest + centred @ self.directions.T * (1 / np.sqrt(self.spectrum + ridge) - rest) @ self.directions
        )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What ``save_fitted`` keeps of it, beside ``notes``."""
        return {"mean": self.mean, "spectrum": self.spectrum, "directions": self.directions}

    @property
    def notes(self) -> dict[str, str]:
        """The regularisation, and the wells it was fitted on."""
        return {"regularisation": repr(self.regularisation), "fitted_on": json.dumps(self.fitted_on)}

    @property
    def digest(self) -> str:
        """Names the map: equal digests, equal maps."""
        return fitted_digest(self.arrays, self.notes)

    @classmethod
    def of_fitted(cls, arrays: dict[str, np.ndarray], notes: dict[str, str]) -> Sphering:
        """From what ``load_fitted`` read."""
        return cls(
            **arrays,
            regularisation=float(notes["regularisation"]),
            fitted_on=tuple(json.loads(notes["fitted_on"])),
        )


def fit_sphering(profiles: np.ndarray, regularisation: float = 1e-2, fitted_on: Sequence[str] = ()) -> Sphering:
    """Fit on the profiles (n_wells, d) of control wells, or of all wells.

    As DeepProfiler's experiments do (Moshkov et al. 2024), where mean and covariance V diag(s) V' are those of the
    control wells. Here lambda is relative to max(s), as embeddings have no natural scale, and the mean of s would
    shrink with the number of empty directions (there are always some where wells are fewer than dimensions). A
    direction in which no control varies is stretched 1 / sqrt(regularisation) times as much as the widest one at most.

    Raises:
        GradcamoError: for fewer than two wells, values that are not finite, or a regularisation that is not positive.
    """
    profiles = np.asarray(profiles, np.float64)
    if len(profiles) < 2:
        raise GradcamoError(
            f"sphering needs at least 2 wells to fit, but the profiles have shape {profiles.shape}",
            "Mark the control wells as 'negcon' in the plate map, or set fit_on = 'all' or scope = 'screen'.",
        )
    if not np.isfinite(profiles).all():
        raise GradcamoError("a profile has values that are not finite", "Rescore the wells with a sound model.")
    if not 0 < regularisation < np.inf:
        raise GradcamoError(f"the regularisation is {regularisation}", "Give a positive number, for example 0.01.")
    mean = profiles.mean(axis=0)
    _, singular, directions = np.linalg.svd(profiles - mean, full_matrices=False)
    spectrum = singular**2 / (len(profiles) - 1)
    # Equal rows leave rounding noise in the spectrum, which must not be stretched to unit variance.
    noise = (np.finfo(np.float64).eps * np.abs(profiles).max()) ** 2
    kept = spectrum > max(noise, np.finfo(np.float64).eps * spectrum[0])
    return Sphering(mean, spectrum[kept], directions[kept], float(regularisation), tuple(fitted_on))
