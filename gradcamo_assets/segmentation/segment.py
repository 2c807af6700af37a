"""Segments a field: two networks, Cellpose's tiling and dynamics on every slice, stitching along z; or in 3D.

Not here: its settings (``settings``), loading networks (``engines``), what becomes of channels (``intensities``), three
dimensions at once (``volumes``), stitching and confidence (``masks``).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.segmentation import intensities
from gradcamo_assets.segmentation.engines import file_digest, find_weights, load_engines, state_digest
from gradcamo_assets.segmentation.masks import Masks, confidence_of, object_quality, stitched, without_specks
from gradcamo_assets.segmentation.settings import DIAMETER, NOMINAL_WIDTH, SegmenterConfig
from gradcamo_assets.segmentation.volumes import at_size, blocks, paste, volume_objects

# Steps of the dynamics, of a pixel each in 2D and two in 3D: objects are 30 pixels wide.
_STEPS, _STEPS_3D = 60, 40
# So much is held at once: of slices, and of a volume whose voxels were made cubes (about 110 bytes each).
_PIXELS, _VOXELS = 4_000_000, 12_000_000
# Widths of a cell by which blocks overlap.
_HALO = 1.5
_TILE = 512
_FEWEST_SLICES = 5
# Step between slices in widths of a cell.
_COARSEST = 1 / 6


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
        config, depth = self.config, image.shape[1] if image.ndim == 4 else 0
        if len(channels) != image.shape[0] or not depth or not image.size:
            problem = f"an image of shape {image.shape} with {len(channels)} channel names cannot be segmented"
            raise SegmentationError(problem, "Give an image (C, Z, Y, X) and one name for each of its C channels.")
        nuclear, stains = intensities.find_channels(channels, config.nucleus, config.cytoplasm)
        if config.mode == "3d" and 1 < depth < _FEWEST_SLICES:
            problem = f"{depth} slices are too few for the mode '3d'"
            raise SegmentationError(problem, "Set mode to 'stitch' for thin stacks.")
        # Half precision: whole stacks are what takes the memory, and their values lie between -0.5 and 3.
        nucleus = intensities.combined([image[nuclear]]).astype(np.float16)
        cytoplasm = np.zeros_like(nucleus)
        if stains:
            cytoplasm = intensities.combined([image[index] for index in stains]).astype(np.float16)
        diameter, anisotropy = self._diameter(voxel_size), self._anisotropy(voxel_size)
        known = config.anisotropy is not None or tuple(voxel_size) != (1.0, 1.0, 1.0)
        whole = self._is_whole(depth, known, anisotropy / diameter)
        scales = diameter, anisotropy if whole else None
        cells, confidence = self._objects("cells", [cytoplasm, nucleus], *scales, config.min_volume)
        del cytoplasm
        nuclei, _ = self._objects("nuclei", [nucleus], *scales, config.min_volume // 4)
        return Masks(cells, nuclei, confidence)

    def _is_whole(self, depth: int, known: bool, step: float) -> bool:
        """Whether a stack is segmented as one; ``step``: between slices, in widths of a cell."""
        if self.config.mode == "auto":
            return self._is_compact and depth >= _FEWEST_SLICES and known and step <= _COARSEST
        return self.config.mode == "3d" and depth > 1

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
        self, which: str, inputs: list[np.ndarray], diameter: float, anisotropy: float | None, least: int
    ) -> tuple[np.ndarray, pl.DataFrame]:
        """Labels (Z, Y, X) uint32 of one kind, from its input images (Z, Y, X), and their confidence.

        Stitched from slices where ``anisotropy`` is None.
        """
        threshold = self.config.stitch_threshold
        if anisotropy is not None:
            found, quality = self._in_blocks(which, inputs, diameter, anisotropy)
            labels = without_specks(found, least)
        else:
            found, quality = self._in_slices(which, inputs, diameter)
            labels = without_specks(stitched(found, threshold), least)
        return labels, confidence_of(found, labels, quality, threshold)

    def _in_slices(self, which: str, inputs: list[np.ndarray], diameter: float) -> tuple[np.ndarray, list[np.ndarray]]:
        """Objects of every slice, numbered anew in each, and the ``object_quality`` of each; in batches of slices."""
        depth, height, width = inputs[0].shape
        batch = max(1, _PIXELS // (height * width))
        found: list[np.ndarray] = []
        quality: list[np.ndarray] = []
        for start in range(0, depth, batch):
            objects, flows, logits = self._run(which, [part[start : start + batch] for part in inputs], diameter)
            quality += [object_quality(plane, flows[:, z] / 5, logits[z]) for z, plane in enumerate(objects)]
            found.append(objects)
        for plane, sums in zip(planes := np.concatenate(found), quality, strict=True):
            self._drop_doubtful(plane, sums)
        return planes, quality

    def _in_blocks(
        self, which: str, inputs: list[np.ndarray], diameter: float, anisotropy: float
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Objects (Z, Y, X) of the whole stack and their ``object_quality``; in blocks of the plane that overlap."""
        depth, height, width = inputs[0].shape
        scale = DIAMETER / diameter
        side = int((_VOXELS / (depth * anisotropy * scale**3)) ** 0.5)
        found = np.zeros((depth, height, width), np.uint32)
        sums = [np.zeros((3, 1))]
        for outer, inner in blocks((height, width), side, round(_HALO * diameter)):
            objects, quality = self._volume(which, [part[:, *outer] for part in inputs], scale, anisotropy)
            sums.append(quality[:, paste(found[:, *outer], objects, inner, sum(part.shape[1] for part in sums))])
        return found, [np.concatenate(sums, axis=1)]

    def _volume(
        self, which: str, inputs: list[np.ndarray], scale: float, anisotropy: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Objects (Z, Y, X) of one block and their ``object_quality``."""
        if not self._is_compact:
            objects, flows, logits = self._run(which, inputs, DIAMETER / scale, anisotropy)
            length = np.maximum(np.sqrt((flows**2).sum(axis=0)), 5)
            return objects, object_quality(objects, flows / length, logits / 3)
        stack = np.stack(inputs).astype(np.float32)
        if stack.max() <= 0:
            return np.zeros(stack.shape[1:], np.uint16), np.zeros((3, 1))
        size = [max(1, round(n * scale * k)) for n, k in zip(stack.shape[1:], (anisotropy, 1, 1), strict=True)]
        with self._one_thread():
            objects, flows, logits = volume_objects(
                self._engines[which].net, stack, tuple(size), _STEPS_3D, 3 * self.config.cellprob_threshold
            )
        quality = object_quality(objects, flows, logits)
        self._drop_doubtful(objects, quality)
        return at_size(objects, stack.shape[1:]), quality

    def _drop_doubtful(self, objects: np.ndarray, quality: np.ndarray) -> None:
        """Clear objects whose flow error is too high, in place; Cellpose's own networks did so in their way."""
        size, _, error = quality
        if self._is_compact and self.config.flow_threshold > 0:
            objects[(error > self.config.flow_threshold * size)[objects]] = 0

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        """One thread for the compact network on a CPU, and for the dynamics: hundreds of small steps, which many
        threads on busy cores slow tenfold."""
        import torch

        threads = torch.get_num_threads()
        if self._is_compact and not torch.cuda.is_available():
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @property
    def _is_compact(self) -> bool:
        return all(engine.backbone == "compact" for engine in self._engines.values())

    def _run(
        self, which: str, inputs: list[np.ndarray], diameter: float, anisotropy: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cellpose's objects, flows and logits, from input images (Z, Y, X).

        Each slice by itself, its objects (Z, Y, X) numbered anew, flows (2, Z, Y, X); with ``anisotropy`` all as one
        stack, with flows (3, Z, Y, X). Logits (Z, Y, X).
        """
        parts = [part.astype(np.float32) for part in inputs]
        shape, whole = parts[0].shape, anisotropy is not None
        if max(float(part.max()) for part in parts) <= 0:
            nothing = np.zeros((2 + whole, *shape), np.float32)
            return np.zeros(shape, np.uint16), nothing, nothing[0]
        engine, compact = self._engines[which], self._is_compact
        slices = np.stack((*parts, *[np.zeros_like(parts[0])] * (3 - len(parts))), axis=1)
        scaled = DIAMETER / diameter * max(shape[1:])
        with self._one_thread():
            masks, (_, flows, logits, *_), _ = engine.eval(
                slices, channel_axis=1, normalize=False, min_size=-1,
                diameter=None if diameter == DIAMETER else diameter,
                flow_threshold=0.0 if compact else self.config.flow_threshold,
                cellprob_threshold=self.config.cellprob_threshold,
                niter=max(20, round(_STEPS * diameter / DIAMETER)) if compact else None,
                # One tile at a time on a CPU: the activations of a tile take 100 MB.
                batch_size=1 if compact and engine.device.type == "cpu" else 8,
                # Cellpose pads an image by 16 pixels: a tile of just that size makes one tile of the whole slice.
                bsize=int(min(_TILE, 16 * np.ceil(scaled / 16) + 16)) if compact else None,
                **({"z_axis": 0, "do_3D": True, "anisotropy": anisotropy} if whole else {}),
            )  # fmt: skip
        return masks.reshape(shape), flows.reshape(-1, *shape), logits.reshape(shape)

    @cached_property
    def _engines(self) -> dict[str, Any]:
        return load_engines(self.config.network, self._weights)
