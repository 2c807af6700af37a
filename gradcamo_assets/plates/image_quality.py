"""Measure image quality and intensity statistics of fields from their pixels. No files are read or written."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import scipy
from numpy.typing import NDArray

from gradcamo_assets.brightness import mean_of_brightest

_PERCENTILE_SAMPLE = 500_000
"""Number of pixels sampled from each channel of a field to estimate percentiles."""
_TILE_SIZE, _TILES_PER_SIDE = 128, 4
"""In a large plane, focus and noise are measured in 4 x 4 tiles of 128 x 128 pixels."""
_THUMBNAIL_SIZE = 32
"""Rows and columns of the thumbnail from which illumination is estimated."""
_CEILINGS = (255, 4095, 16383, 65535)
"""The largest values of 8, 12, 14 and 16 bit cameras."""
_PILE_LEVELS, _PILE_PIXELS, _PILE_RATIO = 20, 5, 4.0
"""Pixels pile up at the highest value if there are at least 5, and 4 times as many as at the 20 values below."""
_PLATEAU_NOISE, _PLATEAU_STEP, _PLATEAU_SHARE = 5.0, 2, 0.1
"""A tenth of the bright pixels differ by 2 counts at most, although the noise of the channel is 5 counts or more."""
_BRIGHTEST = 0.025
"""Share of the pixels whose mean stands for the brightness of a channel."""
_MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution, as a multiple of its median absolute deviation."""
_MIN_FIELDS = 8


class PixelDigest:
    """Hashes the pixels of a field channel by channel. Equal pixels give equal versions, whoever wrote the files."""

    def __init__(self) -> None:
        # Processors have instructions for SHA-256, which make it twice as fast as BLAKE2.
        self._digest = hashlib.sha256()

    def add(self, stack: NDArray[np.uint16]) -> None:
        """Add the next channel, (Z, Y, X)."""
        self._digest.update(f"<u2 {stack.shape}".encode())
        self._digest.update(np.ascontiguousarray(stack, "<u2").data)

    @property
    def version(self) -> str:
        """16 hexadecimal digits that cover all channels added so far."""
        return self._digest.hexdigest()[:16]


