"""Make the two images to segment, cytoplasm and nucleus, from a field's channels.

Channels are found by name, normalised over the stack, and combined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradcamo_assets.brightness import mean_of_brightest
from gradcamo_assets.errors import SegmentationError

NO_NUCLEUS = "none"
"""The name of the nucleus channel of a plate that has no nucleus stain."""

_NUCLEUS = ("dna", "dapi", "hoechst", "nuclei", "nucleus", "nuclear", "draq5", "h2b", "syto")
_NOT_FLUORESCENCE = ("brightfield", "bright field", "bright-field", "phase", "dic", "bf", "transmitted", "tl")
_PERCENTILE_SAMPLE = 500_000
_BRIGHTEST = 0.008


def find_channels(
    channels: Sequence[str], nucleus: str | None, cytoplasm: Sequence[str] | None
) -> tuple[int | None, tuple[int, ...]]:
    """Find the indices of the nucleus channel (None if ``nucleus`` is 'none') and of the cytoplasm channels.

    Without a given name, the nucleus is found by common names (DNA, DAPI, Hoechst, ...), and the cytoplasm is every
    other channel except bright field.

    Raises:
        SegmentationError: a given channel does not exist, no channel or several could be the nucleus, or there is
            neither a nucleus nor a cytoplasm channel.
    """
    available = f"the channels are {', '.join(channels)}"
    lower = [name.casefold() for name in channels]

    def find_index(name: str) -> int:
        if lower.count(name.casefold()) != 1:
            problem = f"there is not exactly one channel {name!r}: {available}"
            raise SegmentationError(problem, "Set nucleus and cytoplasm to existing channels.")
        return lower.index(name.casefold())

    nucleus_index: int | None = None
    if nucleus is not None:
        nucleus_index = None if nucleus.casefold() == NO_NUCLEUS else find_index(nucleus)
    else:
        exact = [i for i, name in enumerate(lower) if name in _NUCLEUS]
        candidates = exact or [i for i, name in enumerate(lower) if any(key in name for key in _NUCLEUS)]
        if len(candidates) != 1:
            problem = f"{'several channels' if candidates else 'no channel'} could be the nucleus: {available}"
            remedy = f"Set nucleus to the name of the DNA stain, or to {NO_NUCLEUS!r} if the plate has none."
            raise SegmentationError(problem, remedy)
        nucleus_index = candidates[0]
    if cytoplasm is not None:
        stains = tuple(find_index(name) for name in cytoplasm)
    else:
        words = [set(name.replace("_", " ").split()) | {name} for name in lower]
        is_fluorescence = [not any(key in words[i] for key in _NOT_FLUORESCENCE) for i in range(len(channels))]
        stains = tuple(i for i in range(len(channels)) if i != nucleus_index and is_fluorescence[i])
    if nucleus_index is None and not stains:
        problem = f"without a nucleus stain, cells need a cytoplasm stain: {available}"
        raise SegmentationError(problem, "Set cytoplasm to the stains that fill cells.")
    return nucleus_index, stains


def _offset_and_scale(stack: np.ndarray) -> tuple[np.float32, np.float32]:
    """The intensity that becomes 0, and the range that becomes 1 (infinite for a constant stack)."""
    if not np.issubdtype(stack.dtype, np.integer) and not np.isfinite(stack).all():
        raise SegmentationError("the image contains NaN or infinity", "Read or export this field again.")
    step = stack.size // _PERCENTILE_SAMPLE | 1  # Odd, so that samples do not keep to a few columns.
    sample = stack.ravel()[::step]
    low, median = np.percentile(sample, [1.0, 50.0])
    high = mean_of_brightest(sample, _BRIGHTEST)
    rows = stack.reshape(-1, stack.shape[-1])[::step].astype(np.float32)
    noise = float(np.median(np.abs(np.diff(rows, axis=1)))) / 0.954 if rows.shape[-1] > 1 else 0.0
    if high - low < 12 * noise:
        return np.float32(median), np.float32(12 * noise)
    return np.float32(low), np.float32(high - low or np.inf)


def combine_stains(stacks: Sequence[np.ndarray]) -> np.ndarray:
    """Combine stacks of one shape into one float32 image: the median of the normalised stacks (the mean of two).

    Normalisation maps the 1st percentile of the whole stack to 0 and the mean of its brightest 0.8% to 1, clipped to
    -0.5 and 3, so that an empty slice stays dark. A stack of pure noise is not amplified: if its range is below 12
    standard deviations of the noise (estimated from the median absolute difference of neighbouring pixels), its median
    maps to 0 and 12 standard deviations to 1. A constant stack gives zeros. The median prevents a stain with bright or
    granular background from hiding cells that the other stains show. The calculation goes slice by slice to save
    memory.

    Raises:
        SegmentationError: a stack contains NaN or infinity.
    """
    scales = [_offset_and_scale(stack) for stack in stacks]
    combined = np.empty(stacks[0].shape, np.float32)
    for z in range(len(combined)):
        planes = np.stack([stack[z] for stack in stacks]).astype(np.float32)
        for plane, (offset, scale) in zip(planes, scales, strict=True):
            plane -= offset
            plane /= scale
        combined[z] = np.median(np.clip(planes, -0.5, 3.0, out=planes), axis=0, overwrite_input=True)
    return combined
