"""Synthetic images on which the compact network is trained, with true masks.

Here: a wide family of short stacks of cells, made to differ from one another more than real screens do. Not here:
plates; the synthetic plates that the package writes are made independently, so that they can be a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi

from gradcamo_assets.segmentation.settings import DIAMETER

_SLICES = 3
_FOCUS = _SLICES // 2


@dataclass(frozen=True)
class TrainingImage:
    """A slice of a stack with the slices around it, whose light reaches into it.

    ``cytoplasm``: one to four stains; each and ``nucleus`` (3, Y, X) float32 in photon counts. ``cells``, ``nuclei``:
    masks of the middle slice (Y, X) int32. ``kind``: how the cells lie.
    """

    kind: str
    cytoplasm: tuple[np.ndarray, ...]
    nucleus: np.ndarray
    cells: np.ndarray
    nuclei: np.ndarray


def training_image(seed: int, size: int = 192) -> TrainingImage:
    """One image; equal seeds give equal images. Cells measure about 12 to 70 pixels, around ``DIAMETER``."""
    rng = np.random.default_rng(seed)
    kind, cells, nuclei = _layout(rng, size)
    dna = _stain_nucleus(rng, nuclei)
    near = _depth(cells), ndi.distance_transform_edt(nuclei == 0, sampling=(99, 1, 1)).astype(np.float32)
    stains = [_stain_cytoplasm(rng, cells, nuclei, *near) for _ in range(rng.choice(4, p=[0.4, 0.15, 0.2, 0.25]) + 1)]
    bleeding = rng.uniform(0, 0.2) * (rng.random() < 0.5)
    nucleus = dna * 10 ** (-rng.uniform(0, 0.7) * (rng.random() < 0.2)) + bleeding * stains[0]
    nucleus = _camera(rng, nucleus + _haze(rng, size, likely=0.25, most=0.35))
    for k, stain in enumerate(stains):
        if len(stains) > 2 and rng.random() < 0.12:
            stain = 0.03 * stain  # It failed.
        light = stain + rng.uniform(0, 0.25) * (rng.random() < 0.4) * dna
        stains[k] = _camera(rng, light + _haze(rng, size, likely=0.4, most=0.8))
    return TrainingImage(kind, tuple(stains), nucleus, cells[_FOCUS], nuclei[_FOCUS])


def _smooth(rng: np.random.Generator, size: int, sigma: float, depth: int = 1) -> np.ndarray:
    noise = rng.standard_normal((depth, size, size), dtype=np.float32)
    noise = ndi.gaussian_filter(noise, (0.6 * (depth > 1), sigma, sigma), mode="wrap", truncate=3)
    return noise / (noise.std() + 1e-6)


def _centres(rng: np.random.Generator, size: int, radii: np.ndarray, spacing: float) -> list[tuple[float, ...]]:
    """Random centres (y, x, radius), no two nearer than ``spacing`` times their radii's sum; clustered in a third."""
    candidates = rng.uniform(-8, size + 8, (len(radii), 2))
    if rng.random() < 0.35:
        homes = rng.uniform(0, size, (rng.integers(1, 6), 2))
        candidates = homes[rng.integers(0, len(homes), len(radii))] + rng.normal(0, size / 8, (len(radii), 2))
    kept = np.empty((0, 3))
    for (y, x), radius in zip(candidates, radii, strict=True):
        if (np.hypot(kept[:, 0] - y, kept[:, 1] - x) >= spacing * (kept[:, 2] + radius)).all():
            kept = np.vstack([kept, (y, x, radius)])
    return [tuple(row) for row in kept]


