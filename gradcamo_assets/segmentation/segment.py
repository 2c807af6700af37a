"""Segments a field: two networks, Cellpose's tiling and dynamics on every slice, stitching along z; or in 3D.

Here: the configuration, and the run over a stack. Not here: loading networks (``engines``), what becomes of channels
(``intensities``), stitching and confidence (``masks``).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.common.errors import SegmentationError
from gradcamo_assets.segmentation import intensities
from gradcamo_assets.segmentation.engines import (
    BUILT_IN,
    REMEDY,
    SHIPPED,
    file_digest,
    find_weights,
    is_known,
    load_engines,
    state_digest,
)
from gradcamo_assets.segmentation.masks import Masks, confidence_of, object_quality, stitched, without_specks

__all__ = ["BUILT_IN", "DIAMETER", "MODES", "NOMINAL_WIDTH", "SHIPPED", "Segmenter", "SegmenterConfig"]

MODES = ("stitch", "3d")

NOMINAL_WIDTH = 15.0
"""Width of a cell in micrometres that is assumed where no diameter is set."""

DIAMETER = 30.0
"""Width of a cell, in pixels, at which both shipped sets of weights work best."""

_STEPS = 60
_PIXELS = 4_000_000
_TILE, _TILE_3D = 512, 160
_FEWEST_SLICES = 5


@dataclass(frozen=True)
class SegmenterConfig:
    """How fields are segmented.

    Args:
        network: ``compact`` (ships with the package); one of Cellpose's (``BUILT_IN``), from Cellpose's own cache; a
            path: a folder with ``cells.safetensors`` and ``nuclei.safetensors`` that ``train`` wrote, or a file of
            Cellpose weights; or ``module:function``, where ``function(kind)``, for ``cells`` and for ``nuclei``,
            returns a torch module that turns (B, 3, Y, X) float32 into flows in y and x times 5 and the logit
            (B, 3, Y, X), and a style (B, 256). Inputs: cytoplasm, nucleus, zeros for cells; nucleus, zeros, zeros for
            nuclei. Sides are 256 or 384. The module is imported, so name only code you trust.
        mode: ``stitch``: slice by slice, stitched along z. ``3d``: Cellpose's flows in three planes and dynamics in 3D
            (``do_3D``), for stacks of 5 slices or more; the field is held whole, at about 110 bytes a voxel of the
            resampled stack. A single slice is segmented in 2D in both.
        anisotropy: step in z over pixel size, for ``3d``; None: from the voxel size, 1 where that is unknown.
        nucleus: name of the DNA stain; None finds it by name.
        cytoplasm: names of the stains that fill cells; None takes every other fluorescence channel. Without any (also
            ``()``), cells are segmented from the nucleus stain alone.
        diameter: width of a cell in pixels. None: from the voxel size, taking cells as 15 um wide, where that gives 8
            to 200 pixels; the network's own scale (30 pixels) where the voxel size is unknown (1, 1, 1) or implausible,
            or the two differ by less than a third.
        stitch_threshold: least intersection over union that joins objects of neighbouring slices.
        flow_threshold: highest flow error of an object; 0 keeps all. Cellpose does not use it in ``3d``.
        cellprob_threshold: least logit of a pixel inside an object; lower gives larger and more objects.
        min_volume: fewest voxels of a cell; of a nucleus a quarter of that.

    Raises:
        SegmentationError: for a value that cannot be meant.
    """

    network: str = "compact"
    mode: str = "stitch"
    anisotropy: float | None = None
    nucleus: str | None = None
    cytoplasm: tuple[str, ...] | None = None
    diameter: float | None = None
    stitch_threshold: float = 0.25
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_volume: int = 100

    def __post_init__(self) -> None:
        stains = self.cytoplasm is None or not isinstance(self.cytoplasm, str)
        flat = self.anisotropy is None or 0.1 <= self.anisotropy <= 50
        for name, right, remedy in (
            ("network", is_known(self.network), REMEDY),
            ("mode", self.mode in MODES, f"Use one of {', '.join(MODES)}"),
            ("anisotropy", flat, "Give a number from 0.1 to 50, or None"),
            ("cytoplasm", stains, "Give a tuple of channel names, or None for all that are not the nucleus"),
            ("diameter", self.diameter is None or 4 <= self.diameter <= 2000, "Give 4 to 2000 pixels, or None"),
            ("stitch_threshold", 0 < self.stitch_threshold <= 1, "Give a number above 0, at most 1"),
            ("flow_threshold", 0 <= self.flow_threshold <= 4, "Give a number from 0 to 4"),
            ("cellprob_threshold", -20 <= self.cellprob_threshold <= 20, "Give a number from -20 to 20"),
            ("min_volume", self.min_volume >= 0, "Give a number of voxels"),
        ):
            if not right:
                raise SegmentationError(f"{name} cannot be {getattr(self, name)!r}", f"{remedy}.")


class Segmenter:
    """Segments fields with one configuration; networks are loaded on first use, to the GPU where there is one.

    On a CPU the compact network runs on one thread (``torch.set_num_threads``, put back afterwards) and any other on
    as many as torch was given, so that several processes may each segment a field.

    Raises:
        SegmentationError: where the configured weights are absent, or a registered network cannot be imported.
    """

    def __init__(self, config: SegmenterConfig | None = None):
        self.config = config or SegmenterConfig()
        self._weights = find_weights(self.config.network)

    @cached_property
    def version(self) -> dict[str, Any]:
        """What determines the masks: Cellpose's version, the weights' digests, the parameters. JSON values only."""
        digests = {which: file_digest(path) for which, path in self._weights.items()} or {
            which: state_digest(engine.net) for which, engine in self._engines.items()
        }
        return {
            **asdict(self.config),
            "cytoplasm": None if self.config.cytoplasm is None else list(self.config.cytoplasm),
            "network": Path(self.config.network).name,
            "cellpose": importlib.metadata.version("cellpose"),
            "weights": digests,
            "method": 2,
        }

    def segment(
        self, image: np.ndarray, channels: Sequence[str], voxel_size: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> Masks:
        """Masks of one field.

        Args:
            image: (C, Z, Y, X) of numbers; Z may be 1.
            channels: names of the C channels.
            voxel_size: (z, y, x) in micrometres; (1, 1, 1) means unknown.

        Raises:
            SegmentationError: for a shape that does not fit, channels that cannot be told, values that are no numbers.
        """
        if image.ndim != 4 or len(channels) != image.shape[0] or not image.size:
            raise SegmentationError(
                f"an image of shape {image.shape} with {len(channels)} channel names cannot be segmented",
                "Give an image (C, Z, Y, X) and one name for each of its C channels.",
            )
        nuclear, stains = intensities.find_channels(channels, self.config.nucleus, self.config.cytoplasm)
        if self.config.mode == "3d" and 1 < image.shape[1] < _FEWEST_SLICES:
            raise SegmentationError(
                f"{image.shape[1]} slices are too few for the mode '3d'", "Set mode to 'stitch' for thin stacks."
            )
        # Half precision: whole stacks are what takes the memory, and their values lie between -0.5 and 3.
        nucleus = intensities.combined([image[nuclear]]).astype(np.float16)
        cytoplasm = np.zeros_like(nucleus)
        if stains:
            cytoplasm = intensities.combined([image[index] for index in stains]).astype(np.float16)
        scales = self._diameter(voxel_size), self._anisotropy(voxel_size)
        cells, confidence = self._objects("cells", [cytoplasm, nucleus], *scales, self.config.min_volume)
        del cytoplasm
        nuclei, _ = self._objects("nuclei", [nucleus], *scales, self.config.min_volume // 4)
        return Masks(cells, nuclei, confidence)

    def _anisotropy(self, voxel_size: Sequence[float]) -> float:
        if self.config.anisotropy is not None:
            return self.config.anisotropy
        found = float(voxel_size[0]) / max(float(np.mean(voxel_size[-2:])), 1e-9)
        return found if 0.1 <= found <= 50 else 1.0

    def _diameter(self, voxel_size: Sequence[float]) -> float:
        if self.config.diameter is not None:
            return self.config.diameter
        guessed = NOMINAL_WIDTH / max(float(np.mean(voxel_size[-2:])), 1e-9)
        implausible = tuple(voxel_size) == (1.0, 1.0, 1.0) or not 8 <= guessed <= 200
        return DIAMETER if implausible or 0.75 <= guessed / DIAMETER <= 4 / 3 else guessed

    def _objects(
        self, which: str, inputs: list[np.ndarray], diameter: float, anisotropy: float, least: int
    ) -> tuple[np.ndarray, pl.DataFrame]:
        """Labels (Z, Y, X) uint32 of one kind, from its input images, and their confidence; in batches of slices."""
        depth, height, width = inputs[0].shape
        whole = self.config.mode == "3d" and depth > 1
        batch = depth if whole else max(1, _PIXELS // (height * width))
        batches: list[np.ndarray] = []
        quality: list[np.ndarray] = []
        for start in range(0, depth, batch):
            parts = [part[start : start + batch].astype(np.float32) for part in inputs]
            if max(float(part.max()) for part in parts) > 0:
                slices = np.stack((*parts, *[np.zeros_like(parts[0])] * (3 - len(parts))), axis=1)
                objects, errors = self._run(which, slices, diameter, anisotropy if whole else None)
            else:
                objects = np.zeros(parts[0].shape, np.uint16)
                errors = [np.zeros((3, 1))] * (1 if whole else len(objects))
            batches.append(objects)
            quality += errors
        found = np.concatenate(batches)
        threshold = self.config.stitch_threshold
        labels = without_specks(found if whole else stitched(found, threshold), least)
        return labels, confidence_of(found, labels, quality, threshold)

    def _run(
        self, which: str, slices: np.ndarray, diameter: float, anisotropy: float | None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Objects in slices (Z, 3, Y, X), of the three channels that Cellpose wants, and their ``object_quality``.

        Each slice by itself, numbered anew; with ``anisotropy`` all as one stack.
        """
        import torch

        engine, (depth, _, height, width) = self._engines[which], slices.shape
        compact, whole = engine.backbone == "compact", anisotropy is not None
        scaled = DIAMETER / diameter * max(height, width)
        threads = torch.get_num_threads()
        if compact and engine.device.type == "cpu":
            # The dynamics are hundreds of small steps, which many threads on busy cores slow tenfold.
            torch.set_num_threads(1)
        try:
            masks, (_, flows, logits, *_), _ = engine.eval(
                slices,
                channel_axis=1,
                normalize=False,
                diameter=None if diameter == DIAMETER else diameter,
                flow_threshold=0.0 if compact else self.config.flow_threshold,
                cellprob_threshold=self.config.cellprob_threshold,
                min_size=-1,
                niter=max(20, round(_STEPS * diameter / DIAMETER)) if compact else None,
                # One tile at a time on a CPU: the activations of a tile take 100 MB.
                batch_size=1 if compact and engine.device.type == "cpu" else 8,
                # Cellpose pads an image by 16 pixels: a tile of just that size makes one tile of the whole slice.
                bsize=int(min(_TILE_3D if whole else _TILE, 16 * np.ceil(scaled / 16) + 16)) if compact else None,
                **({"z_axis": 0, "do_3D": True, "anisotropy": anisotropy} if whole else {}),
            )
        finally:
            torch.set_num_threads(threads)
        found = masks.reshape(depth, height, width)
        flows, logits = flows.reshape(-1, depth, height, width), logits.reshape(depth, height, width)
        pieces: list[np.ndarray] = [found] if whole else list(found)
        if whole:
            # Each component is the sum of two planes' flows, each 5 where the network is sure; the logit that of three.
            length = np.maximum(np.sqrt((flows**2).sum(axis=0)), 5)
            quality = [object_quality(found, flows / length, logits / 3)]
        else:
            quality = [object_quality(plane, flows[:, z] / 5, logits[z]) for z, plane in enumerate(found)]
        if compact and self.config.flow_threshold > 0:
            for piece, (size, _, error) in zip(pieces, quality, strict=True):
                piece[(error > self.config.flow_threshold * size)[piece]] = 0
        return found, quality

    @cached_property
    def _engines(self) -> dict[str, Any]:
        return load_engines(self.config.network, self._weights)
