"""Uneven illumination: estimated from all fields of a plate, taken out when pixels are read. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_FEW_FIELDS = 8
_DEGREE = 4


def estimate_illumination(shades: Sequence[NDArray[np.float32]], offset: float = 0.0) -> NDArray[np.float32] | None:
    """The illumination of each channel, (C, y, x) around 1, or None where fewer than eight fields tell.

    The median over fields of their small images, with a polynomial fitted through it, much as CellProfiler's
    CorrectIlluminationCalculate does: what is bright in one field alone is a cell, what is in all of them is the lamp.

    Args:
        shades: a field's small image each, (C, y, x).
        offset: what the camera reads in the dark, in counts.
    """
    if len(shades) < _FEW_FIELDS:
        return None
    median = np.maximum(np.median(np.stack(shades), axis=0) - offset, 1.0)
    y, x = (np.linspace(-1, 1, size) for size in median.shape[1:])
    basis = np.polynomial.polynomial.polyvander2d(*np.meshgrid(y, x, indexing="ij"), [_DEGREE, _DEGREE])
    terms = basis[..., np.add.outer(range(_DEGREE + 1), range(_DEGREE + 1)).ravel() <= _DEGREE]
    design = terms.reshape(-1, terms.shape[-1])
    fitted = (design @ np.linalg.lstsq(design, median.reshape(len(median), -1).T)[0]).T.reshape(median.shape)
    light = np.maximum(fitted, 0.05 * fitted.mean(axis=(1, 2), keepdims=True))
    return (light / light.mean(axis=(1, 2), keepdims=True)).astype(np.float32)


def correct_illumination(
    stack: NDArray[np.uint16], illumination: NDArray[np.float32], offset: float = 0.0
) -> NDArray[np.uint16]:
    """One channel, (Z, Y, X), as it would be under even light: (pixels - offset) / illumination + offset, in 16 bits.

    Args:
        illumination: (y, x) of this channel; it is brought to the size of the planes.
    """
    size = [length / small for length, small in zip(stack.shape[1:], illumination.shape, strict=True)]
    gain = 1 / ndimage.zoom(illumination, size, order=1, mode="nearest", grid_mode=True)
    out = np.empty_like(stack)
    for z, plane in enumerate(stack):
        out[z] = np.clip(np.rint((plane - np.float32(offset)) * gain + np.float32(offset)), 0, 65535)
    return out
