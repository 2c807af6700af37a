"""The hard fields of the segmentation benchmark: z-stacks of cells drawn in three dimensions, with true labels.

Fixed before the networks were tuned, and made by code that shares nothing with the training images: those are
two-dimensional outlines, these are bent ellipsoids on a slide or in layers, filled by nearness, stained and blurred in
3D. Training draws other settings from other seeds; neither these settings nor these seeds may be used for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi

FIRST_SEED = 900_001
"""Field k of ``HARD`` is drawn with the seed ``FIRST_SEED + k``."""
CELL_WIDTH = 15.0
"""Width of an average cell in micrometres: with ``Setting.width`` this makes the voxel size."""
LEAST_CELL, LEAST_NUCLEUS = 100, 25
"""Fewest voxels of a true object; what the edge of the field leaves of one may be less, and is then no object."""


@dataclass(frozen=True)
class Setting:
    """What one field looks like.

    Args:
        width: mean width of a cell, pixels; single cells differ by a quarter (one standard deviation).
        shape: (Z, Y, X).
        layers: of cells; 1 is a layer on the slide, more are balls of cells above one another.
        spacing: closest two centres may come, in widths: 0.6 is crowded, 1.2 sparse.
        elongation: length over breadth of a cell, at most.
        bend: how far outlines depart from ellipsoids, in widths.
        texture: contrast of granules and networks in the stains, 0 to 1.
        spread: log standard deviation of the cells' brightness.
        blur: of the optics, pixels (in plane); along z half as many slices.
        haze: light out of focus, as a share.
        photons: counted at the brightness of an average cell; fewer is noisier.
        vignette: light lost between the brightest and the darkest corner, as a share.
        debris: specks and fibres.
        empty: share of the field, from one corner, that holds no cells.
        binucleate: share of cells with two nuclei.
        nuclear: brightness of the DNA stain against the others.
        stains: channels, in order; a name with ``!`` is a stain that failed: background only.
        scale: pixels a cell really is wide over what the voxel size makes one expect.
    """

    name: str
    width: float
    shape: tuple[int, int, int] = (20, 288, 288)
    layers: int = 1
    spacing: float = 0.75
    elongation: float = 1.35
    bend: float = 0.08
    texture: float = 0.35
    spread: float = 0.25
    blur: float = 0.9
    haze: float = 0.15
    photons: float = 250.0
    vignette: float = 0.2
    debris: int = 2
    empty: float = 0.0
    binucleate: float = 0.03
    nuclear: float = 1.0
    stains: tuple[str, ...] = ("DNA", "ER", "RNA", "AGP", "Mito")
    scale: float = 1.0


HARD = (
    Setting("small, crowded", 18, (16, 256, 256), spacing=0.68, scale=0.9),
    Setting("large, crowded", 60, (22, 320, 320), spacing=0.66, scale=1.1),
    Setting("elongated", 34, elongation=2.6, spacing=0.7),
    Setting("granular", 38, texture=1.0, spacing=0.7),
    Setting("bright and dim", 30, spread=0.75, scale=1.25),
    Setting("blurred", 32, blur=2.2, haze=0.45, spacing=0.75),
    Setting("shot noise", 36, photons=14, spacing=0.75),
    Setting("uneven light", 28, vignette=0.65, haze=0.35, debris=6),
    Setting("debris, empty corner", 26, spacing=1.0, empty=0.45, debris=25, scale=0.8),
    Setting("stains swapped, one failed", 40, stains=("Mito", "!ER", "AGP", "DNA", "RNA"), nuclear=0.35),
    Setting("one stain", 30, stains=("RNA", "DNA"), spacing=0.72, photons=120),
    Setting("several nuclei", 48, (18, 300, 300), binucleate=0.4, bend=0.12),
    Setting("layers", 24, (24, 256, 256), layers=3, spacing=0.85, blur=1.1, scale=1.2),
    Setting("nucleus alone", 32, stains=("DNA",), spacing=0.7),
    Setting("all at once", 36, (20, 300, 300), 1, 0.68, 1.9, 0.1, 0.7, 0.45, 1.3, 0.3, 60, 0.45, 8, 0.15, 0.12),
)
QUICK = (2, 6, 10)
"""Fields of ``HARD`` that a quick run takes."""


@dataclass(frozen=True)
class Field:
    """``image`` (C, Z, Y, X) uint16; ``cells`` and ``nuclei`` (Z, Y, X) int32; ``voxel_size`` (z, y, x) in um."""

    name: str
    image: np.ndarray
    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    cells: np.ndarray
    nuclei: np.ndarray


def hard_field(index: int, first_seed: int = FIRST_SEED) -> Field:
    """Field ``index`` of ``HARD``; the same every time."""
    setting, rng = HARD[index], np.random.default_rng(first_seed + index)
    # So many pixels does one slice measure that the cells fill most of the stack.
    step = setting.width * (0.75 if setting.layers == 1 else 0.8 * setting.layers) / (0.8 * setting.shape[0])
    cells, nuclei, rim = _anatomy(rng, setting, step)
    image = np.stack([_photograph(rng, setting, *_stain(rng, setting, name, cells, nuclei, rim), step)
                      for name in setting.stains])  # fmt: skip
    pixel = CELL_WIDTH * setting.scale / setting.width
    return Field(
        setting.name,
        image,
        tuple(name.strip("!") for name in setting.stains),
        (round(pixel * step, 3), round(pixel, 3), round(pixel, 3)),
        _whole(cells, LEAST_CELL),
        _whole(nuclei, LEAST_NUCLEUS),
    )


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, step: float) -> np.ndarray:
    """Smooth noise (Z, Y, X) of deviation 1; ``sigma`` in pixels in plane."""
    noise = rng.standard_normal(shape, np.float32)
    noise = ndi.gaussian_filter(noise, (sigma / step, sigma, sigma), mode="wrap", truncate=3)
    return noise / noise.std()


def _anatomy(
    rng: np.random.Generator, setting: Setting, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Labels of cells and nuclei, and how near a voxel is to its cell's border (0 inside, 1 at it)."""
    depth, height, length = setting.shape
    z, y, x = np.meshgrid(np.arange(depth) * step, np.arange(height), np.arange(length), indexing="ij", sparse=True)
    bends = [setting.bend * setting.width * _grain(rng, setting.shape, setting.width / 3, step) for _ in range(3)]
    z, y, x = z + 0.5 * bends[0], y + bends[1], x + bends[2]
    best = np.ones(setting.shape, np.float32)
    cells, nuclei = np.zeros(setting.shape, np.int32), np.zeros(setting.shape, np.int32)
    core = np.ones(setting.shape, np.float32)
    tall = depth * step
    for label, (cz, cy, cx) in enumerate(_centres(rng, setting, tall), start=1):
        half = setting.width / 2 * np.exp(rng.normal(0, 0.22))
        stretch = rng.uniform(1, setting.elongation) ** 0.5
        # A cell on the slide is a dome, as high as it is narrow.
        up = min(half * rng.uniform(1.1, 1.5), 0.8 * tall) if setting.layers == 1 else half * rng.uniform(0.7, 1.0)
        turn = rng.uniform(0, np.pi)
        reach = int(half * stretch * 1.3 + 3 * setting.bend * setting.width) + 2
        box = (slice(None), slice(max(0, int(cy) - reach), max(0, int(cy) + reach)),
               slice(max(0, int(cx) - reach), max(0, int(cx) + reach)))  # fmt: skip
        dz, dy, dx = z[box] - cz, y[box] - cy, x[box] - cx
        along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
        flat = (along / (half * stretch)) ** 2 + (across * stretch / half) ** 2
        bottom = 0.25 * up if setting.layers == 1 else up
        distance = np.sqrt(flat + (dz / np.where(dz > 0, up, bottom)) ** 2)
        wins = distance < best[box]
        best[box][wins], cells[box][wins] = distance[wins], label
        share = rng.uniform(0.42, 0.62)
        twins = rng.random() < setting.binucleate
        nucleus = np.full(distance.shape, 9.0, np.float32)
        for side in (-1, 1) if twins else (0,):
            off = side * half * stretch * 0.42 + rng.normal(0, 0.07) * half
            wide = half * share * (0.75 if twins else 1) * stretch**0.5
            slim = half * share * (0.75 if twins else 1) / stretch**0.5
            middle = 0.3 * up if setting.layers == 1 else 0.0
            part = np.sqrt(((along - off) / wide) ** 2 + (across / slim) ** 2 + ((dz - middle) / (0.55 * up)) ** 2)
            own = 2 * label + (side > 0)
            nuclei[box][wins & (part < 1) & (distance < 0.93)] = own
            nucleus = np.minimum(nucleus, part)
        nuclei[box][wins & ~((nucleus < 1) & (distance < 0.93))] = 0
        core[box][wins] = nucleus[wins]
    inner = np.ones(cells.shape, bool)
    for axis in range(3):
        for shift in (1, -1):
            inner &= cells == np.roll(cells, shift, axis)
    near = ndi.distance_transform_edt(inner & (cells > 0), sampling=(step, 1, 1)).astype(np.float32)
    return cells, nuclei, np.exp(-near / (0.07 * setting.width)) * (cells > 0)


