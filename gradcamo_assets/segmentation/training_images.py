"""Synthetic images on which the compact network is trained, with true masks.

Here: a wide family of two-dimensional pictures of cells, made to differ from one another more than real screens do. Not
here: plates; the synthetic plates that the package writes are made independently, so that they can be a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi

from gradcamo_assets.segmentation.segment import DIAMETER


@dataclass(frozen=True)
class TrainingImage:
    """Cytoplasm and nucleus image (Y, X) float32 in photon counts, and the masks of cells and nuclei (Y, X) int32."""

    cytoplasm: np.ndarray
    nucleus: np.ndarray
    cells: np.ndarray
    nuclei: np.ndarray


def training_image(seed: int, size: int = 192) -> TrainingImage:
    """One image; equal seeds give equal images. Cells measure about 18 to 48 pixels, around ``DIAMETER``."""
    rng = np.random.default_rng(seed)
    cells, nuclei, grazed = _layout(rng, size)
    cytoplasm, nucleus = _stain_cytoplasm(rng, cells, nuclei, grazed), _stain_nucleus(rng, nuclei)
    ghosts = _ghosts(rng, size)
    cytoplasm, nucleus = (
        cytoplasm + rng.uniform(0, 0.25) * (rng.random() < 0.5) * nucleus + ghosts[0],
        nucleus + rng.uniform(0, 0.2) * (rng.random() < 0.4) * cytoplasm + ghosts[1],
    )
    cytoplasm += _haze(rng, size, likely=0.5, most=0.9)
    nucleus += _haze(rng, size, likely=0.25, most=0.35)
    return TrainingImage(_camera(rng, cytoplasm), _camera(rng, nucleus), cells, nuclei)


def _smooth(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    noise = ndi.gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), sigma, mode="wrap")
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


def _layout(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of cells and nuclei (Y, X), and which cells, by label, are only grazed by the plane."""
    cells, nuclei = np.zeros((size, size), np.int32), np.zeros((size, size), np.int32)
    nearest = np.full((size, size), np.inf)
    kind = rng.choice(["sparse", "crowded", "confluent", "empty"], p=[0.38, 0.38, 0.2, 0.04])
    radius = DIAMETER / 2 * float(np.exp(rng.normal(0, 0.25)))
    radii = radius * np.exp(rng.normal(0, rng.uniform(0.08, 0.28), 600))
    spacing, far = {
        "sparse": (rng.uniform(0.9, 1.6), 1.0),
        "crowded": (rng.uniform(0.65, 0.95), 1.0),
        "confluent": (rng.uniform(0.7, 0.95), rng.uniform(1.2, 2.0)),
        "empty": (1.0, 1.0),
    }[kind]
    count = {"sparse": rng.integers(1, 25), "crowded": rng.integers(10, 400), "confluent": 600, "empty": 0}[kind]
    wobble, stretch = rng.uniform(0.01, 0.16), rng.uniform(1.0, 2.2 if rng.random() < 0.3 else 1.4)
    centres = _centres(rng, size, radii[:count], spacing)
    grazed = np.zeros(len(centres) + 1, bool)
    for label, (y, x, r) in enumerate(centres, start=1):
        grazed[label] = rng.random() < 0.12
        r = r * rng.uniform(0.4, 0.85) if grazed[label] else r
        reached = _reach(rng, size, (y, x), r, rng.uniform(1, stretch), wobble, far)
        if reached is None:
            continue
        window, distance = reached
        wins = (distance < far) & (distance < nearest[window])
        nearest[window][wins], cells[window][wins] = distance[wins], label
    if rng.random() < 0.3:
        cells[_edges(cells)] = 0
    cells = _connected(cells, 25)
    share = rng.uniform(0.75, 0.95) if rng.random() < 0.15 else rng.uniform(0.35, 0.72)
    for label, place in enumerate(ndi.find_objects(cells), start=1):
        if place is None or (grazed[label] and rng.random() < 0.7) or rng.random() < 0.1:
            continue
        _add_nuclei(rng, cells, nuclei, label, place, share)
    return cells, _connected(nuclei, 16), grazed


def _add_nuclei(
    rng: np.random.Generator, cells: np.ndarray, nuclei: np.ndarray, label: int, place: tuple[slice, ...], share: float
) -> None:
    inside = np.argwhere(cells[place] == label)
    middle = inside.mean(0) + np.array([place[0].start, place[1].start])
    reach = np.sqrt(len(inside) / np.pi)
    twins = 2 if rng.random() < 0.05 else 1
    for _ in range(twins):
        radius = reach * share * rng.uniform(0.85, 1.15) / twins**0.5
        shift = max(0.0, reach - radius) * (0.35 if twins == 1 else 0.8)
        centre = middle + rng.uniform(-shift, shift, 2)
        number = int(nuclei.max()) + 1
        lobes = 2 if rng.random() < 0.12 else 1
        for _ in range(lobes):
            at = centre + (rng.normal(0, 0.5 * radius, 2) if lobes == 2 else 0)
            reached = _reach(rng, len(cells), tuple(at), radius / lobes**0.5, rng.uniform(1, 1.7), 0.04, 1.0)
            if reached is not None:
                window, distance = reached
                nuclei[window][(distance < 1) & (cells[window] == label) & (nuclei[window] == 0)] = number


