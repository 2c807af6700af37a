"""Is a field fit for use, and by what are a plate's intensities standardised? Pixels in, numbers out; no files."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

_PERCENTILE_SAMPLE = 500_000
"""Pixels of a field's channel that its percentiles are estimated from."""
_TILE, _TILES = 128, 4
"""Of a large plane, focus and noise are read from 4 x 4 tiles of 128 x 128 pixels."""
_SHADE = 32
"""Rows and columns of the small image of a field from which illumination is estimated."""
_CEILINGS = (255, 4095, 16383, 65535)
"""The largest values of 8, 12, 14 and 16 bit cameras."""
_MAD = 1.4826
_FEW_FIELDS = 8


class PixelDigest:
    """The version of a field's pixels, told a channel at a time: equal for equal pixels, whoever wrote their files."""

    def __init__(self) -> None:
        # With the instructions that processors have for it, SHA-256 is twice as fast as BLAKE2.
        self._digest = hashlib.sha256()

    def add(self, stack: NDArray[np.uint16]) -> None:
        """The next channel, (Z, Y, X)."""
        self._digest.update(f"<u2 {stack.shape}".encode())
        self._digest.update(np.ascontiguousarray(stack, "<u2").data)

    @property
    def version(self) -> str:
        """16 hexadecimal digits for all channels added."""
        return self._digest.hexdigest()[:16]


