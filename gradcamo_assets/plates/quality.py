"""Is a field fit for use, and by what are a plate's intensities standardised? Pixels in, numbers out; no files."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_SAMPLE = 4096
"""Pixels of each field and channel that count in the plate's statistics."""
_PERCENTILE_SAMPLE = 500_000
_CEILINGS = (255, 4095, 16383, 65535)
"""The largest values of 8, 12, 14 and 16 bit cameras."""


@dataclass(frozen=True)
class FieldQuality:
    """Quality of one field, named as in the ``fields`` table; lists have one value a channel.

    ``qc_flag``: ``empty`` where every channel is constant, else None. ``focus_slice`` (0-based) is the sharpest slice
    and ``focus_score`` its score: the variance of the Laplacian of intensities scaled to each channel's 1st to 99th
    percentile, averaged over channels. ``saturation``: share of pixels at the camera's ceiling.
    """

    qc_flag: str | None
    focus_slice: int
    focus_score: float
    saturation: float
    intensity_p1: list[float]
    intensity_median: list[float]
    intensity_p99: list[float]


def field_quality(image: NDArray[np.uint16]) -> FieldQuality:
    """Quality of one field, (C, Z, Y, X). Percentiles of large fields are estimated from half a million pixels."""
    step = max(1, image[0].size // _PERCENTILE_SAMPLE)
    percentiles = np.percentile(image.reshape(len(image), -1)[:, ::step], (1, 50, 99), axis=1)
    focus = _focus(image, percentiles[2] - percentiles[0])
    highest = int(image.max())
    ceiling = next(c for c in _CEILINGS if highest <= c)
    flag = "empty" if all(channel.min() == channel.max() for channel in image) else None
    saturation = float(np.count_nonzero(image == ceiling) / image.size)
    return FieldQuality(flag, int(focus.argmax()), float(focus.max()), saturation, *percentiles.tolist())


def _focus(image: NDArray[np.uint16], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sharpness of every slice (Pech-Pacheco et al. 2000, variance of the Laplacian), without units."""
    scores = np.zeros(image.shape[1])
    for channel, width in zip(image, spread, strict=True):
        scale = max(float(width), 1.0)
        scores += [float(ndimage.laplace(plane.astype(np.float32)).var()) / scale**2 for plane in channel]
    return scores / len(image)


@dataclass
class PlateStatistics:
    """Robust centre and scale of each channel over a plate, from pixels sampled in every field that is added.

    All crops of a plate are standardised by these, never by their own: that would write a cell's phenotype into the
    pixels of its background.
    """

    _sampled: list[NDArray[np.uint16]] = field(default_factory=list)

    def add(self, image: NDArray[np.uint16]) -> None:
        """Sample one field, (C, Z, Y, X). The same fields in the same order give the same statistics."""
        pixels = image.reshape(len(image), -1)
        where = np.random.default_rng(len(self._sampled)).integers(pixels.shape[1], size=_SAMPLE)
        self._sampled.append(pixels[:, where])

    def center_and_scale(self) -> tuple[list[float], list[float]]:
        """Per channel: the median, and the 99th percentile less the median but at least 1."""
        median, p99 = np.percentile(np.concatenate(self._sampled, axis=1), (50, 99), axis=1)
        return median.tolist(), np.maximum(p99 - median, 1.0).tolist()