def _edges(labels: np.ndarray) -> np.ndarray:
    above, left = np.roll(labels, 1, 0), np.roll(labels, 1, 1)
    above[0], left[:, 0] = labels[0], labels[:, 0]
    return ((labels != above) | (labels != left)) & (labels > 0)


def _depth(labels: np.ndarray) -> np.ndarray:
    """Distance of each pixel from the edge of its own object, 0 outside."""
    return ndi.distance_transform_edt((labels > 0) & ~_edges(labels)).astype(np.float32) + (labels > 0)


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
    values = np.exp(rng.normal(0, rng.uniform(0.05, 0.5), count + 1)).astype(np.float32)
    values[0] = 0
    return values


def _stain_cytoplasm(rng: np.random.Generator, cells: np.ndarray, nuclei: np.ndarray, grazed: np.ndarray) -> np.ndarray:
    """A random mixture of stains: flat, domed, at the rim, around the nucleus, granular; nuclei darker or brighter."""
    depth = _depth(cells)
    bright = _amplitudes(rng, len(grazed) - 1)
    bright[grazed] *= rng.uniform(0.25, 0.9, grazed.sum())
    around = np.exp(-ndi.distance_transform_edt(nuclei == 0) / rng.uniform(3, 10))
    image = np.zeros(cells.shape, np.float32)
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(4)
        stain = (
            np.ones_like(depth),
            np.clip(depth / rng.uniform(2, 14), 0, 1) ** rng.uniform(0.5, 1.5),
            rng.uniform(0.1, 0.5) + np.exp(-depth / rng.uniform(1, 4)),
            rng.uniform(0.1, 0.5) + around,
        )[kind]
        texture = _smooth(rng, len(cells), rng.uniform(0.6, 3))
        stain = stain * np.clip(1 + rng.uniform(0, 0.6) * texture, 0, None)
        if rng.random() < 0.25:
            stain = stain * (rng.uniform(0.2, 0.7) + np.clip(texture - rng.uniform(0.3, 1.2), 0, None))
        inside = rng.uniform(0, 0.6) if rng.random() < 0.5 else rng.uniform(0.8, 1.8)
        image += stain * np.where(nuclei > 0, inside, 1)
    return (image / (np.percentile(image[cells > 0], 80) + 1e-6) if cells.any() else image) * bright[cells]


def _stain_nucleus(rng: np.random.Generator, nuclei: np.ndarray) -> np.ndarray:
    bright = _amplitudes(rng, int(nuclei.max()))
    texture = _smooth(rng, len(nuclei), rng.uniform(0.7, 2.5))
    image = np.clip(1 + rng.uniform(0, 0.45) * texture, 0.1, None)
    if rng.random() < 0.3:
        image += rng.uniform(0.5, 2) * np.clip(texture - 1.3, 0, None)
    return image * np.clip(_depth(nuclei) / rng.uniform(1, 6), 0.3, 1) * bright[nuclei]


def _ghosts(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Light of cells above and below the plane: wide faint blobs that are no objects."""
    ghosts = np.zeros((2, size, size), np.float32)
    for y, x in rng.integers(0, size, (rng.integers(0, 12) if rng.random() < 0.5 else 0, 2)):
        ghosts[:, y, x] += rng.uniform(0, 0.3, 2) * np.array([900, 300])
    return tuple(
        ndi.gaussian_filter(g, s) for g, s in zip(ghosts, (rng.uniform(6, 14), rng.uniform(4, 9)), strict=True)
    )


def _haze(rng: np.random.Generator, size: int, likely: float, most: float) -> np.ndarray:
    """What lies between cells: a gradient, granular background, fibres and debris."""
    y, x = np.mgrid[-1 : 1 : complex(size), -1 : 1 : complex(size)].astype(np.float32)
    haze = rng.uniform(0, 0.3) * (1 + (y * rng.uniform(-1, 1) + x * rng.uniform(-1, 1)) / 2)
    if rng.random() < likely:
        grains = _smooth(rng, size, float(np.exp(rng.uniform(-0.5, 1.6))))
        haze = haze + rng.uniform(0.05, most) * np.clip(grains + rng.uniform(-0.8, 1), 0, None) / 2
    if rng.random() < 0.4:
        specks = np.zeros((size, size), np.float32)
        for _ in range(rng.integers(1, 8)):
            specks[tuple(rng.integers(0, size, 2))] = rng.uniform(2, 40)
        haze = haze + ndi.gaussian_filter(specks, rng.uniform(0.5, 2))
    if rng.random() < 0.25:
        ridges = np.exp(-((_smooth(rng, size, rng.uniform(5, 15)) / rng.uniform(0.03, 0.08)) ** 2))
        haze = haze + rng.uniform(0.05, 0.35) * ridges * (_smooth(rng, size, 12) > 0)
    return haze.astype(np.float32)


def _camera(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Blur, uneven illumination, photons and read-out noise."""
    size = len(image)
    image = ndi.gaussian_filter(image, rng.uniform(0.3, 1.8))
    y, x = np.mgrid[-1 : 1 : complex(size), -1 : 1 : complex(size)]
    uneven = 1 - rng.uniform(0, 0.35) * ((y - rng.uniform(-1, 1)) ** 2 + (x - rng.uniform(-1, 1)) ** 2) / 2
    photons = 10 ** rng.uniform(1.0, 3.3)
    counts = rng.poisson(np.clip(image * uneven, 0, None) * photons).astype(np.float32)
    return counts + rng.normal(0, 10 ** rng.uniform(-1, 1), image.shape).astype(np.float32)
