"""Convert pixels of any number type to camera counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.errors import PlateError


def as_counts(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Convert camera counts of any number type to uint16.

    Raises:
        PlateError: a value that cannot be converted (NaN, negative, above 65535, not a whole number). The error does
            not say where; the caller adds the place.
    """
    if array.dtype in (np.uint16, np.uint8, np.bool_) or not array.size:
        return array.astype(np.uint16, copy=False)
    remedy = "Export the plate as unsigned 16-bit camera counts."
    if array.dtype.kind not in "iuf":
        raise PlateError(f"its pixels are {array.dtype}, expected 16-bit counts", remedy)
    low, high = float(array.min()), float(array.max())
    problem = None
    if not math.isfinite(low) or not math.isfinite(high):
        problem = "its pixels contain NaN or infinity"
    elif low < 0 or high > 65535:
        problem = f"its pixels range from {low:g} to {high:g}"
    elif (fraction := first_fraction(array)) is not None:
        problem = f"its pixels range from {low:g} to {high:g} and are not whole numbers ({fraction:g})"
    if problem:
        raise PlateError(f"{problem}, which 16-bit counts cannot hold", remedy)
    return array.astype(np.uint16)


def first_fraction(array: NDArray[Any]) -> float | None:
    """The first value that is not a whole number, or None. The maximum says nothing: intensities that a program has
    scaled to 1 may exceed 1 after a correction."""
    if array.dtype.kind != "f":
        return None
    fractions = array[array != np.rint(array)]
    return float(fractions[0]) if fractions.size else None
