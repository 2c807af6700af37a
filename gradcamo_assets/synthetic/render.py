"""Render a synthetic field: stains, the signature of a treatment, optics and camera.

A class shows as granules in the cytoplasm, which grow and move from one stain to the next with increasing dose. The
same function paints granules into any region: cells, background or bystanders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy
from numpy.typing import NDArray

from gradcamo_assets.synthetic.anatomy import Anatomy, grow_cells
from gradcamo_assets.synthetic.design import SyntheticPlate, treatment_columns

_Volume = NDArray[np.float32]
_CYTOPLASMIC = ("ER", "RNA", "AGP", "Mito")
_GRANULE_PHOTONS = 1400.0
"""Photons at the peak of a granule that is in a single stain."""
_BACKGROUND_STRENGTH = 0.55
"""Strength of granules outside cells relative to those inside."""
_GLOW_PHOTONS = 200.0
"""Photons of the glow around cells, for plates with ``background_shift``."""
_OFFSET, _READ_NOISE = 100.0, 4.0


@dataclass(frozen=True)
class SyntheticField:
    """A rendered field and its ground truth.

    Attributes:
        image: (C, Z, Y, X) uint16.
        cells, nuclei: (Z, Y, X) uint32; a cell and its nucleus have the same label.
        table: one row a cell, as in the label table of the plate.
    """

    image: NDArray[np.uint16]
    cells: NDArray[np.uint32]
    nuclei: NDArray[np.uint32]
    table: pl.DataFrame


class Signature(NamedTuple):
    """Appearance of granules: ``size``, their standard deviation in pixels; ``balance``, the share of each stain."""

    size: float
    balance: dict[str, float]


def signature(level: float | None, stains: tuple[str, ...]) -> Signature:
    """Granules of a phenotype ``level`` from 0 (control) to 1 (top dose), or neutral ones for None.

    Each cytoplasmic stain dominates at one level. Shares sum to 1 at every level, so a higher dose moves and coarsens
    the texture but does not brighten the image.
    """
    carriers = [stain for stain in stains if stain in _CYTOPLASMIC]
    peaks = np.linspace(0, 1, len(carriers))
    if level is None:
        return Signature(1.3, dict.fromkeys(carriers, 1 / len(carriers)))
    share = np.exp(-0.5 * ((level - peaks) / 0.2) ** 2)
    return Signature(0.85 + 1.15 * level, dict(zip(carriers, share / share.sum(), strict=True)))


def render_field(config: SyntheticPlate, well_index: int, site: int) -> SyntheticField:
    """Render the field ``site`` (1-based) of the well ``well_index`` (0-based). Fields are independent."""
    rng = np.random.default_rng([config.seed, well_index, site])
    count = max(1, config.cells + int(rng.integers(-1, 2) * (config.cells > 4)))
    anatomy = grow_cells(config.shape, count, rng, in_pairs=config.shortcut == "neighbour")
    treatments = [config.layout[well_index]] * len(anatomy.partner)
    if config.labels == "cell":
        order = np.arange(len(treatments)) + rng.integers(len(config.treatments))
        treatments = [config.treatments[k] for k in rng.permutation(order % len(config.treatments))]

    stains = _paint_cells(config, anatomy, rng)
    levels = [t.level for t in treatments]
    for level, region in _granule_regions(config, anatomy, levels):
        _paint_granules(stains, signature(level, config.stains), region, rng)
    if config.background_shift is not None:
        _paint_glow(stains, config, anatomy, levels, config.background_shift)
    _paint_debris(stains, anatomy.cells, rng)

    table = pl.DataFrame(
        {
            "Metadata_Well": [config.well_names[well_index]] * len(treatments),
            "Metadata_Site": np.full(len(treatments), site, np.int32),
            "label": np.arange(1, len(treatments) + 1, dtype=np.int32),
            "kind": ["bystander" if partner else "target" for partner in anatomy.partner],
            **treatment_columns(treatments),
        },
        schema_overrides={"Metadata_Dose": pl.Float64},
    )
    return SyntheticField(_simulate_camera(stains, rng), anatomy.cells, anatomy.nuclei, table)


def _granule_regions(
    config: SyntheticPlate, anatomy: Anatomy, levels: list[float]
) -> list[tuple[float | None, _Volume]]:
    """(level, weight of every voxel) of each texture in the field."""
    cell_levels: list[float | None] = [*levels]
    if config.shortcut != "none" and config.background_shift is None:
        bystanders = anatomy.partner & (config.shortcut == "neighbour")
        cell_levels = [level if is_bystander else None for level, is_bystander in zip(levels, bystanders, strict=True)]
    cytoplasm = ((anatomy.cells > 0) & (anatomy.nuclei == 0)).astype(np.float32)
    regions = _split_by_level(cell_levels, anatomy.cells, cytoplasm)
    if config.shortcut == "background" and config.background_shift is None:
        regions += _background_regions(anatomy, levels, _BACKGROUND_STRENGTH)
    return regions


def _background_regions(
    anatomy: Anatomy, levels: Sequence[float], strength: float
) -> list[tuple[float | None, _Volume]]:
    """Regions outside all cells, each voxel with the level of the nearest cell."""
    outside = anatomy.cells == 0
    nearest = scipy.ndimage.distance_transform_edt(
        outside, sampling=(2, 1, 1), return_distances=False, return_indices=True
    )
    return _split_by_level(levels, anatomy.cells[tuple(nearest)], strength * outside.astype(np.float32))


def _split_by_level(
    levels: Sequence[float | None], owner: NDArray[np.uint32], weight: _Volume
) -> list[tuple[float | None, _Volume]]:
    """Split ``weight`` by the level of the cell that owns each voxel."""
    distinct = list(dict.fromkeys(levels))
    number = np.array([-1, *(distinct.index(level) for level in levels)])[owner]
    return [(level, weight * (number == k)) for k, level in enumerate(distinct)]


def _smooth_noise(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> _Volume:
    """Noise with mean 0 and standard deviation 1, smoothed over ``size`` pixels (voxels are twice as high as wide)."""
    white = rng.standard_normal(shape, np.float32)
    smooth = scipy.ndimage.gaussian_filter(white, (size / 2, size, size), mode="wrap", truncate=3.0)
    return (smooth - smooth.mean()) / smooth.std()


def _paint_granules(
    stains: dict[str, _Volume], appearance: Signature, weight: _Volume, rng: np.random.Generator
) -> None:
    """Add granules to each stain according to its share, where ``weight`` is above 0."""
    grain = np.clip(_smooth_noise(weight.shape, appearance.size, rng) - 0.7, 0, 2.0) / 1.3
    for k, (stain, share) in enumerate(appearance.balance.items()):
        # All stains use the same noise, shifted so that their granules lie in different places.
        shifted = np.roll(grain, (k * 5, k * 37, k * 53), axis=(0, 1, 2))
        stains[stain] += np.float32(_GRANULE_PHOTONS * share) * shifted * weight


def _paint_glow(
    stains: dict[str, _Volume], config: SyntheticPlate, anatomy: Anatomy, levels: Sequence[float], shift: int
) -> None:
    """Add an even glow around cells, in the stains of the class ``shift`` places after that of the nearest cell."""
    classes = [treatment.level for treatment in config.treatments]
    shifted_levels = [classes[(classes.index(level) + shift) % len(classes)] for level in levels]
    for level, region in _background_regions(anatomy, shifted_levels, _GLOW_PHOTONS):
        for stain, share in signature(level, config.stains).balance.items():
            stains[stain] += np.float32(share) * region


def _paint_cells(config: SyntheticPlate, anatomy: Anatomy, rng: np.random.Generator) -> dict[str, _Volume]:
    """Paint the appearance that all cells share, treated or not, in photons."""
    shape, cells, depth = config.shape, anatomy.cells, anatomy.depth
    inside = cells > 0
    nucleus = (anatomy.nuclei > 0).astype(np.float32)
    cytoplasm = inside - nucleus
    fine, coarse = _smooth_noise(shape, 1.0, rng), _smooth_noise(shape, 1.8, rng)
    reticulum = np.exp(-((fine / 0.6) ** 2))
    filaments = np.exp(-((coarse / 0.3) ** 2))
    rim = np.exp(-(((1 - depth) / 0.16) ** 2)) * inside
    nucleoli = nucleus * (anatomy.nucleus_depth < 0.75) * np.clip(coarse - 0.8, 0, 1)
    brightness = rng.lognormal(0, 0.18, len(anatomy.partner) + 1).astype(np.float32)

    painted = {
        "DNA": nucleus * (1000 + 180 * fine) * (1.15 - 0.3 * np.minimum(anatomy.nucleus_depth, 1)) + 20 * cytoplasm,
        "ER": cytoplasm * (140 + 320 * reticulum) * (1.3 - 0.6 * depth) + 60 * nucleus,
        "RNA": cytoplasm * 300 * (1.2 - 0.5 * depth) + 130 * nucleus + 900 * nucleoli,
        "AGP": 520 * rim + 130 * cytoplasm + 50 * nucleus,
        "Mito": cytoplasm * (40 + 520 * filaments) * (1.35 - 0.9 * depth) + 20 * nucleus,
        "Brightfield": 2400 - 700 * rim + 300 * (1 - depth) * inside + 60 * fine * inside,
    }
    for stain in painted:
        if stain != "Brightfield":
            stain_brightness = brightness * rng.lognormal(0, 0.12, len(brightness)).astype(np.float32)
            painted[stain] *= stain_brightness[cells]
    return {stain: painted[stain].astype(np.float32) for stain in config.stains}


def _paint_debris(stains: dict[str, _Volume], cells: NDArray[np.uint32], rng: np.random.Generator) -> None:
    """Add a few bright specks between the cells, in one or two stains."""
    background = np.flatnonzero(cells == 0)
    if not len(background):
        return
    names = [stain for stain in stains if stain != "Brightfield"]
    for voxel in rng.choice(background, int(rng.integers(2, 6))):
        z, y, x = np.unravel_index(voxel, cells.shape)
        for stain in rng.choice(names, int(rng.integers(1, 3)), replace=False):
            stains[stain][z, y : y + 2, x : x + 2] += rng.uniform(1500, 4000)


def _simulate_camera(stains: dict[str, _Volume], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Apply blur that increases with z, uneven illumination, shot noise, read noise and offset."""
    depth, height, width = next(iter(stains.values())).shape
    centre = rng.uniform(0.35, 0.65, 2)
    y, x = np.linspace(0, 1, height)[:, None] - centre[0], np.linspace(0, 1, width)[None] - centre[1]
    illumination = (1.05 - 0.4 * (y**2 + x**2)).astype(np.float32)
    image = np.empty((len(stains), depth, height, width), np.uint16)
    for channel, painted in enumerate(stains.values()):
        light = painted + np.float32(25)
        if depth > 1:
            light = scipy.ndimage.gaussian_filter1d(light, 0.5, axis=0, mode="nearest", truncate=3.0)
        for z in range(depth):
            sigma = 0.55 + 0.6 * z / max(depth - 1, 1)
            light[z] = scipy.ndimage.gaussian_filter(light[z], sigma, mode="nearest", truncate=3.0)
        light *= illumination
        # At these photon counts Gaussian noise approximates shot noise well, and it is ten times as fast.
        noise = rng.standard_normal(light.shape, np.float32) * np.sqrt(light + np.float32(_READ_NOISE**2))
        image[channel] = np.clip(np.rint(light + noise + np.float32(_OFFSET)), 0, 65535)
    return image
