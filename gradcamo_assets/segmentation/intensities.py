"""From a field's channels to the two images that are segmented: cytoplasm and nucleus.

Here: finding the channels by name, normalising over a stack, combining stains. Not here: any network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradcamo_assets.errors import SegmentationError

_NUCLEUS = ("dna", "dapi", "hoechst", "nuclei", "nucleus", "nuclear", "draq5", "h2b", "syto")
_NOT_FLUORESCENCE = ("brightfield", "bright field", "bright-field", "phase", "dic", "bf", "transmitted", "tl")
_SAMPLES = 500_000


def find_channels(
    channels: Sequence[str], nucleus: str | None, cytoplasm: Sequence[str] | None
) -> tuple[int, tuple[int, ...]]:
    """Indices of the nucleus channel and of the cytoplasm channels.

    A nucleus that is not named is found by name (DNA, DAPI, Hoechst, ...); cytoplasm that is not named is every other
    channel but bright field.

    Raises:
        SegmentationError: where a named channel is absent, or no channel or several could be the nucleus.
    """
    have = f"the channels are {', '.join(channels)}"
    lower = [name.casefold() for name in channels]

    def index(name: str) -> int:
        if lower.count(name.casefold()) != 1:
            raise SegmentationError(f"there is no single channel {name!r}: {have}", "Set nucleus and cytoplasm anew.")
        return lower.index(name.casefold())

    if nucleus is not None:
        nuclear = index(nucleus)
    else:
        exact = [i for i, name in enumerate(lower) if name in _NUCLEUS]
        found = exact or [i for i, name in enumerate(lower) if any(key in name for key in _NUCLEUS)]
        if len(found) != 1:
            problem = f"{'several channels' if found else 'no channel'} could be the nucleus: {have}"
            raise SegmentationError(problem, "Set nucleus to the name of the DNA stain.")
        nuclear = found[0]
    if cytoplasm is not None:
        return nuclear, tuple(index(name) for name in cytoplasm)
    words = [set(name.replace("_", " ").split()) | {name} for name in lower]
    others = [i for i in range(len(channels)) if i != nuclear and not any(key in words[i] for key in _NOT_FLUORESCENCE)]
    return nuclear, tuple(others)


def _range(stack: np.ndarray) -> tuple[np.float32, np.float32]:
    """What becomes 0, and the range that becomes 1 (infinite for a constant stack)."""
    if not np.issubdtype(stack.dtype, np.integer) and not np.isfinite(stack).all():
        raise SegmentationError("the image holds values that are no numbers", "Read or export this field anew.")
    step = stack.size // _SAMPLES | 1  # Odd, or it might keep to few columns.
    low, middle, high = np.percentile(stack.ravel()[::step], [1.0, 50.0, 99.7])
    rows = stack.reshape(-1, stack.shape[-1])[::step].astype(np.float32)
    noise = float(np.median(np.abs(np.diff(rows, axis=1)))) / 0.954 if rows.shape[-1] > 1 else 0.0
    if high - low < 12 * noise:
        return np.float32(middle), np.float32(12 * noise)
    return np.float32(low), np.float32(high - low or np.inf)


def combined(stacks: Sequence[np.ndarray]) -> np.ndarray:
    """One image of stains of one shape, float32: the median of the normalised stacks, the mean of two.

    Normalised: the whole stack's 1st percentile at 0 and its 99.7th at 1, clipped to -0.5 and 3, so that an empty slice
    stays dark. A stack that holds nothing but noise is not blown up: where the range is below 12 standard deviations of
    the noise (from the differences of neighbouring pixels, by median absolute deviation), it is set to that, and the
    median becomes 0. A constant stack gives zeros. The median keeps a stain with a bright or granular background from
    hiding the cells in the others. Works slice by slice: a field does not fit in memory several times.

    Raises:
        SegmentationError: where a stack holds values that are no finite numbers.
    """
    ranges = [_range(stack) for stack in stacks]
    out = np.empty(stacks[0].shape, np.float32)
    for z in range(len(out)):
        parts = np.stack([stack[z] for stack in stacks]).astype(np.float32)
        for part, (low, scale) in zip(parts, ranges, strict=True):
            part -= low
            part /= scale
        out[z] = np.median(np.clip(parts, -0.5, 3.0, out=parts), axis=0, overwrite_input=True)
    return out
