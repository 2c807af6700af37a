"""Segment fields with two networks: slice by slice with Cellpose's dynamics and stitching along z, or in 3D."""

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
from gradcamo_assets.segmentation.masks import (
    Masks,
    compute_confidence,
    measure_object_quality,
    remove_micronuclei,
    remove_small_objects,
    stitch_slices,
)
from gradcamo_assets.segmentation.settings import DIAMETER, NOMINAL_WIDTH, SegmenterConfig
from gradcamo_assets.segmentation.volumes import iter_blocks, paste_objects, resize_labels, segment_volume

# Steps of the dynamics: of one pixel in 2D and of two in 3D, for objects of 30 pixels.
_STEPS, _STEPS_3D = 60, 20
# Limits of memory: pixels of a batch of slices, and voxels of a block with cubic voxels (about 110 bytes each).
_MAX_BATCH_PIXELS, _MAX_BLOCK_VOXELS = 4_000_000, 12_000_000
# Overlap of blocks in widths of a cell.
_HALO = 1.5
_TILE = 512
_MIN_SLICES_3D = 5
# Largest z step for 3D in mode auto, in widths of a cell.
_MAX_Z_STEP = 1 / 6


class Segmenter:
    """Segments fields with one configuration. Networks are loaded on first use, to the GPU if there is one.

    On a CPU that computes in bfloat16 the compact network does so, which may change single voxels at edges of objects,
    as OpenVINO may, with which it runs on a CPU if that is installed.
    On a CPU the compact network runs on one thread (``torch.set_num_threads``, restored afterwards), so that several
    processes can segment a field each. Other networks use torch's number of threads.

    Raises:
        SegmentationError: the configured weights do not exist, or a registered network cannot be imported.
    """

    def __init__(self, config: SegmenterConfig | None = None):
        self.config = config or SegmenterConfig()
        self._weights = find_weights(self.config.network)

    @cached_property
    def version(self) -> dict[str, Any]:
        """Everything that determines the masks, as JSON: Cellpose's version, digests of weights, and parameters."""
        digests = {kind: file_digest(path) for kind, path in self._weights.items()} or {
            kind: state_digest(engine.net) for kind, engine in self._engines.items()
        }
        return {
            **asdict(self.config),
            "cytoplasm": None if self.config.cytoplasm is None else list(self.config.cytoplasm),
            "network": Path(self.config.network).name,
            "cellpose": importlib.metadata.version("cellpose"),
            "weights": digests,
            "method": 7,
        }

    @property
    def runtime(self) -> str:
        """What runs the networks: ``openvino`` or ``torch``."""
        networks = [engine.net for engine in self._engines.values()]
        return "openvino" if all(getattr(network, "compiled", None) for network in networks) else "torch"

    def segment(
        self, image: np.ndarray, channels: Sequence[str], voxel_size: Sequence[float | None] = (None, None, None)
    ) -> Masks:
        """Segment one field.

        Args:
            image: (C, Z, Y, X), numbers; Z may be 1.
            channels: names of the C channels.
            voxel_size: (z, y, x) in micrometres, None where unknown.

        Raises:
            SegmentationError: wrong shape, channels that cannot be identified, NaN or infinity in the image, or mode 3d
                without a known anisotropy.
        """
        config, depth = self.config, image.shape[1] if image.ndim == 4 else 0
        if len(channels) != image.shape[0] or not depth or not image.size:
            problem = f"an image of shape {image.shape} with {len(channels)} channel names cannot be segmented"
            raise SegmentationError(problem, "Give an image (C, Z, Y, X) and one name for each of its C channels.")
        nucleus_index, stains = intensities.find_channels(channels, config.nucleus, config.cytoplasm)
        if config.mode == "3d" and 1 < depth < _MIN_SLICES_3D:
            problem = f"the mode '3d' needs {_MIN_SLICES_3D} slices or more, the image has {depth}"
            raise SegmentationError(problem, "Set mode to 'stitch' for thin stacks.")
        if config.mode == "3d" and depth > 1 and config.anisotropy is None and None in voxel_size:
            problem = "the mode '3d' needs the ratio of z step to pixel size, and the voxel size is unknown"
            remedy = "Give voxel_size = [z, y, x] in the .toml file beside the plate, or anisotropy in [segmentation]."
            raise SegmentationError(problem, remedy)
        # Half precision saves memory; the values lie between -0.5 and 3.
        cytoplasm = nucleus = np.zeros(image.shape[1:], np.float16)
        if nucleus_index is not None:
            nucleus = intensities.combine_stains([image[nucleus_index]]).astype(np.float16)
        if stains:
            cytoplasm = intensities.combine_stains([image[index] for index in stains]).astype(np.float16)
        if nucleus_index is None:
            # The network was trained with a nucleus. It finds twice as many cells if the other stains stand in for it.
            nucleus = cytoplasm
        diameter, anisotropy = self._diameter(voxel_size), self._anisotropy(voxel_size)
        is_known = config.anisotropy is not None or (None not in voxel_size and not _is_placeholder(voxel_size))
        in_3d = self._is_3d(depth, is_known, anisotropy / diameter)
        scales = diameter, anisotropy if in_3d else None
        cells, confidence = self._segment_kind("cells", [cytoplasm, nucleus], *scales, config.min_volume)
        del cytoplasm
        if nucleus_index is None:
            return Masks(cells, None, confidence)
        nuclei, _ = self._segment_kind("nuclei", [nucleus], *scales, config.min_volume // 4)
        return Masks(cells, remove_micronuclei(nuclei), confidence)

    def _is_3d(self, depth: int, is_known: bool, z_step: float) -> bool:
        """Whether to segment a stack in 3D.

        Args:
            is_known: whether the anisotropy is known.
            z_step: in widths of a cell.
        """
        if self.config.mode == "auto":
            return self._is_compact and depth >= _MIN_SLICES_3D and is_known and z_step <= _MAX_Z_STEP
        return self.config.mode == "3d" and depth > 1

    def _anisotropy(self, voxel_size: Sequence[float | None]) -> float:
        if self.config.anisotropy is not None:
            return self.config.anisotropy
        z, y, x = voxel_size
        if z is None or y is None or x is None:
            return 1.0
        anisotropy = z / max((y + x) / 2, 1e-9)
        return anisotropy if 0.1 <= anisotropy <= 50 else 1.0

    def _diameter(self, voxel_size: Sequence[float | None]) -> float:
        if self.config.diameter is not None:
            return self.config.diameter
        _, y, x = voxel_size
        if y is None or x is None or _is_placeholder(voxel_size):
            return DIAMETER
        estimate = NOMINAL_WIDTH / max((y + x) / 2, 1e-9)
        return DIAMETER if not 8 <= estimate <= 200 or 0.75 <= estimate / DIAMETER <= 4 / 3 else estimate

    def _segment_kind(
        self, kind: str, inputs: list[np.ndarray], diameter: float, anisotropy: float | None, min_voxels: int
    ) -> tuple[np.ndarray, pl.DataFrame]:
        """Labels (Z, Y, X) uint32 of cells or nuclei from their input images (Z, Y, X), and their confidence.

        Without ``anisotropy`` slices are segmented one by one and stitched, else the stack in 3D.
        """
        threshold = self.config.stitch_threshold
        if anisotropy is not None:
            segmented, quality = self._segment_blocks(kind, inputs, diameter, anisotropy)
            labels = remove_small_objects(segmented, min_voxels)
        else:
            segmented, quality = self._segment_slices(kind, inputs, diameter)
            labels = remove_small_objects(stitch_slices(segmented, threshold), min_voxels)
        return labels, compute_confidence(segmented, labels, quality, threshold)

    def _segment_slices(
        self, kind: str, inputs: list[np.ndarray], diameter: float
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Objects of every slice, numbered from 1 in each, and their ``measure_object_quality``; in batches."""
        depth, height, width = inputs[0].shape
        batch = max(1, _MAX_BATCH_PIXELS // (height * width))
        batches: list[np.ndarray] = []
        quality: list[np.ndarray] = []
        for start in range(0, depth, batch):
            objects, flows, logits = self._run(kind, [part[start : start + batch] for part in inputs], diameter)
            quality += [measure_object_quality(plane, flows[:, z] / 5, logits[z]) for z, plane in enumerate(objects)]
            batches.append(objects)
        planes = np.concatenate(batches)
        for plane, sums in zip(planes, quality, strict=True):
            self._remove_uncertain_objects(plane, sums)
        return planes, quality

    def _segment_blocks(
        self, kind: str, inputs: list[np.ndarray], diameter: float, anisotropy: float
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Objects (Z, Y, X) of the whole stack and their ``measure_object_quality``, in overlapping blocks."""
        depth, height, width = inputs[0].shape
        scale = DIAMETER / diameter
        side = int((_MAX_BLOCK_VOXELS / (depth * anisotropy * scale**3)) ** 0.5)
        field = np.zeros((depth, height, width), np.uint32)
        sums = [np.zeros((3, 1))]
        for outer, inner in iter_blocks((height, width), side, round(_HALO * diameter)):
            objects, quality = self._segment_block(kind, [part[:, *outer] for part in inputs], scale, anisotropy)
            next_label = sum(part.shape[1] for part in sums)
            sums.append(quality[:, paste_objects(field[:, *outer], objects, inner, next_label)])
        return field, [np.concatenate(sums, axis=1)]

    def _segment_block(
        self, kind: str, inputs: list[np.ndarray], scale: float, anisotropy: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Objects (Z, Y, X) of one block and their ``measure_object_quality``."""
        if not self._is_compact:
            objects, flows, logits = self._run(kind, inputs, DIAMETER / scale, anisotropy)
            length = np.maximum(np.sqrt((flows**2).sum(axis=0)), 5)
            return objects, measure_object_quality(objects, flows / length, logits / 3)
        stack = np.stack(inputs).astype(np.float32)
        if stack.max() <= 0:
            return np.zeros(stack.shape[1:], np.uint16), np.zeros((3, 1))
        size = [max(1, round(n * scale * k)) for n, k in zip(stack.shape[1:], (anisotropy, 1, 1), strict=True)]
        with self._single_thread():
            objects, flows, logits = segment_volume(
                self._engines[kind].net, stack, tuple(size), _STEPS_3D, 3 * self.config.cellprob_threshold
            )
        quality = measure_object_quality(objects, flows, logits)
        self._remove_uncertain_objects(objects, quality)
        return resize_labels(objects, stack.shape[1:]), quality

    def _remove_uncertain_objects(self, objects: np.ndarray, quality: np.ndarray) -> None:
        """Clear objects with a high flow error in place. For its own networks, Cellpose has already done this."""
        size, _, error = quality
        if self._is_compact and self.config.flow_threshold > 0:
            objects[(error > self.config.flow_threshold * size)[objects]] = 0

    @contextmanager
    def _single_thread(self) -> Iterator[None]:
        """Use one thread for the compact network on a CPU and for the dynamics.

        These are hundreds of small steps, which many threads on busy cores slow down tenfold.
        """
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
        self, kind: str, inputs: list[np.ndarray], diameter: float, anisotropy: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run Cellpose on input images (Z, Y, X); return objects, flows and logits.

        Without ``anisotropy`` slices are independent: objects (Z, Y, X) are numbered from 1 in each slice, and flows
        are (2, Z, Y, X). With it the stack is segmented in 3D, and flows are (3, Z, Y, X). Logits are (Z, Y, X).
        """
        parts = [part.astype(np.float32) for part in inputs]
        shape, in_3d = parts[0].shape, anisotropy is not None
        if max(float(part.max()) for part in parts) <= 0:
            no_flows = np.zeros((2 + in_3d, *shape), np.float32)
            return np.zeros(shape, np.uint16), no_flows, no_flows[0]
        engine, compact = self._engines[kind], self._is_compact
        slices = np.stack((*parts, *[np.zeros_like(parts[0])] * (3 - len(parts))), axis=1)
        scaled_side = DIAMETER / diameter * max(shape[1:])
        with self._single_thread():
            masks, (_, flows, logits, *_), _ = engine.eval(
                slices, channel_axis=1, normalize=False, min_size=-1,
                diameter=None if diameter == DIAMETER else diameter,
                flow_threshold=0.0 if compact else self.config.flow_threshold,
                cellprob_threshold=self.config.cellprob_threshold,
                niter=max(20, round(_STEPS * diameter / DIAMETER)) if compact else None,
                # One tile at a time on a CPU: the activations of a tile take 100 MB.
                batch_size=1 if compact and engine.device.type == "cpu" else 8,
                # Cellpose pads images by 16 pixels, so a tile of this size covers the whole slice.
                bsize=int(min(_TILE, 16 * np.ceil(scaled_side / 16) + 16)) if compact else None,
                **({"z_axis": 0, "do_3D": True, "anisotropy": anisotropy} if in_3d else {}),
            )  # fmt: skip
        return masks.reshape(shape), flows.reshape(-1, *shape), logits.reshape(shape)

    @cached_property
    def _engines(self) -> dict[str, Any]:
        return load_engines(self.config.network, self._weights)


def _is_placeholder(voxel_size: Sequence[float | None]) -> bool:
    """Whether 1 um along every known axis is stated, which files say that do not know their scale."""
    return set(voxel_size) <= {None, 1.0}
