"""Estimate the uneven illumination of a plate from all its fields, and correct pixels for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

_MIN_FIELDS = 8
_POLYNOMIAL_DEGREE = 4


def estimate_illumination(thumbnails: Sequence[NDArray[np.float32]], offset: float = 0.0) -> NDArray[np.float32] | None:
    """Estimate the illumination of each channel, (C, y, x) with mean 1; None for fewer than eight fields.

    A polynomial is fitted to the median of the thumbnails over all fields, similar to CellProfiler's
    CorrectIlluminationCalculate. Cells are bright in single fields and vanish in the median; illumination remains.

    Args:
        thumbnails: one thumbnail of each field, (C, y, x).
        offset: camera counts in the dark.
    """
    if len(thumbnails) < _MIN_FIELDS:
        return None
    median = np.maximum(np.median(np.stack(thumbnails), axis=0) - offset, 1.0)
    y, x = (np.linspace(-1, 1, size) for size in median.shape[1:])
    grid = np.meshgrid(y, x, indexing="ij")
    basis = np.polynomial.polynomial.polyvander2d(*grid, [_POLYNOMIAL_DEGREE, _POLYNOMIAL_DEGREE])
    powers = range(_POLYNOMIAL_DEGREE + 1)
    terms = basis[..., np.add.outer(powers, powers).ravel() <= _POLYNOMIAL_DEGREE]
    design = terms.reshape(-1, terms.shape[-1])
    coefficients = np.linalg.lstsq(design, median.reshape(len(median), -1).T)[0]
    fitted = (design @ coefficients).T.reshape(median.shape)
    positive = np.maximum(fitted, 0.05 * fitted.mean(axis=(1, 2), keepdims=True))
    return (positive / positive.mean(axis=(1, 2), keepdims=True)).astype(np.float32)


def correct_illumination(
    stack: NDArray[np.uint16], illumination: NDArray[np.float32], offset: float = 0.0
) -> NDArray[np.uint16]:
    """Correct one channel, (Z, Y, X): (pixels - offset) / illumination + offset, clipped to 16 bits.

    Args:
        illumination: (y, x) of this channel; it is resized to the planes.
    """
    zoom = [length / small for length, small in zip(stack.shape[1:], illumination.shape, strict=True)]
    gain = 1 / scipy.ndimage.zoom(illumination, zoom, order=1, mode="nearest", grid_mode=True)
    corrected = np.empty_like(stack)
    for z, plane in enumerate(stack):
        corrected[z] = np.clip(np.rint((plane - np.float32(offset)) * gain + np.float32(offset)), 0, 65535)
    return corrected