def _centres(rng: np.random.Generator, setting: Setting, tall: float) -> np.ndarray:
    """(n, 3) centres in pixels, no two nearer than the spacing allows."""
    size = np.array([tall, *setting.shape[1:]])
    kept = np.empty((0, 3))
    for _ in range(6000):
        centre = rng.uniform([0.15, -0.02, -0.02], [0.85, 1.02, 1.02]) * size
        if setting.layers == 1:
            centre[0] = tall * 0.2 + rng.normal(0, 0.03) * tall
        if centre[1] + centre[2] < setting.empty * size[1:].sum():
            continue
        if (np.sqrt(((kept - centre) ** 2).sum(1)) >= setting.spacing * setting.width).all():
            kept = np.vstack([kept, centre])
    return kept


def _stain(
    rng: np.random.Generator, setting: Setting, name: str, cells: np.ndarray, nuclei: np.ndarray, rim: np.ndarray
) -> tuple[np.ndarray, float]:
    """Light (Z, Y, X) of one stain, 1 in an average cell, and its brightness against the other stains."""
    shape, t = cells.shape, setting.texture
    fine, coarse = (_grain(rng, shape, sigma, 1.5) for sigma in (0.9, 2.2))
    inside, nucleus = cells > 0, nuclei > 0
    bright = np.exp(rng.normal(0, setting.spread, cells.max() + 1)).astype(np.float32)
    if name == "DNA":
        own = np.exp(rng.normal(0, 0.7 * setting.spread, nuclei.max() + 1)).astype(np.float32)
        light = nucleus * (1 + 0.35 * t * coarse + 0.5 * t * np.clip(fine - 1.5, 0, 2)).clip(0.2) * own[nuclei]
        return light + 0.03 * inside, setting.nuclear
    if name.startswith("!"):
        return 0.05 * inside + 0.03 * np.clip(coarse, 0, 3), 0.3
    network, grains = np.exp(-((coarse / 0.5) ** 2)), np.clip(fine - 0.8, 0, 3)
    light = {
        "ER": (0.9 * (1 - t) + 1.6 * t * network) * np.where(nucleus, 0.3, 1) * (1 - 0.55 * rim),
        "RNA": (1 + 0.3 * t * fine) * np.where(nucleus, 0.55 + 1.5 * (coarse > 1.4), 1) * (1 - 0.45 * rim),
        "AGP": 0.45 + 1.3 * rim + 0.8 * t * grains - 0.15 * nucleus,
        "Mito": (0.7 * (1 - t) + 2.2 * t * grains + 0.3) * np.where(nucleus, 0.15, 1) * (1 - 0.75 * rim),
    }[name]
    return (light * inside * bright[cells]).clip(0).astype(np.float32), 1.0