def _reach(
    rng: np.random.Generator,
    size: int,
    centre: Sequence[float],
    radius: float,
    stretch: float,
    wobble: float,
    far: float,
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Distance from the centre in units of a random outline's radius, in the window that reaches ``far`` of them."""
    half = int(far * radius * stretch * (1 + 2 * wobble)) + 2
    y, x = round(centre[0]), round(centre[1])
    window = (slice(max(0, y - half), min(size, y + half + 1)), slice(max(0, x - half), min(size, x + half + 1)))
    if window[0].start >= window[0].stop or window[1].start >= window[1].stop:
        return None
    dy, dx = np.ogrid[window]
    dy, dx = dy - centre[0], dx - centre[1]
    turn = rng.uniform(0, np.pi)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    along, across = along / stretch**0.5, across * stretch**0.5
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for order in range(2, 7):
        outline += rng.normal(0, wobble / order**0.5) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return window, np.hypot(along, across) / (radius * np.clip(outline, 0.35, 1.9))


def _layout(rng: np.random.Generator, size: int) -> tuple[str, np.ndarray, np.ndarray]:
    """How the cells lie, and the masks of cells and nuclei (Z, Y, X); objects of the middle slice are connected."""
    shape = (_SLICES, size, size)
    cells, nuclei, nearest = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.ones(shape, np.float32)
    kind = str(rng.choice(["sparse", "crowded", "confluent", "layered", "empty"], p=[0.25, 0.35, 0.22, 0.15, 0.03]))
    radius = DIAMETER / 2 * float(np.exp(rng.normal(0, 0.28)))
    radii = radius * np.exp(rng.normal(0, rng.uniform(0.08, 0.3), 700))
    spacing, far = {
        "sparse": (rng.uniform(0.9, 1.6), 1.0),
        "crowded": (rng.uniform(0.6, 0.95), 1.0),
        "confluent": (rng.uniform(0.7, 0.95), rng.uniform(1.2, 2.0)),
        "layered": (rng.uniform(0.35, 0.6), 1.0),
        "empty": (1.0, 1.0),
    }[kind]
    count = {"sparse": rng.integers(1, 25), "crowded": rng.integers(10, 500), "empty": 0}.get(kind, 700)
    wobble, stretch = rng.uniform(0.01, 0.16), rng.uniform(1.0, 3.2 if rng.random() < 0.35 else 1.5)
    # Half the height of a cell of average size, in slices, and where the layer's middle lies.
    tall, level = rng.uniform(1.5, 9), rng.uniform(-0.9, 0.9)
    roundness, uneven = rng.uniform(2, 3), rng.uniform(0.1, 0.5)
    slices = np.arange(-_FOCUS, _FOCUS + 1, dtype=np.float32)[:, None, None]
    heights = np.zeros((0, 2))
    for label, (y, x, r) in enumerate(_centres(rng, size, radii[:count], spacing), start=1):
        half = tall * r / radius * rng.uniform(0.8, 1.25)
        middle = rng.uniform(-1, 1) * (half + 1.5) if kind == "layered" else (level + rng.normal(0, uneven)) * half
        heights = np.vstack([heights, (middle, half)])
        reached = _reach(rng, size, (y, x), r, rng.uniform(1, stretch), wobble, far)
        if reached is None:
            continue
        window, distance = (slice(None), *reached[0]), reached[1][None] / far
        solid = (distance**roundness + np.abs((slices - middle) / half) ** roundness) ** (1 / roundness)
        wins = solid < nearest[window]
        nearest[window][wins], cells[window][wins] = solid[wins], label
    if rng.random() < 0.3:
        cells[_edges(cells)] = 0
    cells[_FOCUS] = _connected(cells[_FOCUS], 25)
    share = rng.uniform(0.75, 0.95) if rng.random() < 0.15 else rng.uniform(0.35, 0.72)
    bare, twins = rng.uniform(0, 0.12), 0.4 if rng.random() < 0.1 else 0.05
    for label, place in enumerate(ndi.find_objects(cells), start=1):
        if place is not None and rng.random() >= bare:
            _add_nuclei(rng, cells, nuclei, label, place, share, 2 if rng.random() < twins else 1, heights[label - 1])
    nuclei[_FOCUS] = _connected(nuclei[_FOCUS], 12)
    return kind, cells, nuclei


def _add_nuclei(
    rng: np.random.Generator, cells: np.ndarray, nuclei: np.ndarray, label: int, place: tuple[slice, ...],
    share: float, twins: int, height: np.ndarray,
) -> None:  # fmt: skip
    inside = np.argwhere((cells[place] == label).any(0))
    middle = inside.mean(0) + np.array([place[1].start, place[2].start])
    reach, spread = np.sqrt(len(inside) / np.pi), 4 * inside.std(0).clip(1)
    side = rng.choice([-1, 1])
    slices = np.arange(-_FOCUS, _FOCUS + 1)[:, None, None]
    level, half = height[0] + rng.normal(0, 0.1) * height[1], height[1] * rng.uniform(0.5, 0.95)
    for twin in range(twins):
        radius = reach * share * rng.uniform(0.85, 1.15) / twins**0.5
        shift = max(0.0, reach - radius) * 0.35
        centre = middle + rng.uniform(-shift, shift, 2)
        if twins == 2:
            centre = centre + (twin - 0.5) * np.array([1, side]) * 0.5 * spread
        number = int(nuclei.max()) + 1
        lobes = 2 if rng.random() < 0.03 else 1
        for _ in range(lobes):
            at = centre + (rng.normal(0, 0.5 * radius, 2) if lobes == 2 else 0)
            reached = _reach(rng, cells.shape[1], tuple(at), radius / lobes**0.5, rng.uniform(1, 1.9), 0.04, 1.0)
            if reached is not None:
                window = (slice(None), *reached[0])
                solid = reached[1][None] ** 2 + ((slices - level) / half) ** 2
                nuclei[window][(solid < 1) & (cells[window] == label) & (nuclei[window] == 0)] = number


def _edges(labels: np.ndarray) -> np.ndarray:
    above, left = np.roll(labels, 1, -2), np.roll(labels, 1, -1)
    above[..., 0, :], left[..., 0] = labels[..., 0, :], labels[..., 0]
    return ((labels != above) | (labels != left)) & (labels > 0)


def _depth(labels: np.ndarray) -> np.ndarray:
    """Distance of each pixel from the edge of its own object in its slice, 0 outside."""
    inner = (labels > 0) & ~_edges(labels)
    return ndi.distance_transform_edt(inner, sampling=(99, 1, 1)).astype(np.float32) + (labels > 0)


def _connected(labels: np.ndarray, least: int) -> np.ndarray:
    """The largest part of each object, if it has at least ``least`` pixels; labels are kept."""
    kept = np.zeros_like(labels)
    for label, place in enumerate(ndi.find_objects(labels), start=1):
        if place is None:
            continue
        parts, _ = ndi.label(labels[place] == label)
        sizes = np.bincount(parts.ravel())[1:]
        if sizes.max() >= least:
            kept[place][parts == sizes.argmax() + 1] = label
    return kept


def _amplitudes(rng: np.random.Generator, count: int) -> np.ndarray:
    values = np.exp(rng.normal(0, rng.uniform(0.05, 0.75), count + 1)).astype(np.float32)
    if rng.random() < 0.15:
        values[rng.integers(0, count + 1)] *= rng.uniform(3, 8)
    values[0] = 0
    return values


def _stain_cytoplasm(
    rng: np.random.Generator, cells: np.ndarray, nuclei: np.ndarray, depth: np.ndarray, away: np.ndarray
) -> np.ndarray:
    """A random mixture of patterns: flat, domed, at the rim, around the nucleus, networks, granules; nuclei darker or
    brighter."""
    around = np.exp(-away / rng.uniform(3, 10))
    image = np.zeros(cells.shape, np.float32)
    for _ in range(rng.integers(1, 3)):
        pattern = (
            np.ones_like(depth),
            np.clip(depth / rng.uniform(2, 14), 0, 1) ** rng.uniform(0.5, 1.5),
            rng.uniform(0.1, 0.6) + rng.uniform(0.5, 1.5) * np.exp(-depth / rng.uniform(1, 4)),
            rng.uniform(0.1, 0.5) + around,
        )[rng.integers(4)]
        texture = _smooth(rng, cells.shape[1], rng.uniform(0.6, 3.5), _SLICES)
        pattern = pattern * np.clip(1 + rng.uniform(0, 0.6) * texture, 0, None)
        if (look := rng.random()) < 0.3:
            pattern = pattern * (rng.uniform(0.1, 0.7) + 1.5 * np.clip(texture - rng.uniform(0.3, 1.2), 0, None))
        elif look < 0.5:
            pattern = pattern * (rng.uniform(0.1, 0.7) + np.exp(-((texture / rng.uniform(0.2, 0.6)) ** 2)))
        inside = rng.uniform(0, 0.6) if rng.random() < 0.6 else rng.uniform(0.8, 1.8)
        image += pattern * np.where(nuclei > 0, inside, 1)
    image /= np.percentile(image[cells > 0], 80) + 1e-6 if (cells > 0).any() else 1
    return image * _amplitudes(rng, int(cells.max()))[cells]


def _stain_nucleus(rng: np.random.Generator, nuclei: np.ndarray) -> np.ndarray:
    texture = _smooth(rng, nuclei.shape[1], rng.uniform(0.7, 2.5), _SLICES)
    image = np.clip(1 + rng.uniform(0, 0.45) * texture, 0.1, None)
    if rng.random() < 0.3:
        image += rng.uniform(0.5, 2) * np.clip(texture - 1.3, 0, None)
    return image * np.clip(_depth(nuclei) / rng.uniform(1, 6), 0.3, 1) * _amplitudes(rng, int(nuclei.max()))[nuclei]


def _haze(rng: np.random.Generator, size: int, likely: float, most: float) -> np.ndarray:
    """What lies between cells, the same in all slices: a gradient, granular background, fibres and debris."""
    y, x = np.mgrid[-1 : 1 : complex(size), -1 : 1 : complex(size)].astype(np.float32)
    haze = rng.uniform(0, 0.3) * (1 + (y * rng.uniform(-1, 1) + x * rng.uniform(-1, 1)) / 2)
    if rng.random() < likely:
        grains = _smooth(rng, size, float(np.exp(rng.uniform(-0.5, 1.6))))
        haze = haze + rng.uniform(0.05, 1) * most * np.clip(grains + rng.uniform(-0.8, 1), 0, None) / 2
    if rng.random() < 0.4:
        specks = np.zeros((size, size), np.float32)
        for _ in range(rng.integers(1, 25)):
            specks[tuple(rng.integers(0, size, 2))] = rng.uniform(2, 40)
        haze = haze + ndi.gaussian_filter(specks, rng.uniform(0.5, 2))
    if rng.random() < 0.25:
        ridges = np.exp(-((_smooth(rng, size, rng.uniform(5, 15)) / rng.uniform(0.03, 0.08)) ** 2))
        haze = haze + rng.uniform(0.05, 0.35) * ridges * (_smooth(rng, size, 12) > 0)
    return haze.astype(np.float32)


def _camera(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """A cone of light from the slices above and below, blur, uneven illumination, photons and read-out noise."""
    sharp, wider, dimmer = rng.uniform(0.3, 2.6), rng.uniform(0.5, 5), rng.uniform(0.02, 0.6)
    image = ndi.gaussian_filter(light, (0, sharp, sharp), truncate=3)
    wide = dimmer * ndi.gaussian_filter(light, (0, sharp + wider, sharp + wider), truncate=2.5)
    image[1:] += wide[:-1]
    image[:-1] += wide[1:]
    y, x = np.mgrid[-1 : 1 : complex(light.shape[1]), -1 : 1 : complex(light.shape[1])]
    uneven = 1 - rng.uniform(0, 0.75) * ((y - rng.uniform(-1, 1)) ** 2 + (x - rng.uniform(-1, 1)) ** 2) / 8
    photons = 10 ** rng.uniform(1.3, 3.3)
    counts = rng.poisson(np.clip(image * uneven, 0, None) * photons).astype(np.float32)
    return counts + rng.normal(0, 10 ** rng.uniform(-1, 0.7), light.shape).astype(np.float32)