class FieldMeter:
    """Measures a field one channel at a time, so that no field need be in memory whole.

    Args:
        name: of the field; it seeds the choice of sampled pixels, which is the same whenever the field is measured.
        sampled: pixels a channel that count in the plate's statistics.
    """

    def __init__(self, name: str, sampled: int = 4096):
        self._rng = np.random.default_rng(zlib.crc32(name.encode()))
        self._sampled = sampled
        self._where: NDArray[np.int64] | None = None
        self._samples: list[NDArray[np.uint16]] = []
        self._shades: list[NDArray[np.float32]] = []
        self._channels: list[dict[str, Any]] = []
        self._highest: list[int] = []
        self._constant = True
        self._digest = PixelDigest()
        self.shape: tuple[int, ...] = ()

    def add(self, stack: NDArray[np.uint16]) -> None:
        """Measure the next channel, (Z, Y, X)."""
        self.shape = stack.shape
        self._digest.add(stack)
        pixels = stack.reshape(-1)
        if self._where is None:
            self._where = self._rng.integers(pixels.size, size=self._sampled)
        self._samples.append(pixels[self._where])
        self._shades.append(_shade(stack))
        thinned = pixels[:: max(1, pixels.size // _PERCENTILE_SAMPLE)]
        p1, p5, median, p99 = np.percentile(thinned, (1, 5, 50, 99)).tolist()
        tiles = [_tiles(plane).astype(np.float32) for plane in stack]
        profile = [_laplacian_variance(tile) / max(p99 - p1, 1.0) ** 2 for tile in tiles]
        middle = tiles[len(tiles) // 2]
        noise = _MAD / 6**0.5 * float(np.median(np.abs(np.diff(middle, 2, axis=2)))) if middle.shape[2] > 2 else 0.0
        highest = int(pixels.max())
        constant = bool(pixels.min() == highest)
        self._highest.append(highest)
        self._constant &= constant
        self._channels.append({
            "intensity_p1": p1, "intensity_median": median, "intensity_p99": p99, "background": p5,
            "signal_to_noise": (p99 - p5) / noise if noise else float("nan"),
            # Counting costs a pass over the pixels, and only a ceiling is worth it.
            "channel_saturation": float(np.mean(pixels == highest)) if highest in _CEILINGS else 0.0,
            "channel_focus": max(profile), "channel_focus_slice": int(np.argmax(profile)), "focus_profile": profile,
            "repeated_slices": 0 if constant else _repeated(stack),
        })  # fmt: skip

    @property
    def sample(self) -> NDArray[np.uint16]:
        """(C, sampled): pixels at random places, the same in every channel."""
        return np.stack(self._samples)

    @property
    def shade(self) -> NDArray[np.float32]:
        """(C, up to 32, up to 32): means over the slices and over blocks of the plane."""
        return np.stack(self._shades)

    def quality(self) -> dict[str, Any]:
        """Quality of the field, once every channel was added, named as in the ``fields`` table; lists a channel.

        ``qc_flag``: ``empty`` where every channel is constant, else None. ``image_version``: of its pixels, see
        ``PixelDigest``. Focus is the variance of the Laplacian
        (Pech-Pacheco et al. 2000) of intensities scaled to the channel's 1st to 99th percentile: ``focus_profile`` by
        channel and slice, ``channel_focus`` and ``channel_focus_slice`` (0-based) at each channel's sharpest slice,
        ``focus_score`` and ``focus_slice`` of the mean over channels. ``saturation``: share of pixels at the camera's
        ceiling. ``background``: the 5th percentile. ``signal_to_noise``: (99th percentile - background) / noise, the
        noise from second differences along rows (median absolute), which slopes leave alone; NaN where there is none.
        ``repeated_slices``: how many slices are the very plane before them.
        """
        lists = {name: [channel[name] for channel in self._channels] for name in self._channels[0]}
        focus = np.mean(lists["focus_profile"], axis=0)
        ceiling = next(c for c in _CEILINGS if max(self._highest) <= c)
        at_ceiling = zip(self._highest, lists["channel_saturation"], strict=True)
        lists["channel_saturation"] = [share if highest == ceiling else 0.0 for highest, share in at_ceiling]
        return {
            "qc_flag": "empty" if self._constant else None,
            "image_version": self._digest.version,
            "focus_slice": int(focus.argmax()),
            "focus_score": float(focus.max()),
            "saturation": float(np.mean(lists["channel_saturation"])),
            **lists,
        }


def field_warnings(fields: pl.DataFrame, channels: Sequence[str]) -> pl.Series:
    """What a person should know of each usable row of the ``fields`` table, or NULL.

    A channel is out of focus where its score lies below half of the plate's median and more than five robust standard
    deviations below it, of logarithms; plates of fewer than eight fields tell too little of what is usual. A channel
    whose slices repeat one plane is no z-stack.
    """
    warned: list[list[str]] = [[] for _ in range(fields.height)]
    usable = fields["qc_flag"].is_null().to_numpy()
    for index, channel in enumerate(channels):
        of_channel = fields.select(pl.col("channel_focus", "repeated_slices", "focus_profile").list.get(index))
        for row in np.flatnonzero(usable & (of_channel["repeated_slices"].fill_null(0) > 0).to_numpy()):
            repeated, profile = of_channel["repeated_slices"][int(row)], of_channel["focus_profile"][int(row)]
            warned[row].append(f"{channel} repeats a plane in {repeated + 1} of {len(profile)} slices")
        if usable.sum() < _FEW_FIELDS:
            continue
        score = of_channel["channel_focus"].cast(pl.Float64).to_numpy()
        log = np.log(np.maximum(score, 1e-12))
        median = float(np.median(log[usable]))
        spread = _MAD * float(np.median(np.abs(log[usable] - median)))
        for row in np.flatnonzero(usable & (log < median - max(5 * spread, np.log(2)))):
            warned[row].append(f"{channel} is out of focus ({score[row]:.2g}, the plate's median {np.exp(median):.2g})")
    return pl.Series("qc_warning", ["; ".join(found) or None for found in warned], dtype=pl.String)


def center_and_scale(samples: Sequence[NDArray[np.uint16]]) -> tuple[list[float], list[float]]:
    """Per channel of sampled pixels, (C, n) a field: the median, and the 99th percentile less it but at least 1.

    All crops of a plate are standardised by these, never by their own: that would write a cell's phenotype into the
    pixels of its background.
    """
    median, p99 = np.percentile(np.concatenate(samples, axis=1), (50, 99), axis=1)
    return median.tolist(), np.maximum(p99 - median, 1.0).tolist()


def _repeated(stack: NDArray[np.uint16]) -> int:
    """Slices equal to the one before; a thinned look first, since nearly all differ."""
    thin = stack[:, ::16, ::16]
    alike = [z for z in range(1, len(stack)) if np.array_equal(thin[z], thin[z - 1])]
    return sum(np.array_equal(stack[z], stack[z - 1]) for z in alike)


def _tiles(plane: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(tiles, y, x): evenly spaced tiles of a large plane, the whole of a small one."""
    if min(plane.shape) < _TILES * _TILE:
        return plane[None]
    rows, columns = (np.linspace(0, size - _TILE, _TILES).astype(int) for size in plane.shape)
    return np.stack([plane[y : y + _TILE, x : x + _TILE] for y in rows for x in columns])


def _laplacian_variance(tiles: NDArray[np.float32]) -> float:
    if min(tiles.shape[1:]) < 3:
        return 0.0
    centre = 4 * tiles[:, 1:-1, 1:-1]
    across = tiles[:, :-2, 1:-1] + tiles[:, 2:, 1:-1] + tiles[:, 1:-1, :-2] + tiles[:, 1:-1, 2:]
    return float((centre - across).var())


def _shade(stack: NDArray[np.uint16]) -> NDArray[np.float32]:
    steps = [max(1, size // 256) for size in stack.shape[1:]]
    small = stack[:, :: steps[0], :: steps[1]].mean(0, dtype=np.float32)
    for axis in (0, 1):
        edges = np.linspace(0, small.shape[axis], min(_SHADE, small.shape[axis]) + 1).astype(int)
        sums = np.add.reduceat(small, edges[:-1], axis=axis)
        small = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return small.astype(np.float32)