def _photograph(
    rng: np.random.Generator, setting: Setting, light: np.ndarray, brightness: float, step: float
) -> np.ndarray:
    """Debris, optics, uneven light, photons, read-out noise and offset: (Z, Y, X) uint16."""
    depth, height, length = light.shape
    light = light.astype(np.float32) * brightness
    for _ in range(rng.poisson(setting.debris)):
        z, y, x = (int(rng.integers(n)) for n in light.shape)
        fibre = int(rng.integers(8, 40)) if rng.random() < 0.2 else 2
        slope = rng.normal(0, 0.5)
        for k in range(fibre):
            light[z, min(height - 1, max(0, int(y + slope * k))), min(length - 1, x + k)] += rng.uniform(1, 12)
    plane = setting.blur * rng.uniform(0.85, 1.15)
    sharp = ndi.gaussian_filter(light, (0.5 * plane, plane, plane), truncate=3)
    wide = 0.25 * setting.width
    hazy = ndi.gaussian_filter(light, (max(1.0, wide / step), wide, wide), truncate=2)
    light = (1 - setting.haze) * sharp + setting.haze * hazy + 0.06
    y, x = np.mgrid[-1 : 1 : complex(height), -1 : 1 : complex(length)].astype(np.float32)
    lean = rng.uniform(0, 2 * np.pi)
    fall = 0.5 * ((y**2 + x**2) / 2) + 0.25 * (1 + (y * np.sin(lean) + x * np.cos(lean)) / np.sqrt(2))
    light = light * (1 - setting.vignette * fall)
    # Depth dims: the upper slices are seen through the lower ones.
    light *= np.linspace(1, 0.75, depth, dtype=np.float32)[:, None, None]
    gain = 10 ** rng.uniform(0.2, 1.2)
    counts = rng.poisson(light * setting.photons) * gain + rng.normal(200, 2 * gain, light.shape)
    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)


def _whole(labels: np.ndarray, least: int) -> np.ndarray:
    """The largest connected part of each object, of at least ``least`` voxels, numbered 1, 2, ..."""
    out, number = np.zeros_like(labels), 0
    for label, box in enumerate(ndi.find_objects(labels), start=1):
        if box is None:
            continue
        parts, _ = ndi.label(labels[box] == label)
        sizes = np.bincount(parts.ravel())[1:]
        if sizes.max() >= least:
            number += 1
            out[box][parts == sizes.argmax() + 1] = number
    return out