class FieldMeter:
    """Measures a field one channel at a time, so that the whole field never has to be in memory.

    Args:
        name: name of the field. It seeds the sampling of pixels, so that repeated measurements agree.
        sample_size: pixels sampled from each channel for the statistics of the plate.
    """

    def __init__(self, name: str, sample_size: int = 4096):
        self._rng = np.random.default_rng(zlib.crc32(name.encode()))
        self._sample_size = sample_size
        self._sample_indices: NDArray[np.int64] | None = None
        self._samples: list[NDArray[np.uint16]] = []
        self._thumbnails: list[NDArray[np.float32]] = []
        self._channels: list[dict[str, Any]] = []
        self._highest: list[int] = []
        self._piled_up: list[bool] = []
        self._constant = True
        self._digest = PixelDigest()
        self.shape: tuple[int, ...] = ()

    def add(self, stack: NDArray[np.uint16]) -> None:
        """Measure the next channel, (Z, Y, X)."""
        self.shape = stack.shape
        self._digest.add(stack)
        pixels = stack.reshape(-1)
        if self._sample_indices is None:
            self._sample_indices = self._rng.integers(pixels.size, size=self._sample_size)
        self._samples.append(pixels[self._sample_indices])
        self._thumbnails.append(_make_thumbnail(stack))
        subsampled = pixels[:: max(1, pixels.size // _PERCENTILE_SAMPLE)]
        p1, p5, median, p99 = np.percentile(subsampled, (1, 5, 50, 99)).tolist()
        tiles = [_cut_tiles(plane).astype(np.float32) for plane in stack]
        bright = mean_of_brightest(subsampled, _BRIGHTEST)
        profile = [_laplacian_variance(tile) / max(bright - p1, 1.0) ** 2 for tile in tiles]
        noise = _estimate_noise(tiles[len(tiles) // 2])
        highest = int(pixels.max())
        constant = bool(pixels.min() == highest)
        piled_up = _piles_up(subsampled, highest)
        # Counting costs a pass over the pixels.
        if piled_up or highest in _CEILINGS:
            saturation = float(np.mean(pixels == highest))
        else:
            saturation = _plateau_share(tiles, median + 0.7 * (highest - median), noise)
        self._highest.append(highest)
        self._piled_up.append(piled_up)
        self._constant &= constant
        self._channels.append({
            "intensity_p1": p1, "intensity_median": median, "intensity_p99": p99, "background": p5,
            "signal_to_noise": (bright - p5) / noise if noise else float("nan"),
            "channel_saturation": saturation,
            "channel_focus": max(profile), "channel_focus_slice": int(np.argmax(profile)), "focus_profile": profile,
            "repeated_slices": 0 if constant else _count_repeated_slices(stack),
        })  # fmt: skip

    @property
    def sample(self) -> NDArray[np.uint16]:
        """(C, sample_size): pixels at random positions, the same positions in every channel."""
        return np.stack(self._samples)

    @property
    def thumbnail(self) -> NDArray[np.float32]:
        """(C, up to 32, up to 32): means over slices and over blocks of the plane."""
        return np.stack(self._thumbnails)

    def quality(self) -> dict[str, Any]:
        """Quality of the field, after every channel was added. Keys are columns of the ``fields`` table.

        Lists hold one value for each channel.

        - ``qc_flag``: ``empty`` if every channel is constant, else None.
        - ``image_version``: see ``PixelDigest``.
        - ``focus_profile``: focus by channel and slice: the variance of the Laplacian (Pech-Pacheco et al. 2000) of
          intensities scaled to the channel's 1st percentile and the mean of its brightest 2.5%. ``channel_focus`` and
          ``channel_focus_slice`` (0-based) describe the sharpest slice of each channel, ``focus_score`` and
          ``focus_slice`` that of the mean over channels.
        - ``saturation``: share of pixels at the ceiling of the intensities. This is the ceiling of the camera; or the
          highest value, if pixels pile up there (after a shift or an offset); or a bright plateau without noise (after
          a division by the illumination).
        - ``background``: the 5th percentile.
        - ``signal_to_noise``: (mean of the brightest 2.5% - background) / noise. The noise is the median absolute
          second difference along rows, which ignores slopes. NaN if the noise is 0.
        - ``repeated_slices``: number of slices that equal the slice before them.
        """
        lists = {name: [channel[name] for channel in self._channels] for name in self._channels[0]}
        focus = np.mean(lists["focus_profile"], axis=0)
        ceiling = next(c for c in _CEILINGS if max(self._highest) <= c)
        channels = zip(lists["channel_saturation"], self._highest, self._piled_up, strict=True)
        lists["channel_saturation"] = [
            0.0 if highest in _CEILINGS and highest != ceiling and not piled_up else share
            for share, highest, piled_up in channels
        ]
        return {
            "qc_flag": "empty" if self._constant else None,
            "image_version": self._digest.version,
            "focus_slice": int(focus.argmax()),
            "focus_score": float(focus.max()),
            "saturation": float(np.mean(lists["channel_saturation"])),
            **lists,
        }


def field_warnings(fields: pl.DataFrame, channels: Sequence[str]) -> pl.Series:
    """Describe the problems of each usable row of the ``fields`` table, after those in its ``qc_warning``, or NULL.

    A channel is out of focus if its score is below half of the plate's median, and its logarithm is more than five
    robust standard deviations below the median. Plates of fewer than eight usable fields are not checked for focus. A
    channel that repeats a plane is not a z-stack.
    """
    from scipy.stats import median_abs_deviation

    warnings = [[] if known is None else [known] for known in fields["qc_warning"]]
    usable = fields["qc_flag"].is_null().to_numpy()
    for index, channel in enumerate(channels):
        of_channel = fields.select(pl.col("channel_focus", "repeated_slices", "focus_profile").list.get(index))
        for row in np.flatnonzero(usable & (of_channel["repeated_slices"].fill_null(0) > 0).to_numpy()):
            repeated, profile = of_channel["repeated_slices"][int(row)], of_channel["focus_profile"][int(row)]
            warnings[row].append(f"{channel} repeats a plane in {repeated + 1} of {len(profile)} slices")
        if usable.sum() < _MIN_FIELDS:
            continue
        score = of_channel["channel_focus"].cast(pl.Float64).to_numpy()
        log = np.log(np.maximum(score, 1e-12))
        median = float(np.median(log[usable]))
        spread = float(median_abs_deviation(log[usable], scale="normal"))
        for row in np.flatnonzero(usable & (log < median - max(5 * spread, np.log(2)))):
            problem = f"{channel} is out of focus ({score[row]:.2g}, the plate's median is {np.exp(median):.2g})"
            warnings[row].append(problem)
    return pl.Series("qc_warning", ["; ".join(texts) or None for texts in warnings], dtype=pl.String)


def center_and_scale(samples: Sequence[NDArray[np.uint16]]) -> tuple[list[float], list[float]]:
    """For each channel of pixel samples, (C, n) a field: the median, and the mean of the brightest 2.5% less it (>= 1).

    All crops of a plate are standardised with these values. Standardising each crop by its own values would write the
    phenotype of a cell into the pixels of its background.
    """
    pixels = np.concatenate(samples, axis=1)
    centers = np.median(pixels, axis=1).tolist()
    bright = [mean_of_brightest(channel, _BRIGHTEST) for channel in pixels]
    return centers, [max(top - center, 1.0) for top, center in zip(bright, centers, strict=True)]


def _piles_up(pixels: NDArray[np.uint16], highest: int) -> bool:
    """Whether the highest value is that of many pixels. Towards an intensity that no pixel reaches, counts fall."""
    counts = np.bincount(pixels)
    *below, top = counts[counts > 0][-_PILE_LEVELS - 1 :].tolist()
    if len(counts) <= highest or len(below) < _PILE_LEVELS:
        return False
    return top >= _PILE_PIXELS and top > _PILE_RATIO * np.mean(below)


def _plateau_share(tiles: Sequence[NDArray[np.float32]], bright: float, noise: float) -> float:
    """Share of pixels above ``bright`` that have no noise. A division spreads a ceiling over many values, but saturated
    pixels still follow the smooth divisor, while the noise of other pixels grows with their intensity."""
    n_bright = n_smooth = n_plateau = 0
    for plane in tiles if noise >= _PLATEAU_NOISE else ():
        is_bright = plane > bright
        if min(plane.shape[1:]) < 3 or not is_bright.any():
            continue
        smooth = np.zeros_like(is_bright)
        along_y = np.abs(np.diff(plane, 2, axis=1))[:, :, 1:-1] <= _PLATEAU_STEP
        along_x = np.abs(np.diff(plane, 2, axis=2))[:, 1:-1] <= _PLATEAU_STEP
        smooth[:, 1:-1, 1:-1] = along_y & along_x
        smooth &= is_bright
        plateau = scipy.ndimage.binary_dilation(smooth, np.ones((1, 3, 3), bool)) & is_bright
        n_bright, n_smooth, n_plateau = n_bright + is_bright.sum(), n_smooth + smooth.sum(), n_plateau + plateau.sum()
    return float(n_plateau / sum(plane.size for plane in tiles)) if n_smooth > _PLATEAU_SHARE * n_bright else 0.0


def _count_repeated_slices(stack: NDArray[np.uint16]) -> int:
    """Count slices that equal the slice before. Subsampled slices are compared first, because nearly all differ."""
    subsampled = stack[:, ::16, ::16]
    candidates = [z for z in range(1, len(stack)) if np.array_equal(subsampled[z], subsampled[z - 1])]
    return sum(np.array_equal(stack[z], stack[z - 1]) for z in candidates)


def _cut_tiles(plane: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(tiles, y, x): evenly spaced tiles of a large plane, or a small plane as one tile."""
    if min(plane.shape) < _TILES_PER_SIDE * _TILE_SIZE:
        return plane[None]
    rows, columns = (np.linspace(0, size - _TILE_SIZE, _TILES_PER_SIDE).astype(int) for size in plane.shape)
    return np.stack([plane[y : y + _TILE_SIZE, x : x + _TILE_SIZE] for y in rows for x in columns])


def _estimate_noise(tiles: NDArray[np.float32]) -> float:
    """Standard deviation of the noise from second differences along rows, whose variance is 6 times as large."""
    if tiles.shape[2] <= 2:
        return 0.0
    return _MAD_TO_SD / 6**0.5 * float(np.median(np.abs(np.diff(tiles, 2, axis=2))))


def _laplacian_variance(tiles: NDArray[np.float32]) -> float:
    if min(tiles.shape[1:]) < 3:
        return 0.0
    centre = 4 * tiles[:, 1:-1, 1:-1]
    neighbours = tiles[:, :-2, 1:-1] + tiles[:, 2:, 1:-1] + tiles[:, 1:-1, :-2] + tiles[:, 1:-1, 2:]
    return float((centre - neighbours).var())


def _make_thumbnail(stack: NDArray[np.uint16]) -> NDArray[np.float32]:
    steps = [max(1, size // 256) for size in stack.shape[1:]]
    small = stack[:, :: steps[0], :: steps[1]].mean(0, dtype=np.float32)
    for axis in (0, 1):
        edges = np.linspace(0, small.shape[axis], min(_THUMBNAIL_SIZE, small.shape[axis]) + 1).astype(int)
        sums = np.add.reduceat(small, edges[:-1], axis=axis)
        small = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return small.astype(np.float32)
