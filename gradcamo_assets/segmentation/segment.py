"""Segments a field: two networks, Cellpose's tiling and dynamics on every slice, stitching along z.

Here: the configuration, loading what it names, and the run over a stack. Not here: the compact network (``compact``),
what becomes of channels (``intensities``), stitching (``masks``).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradcamo_assets.common.errors import SegmentationError
from gradcamo_assets.segmentation import intensities
from gradcamo_assets.segmentation.masks import Masks, consistent, stitched, without_specks

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the compact network's weights."""

BUILT_IN = ("cpsam_v2", "cpsam", "cpdino", "cpdino-vitb")
"""Cellpose's own networks, by name; the weights of over 1 GB are never downloaded here."""

NOMINAL_WIDTH = 15.0
"""Width of a cell in micrometres that is assumed where no diameter is set."""

DIAMETER = 30.0
"""Width of a cell, in pixels, at which both shipped sets of weights work best."""

_STEPS = 60
_PIXELS = 4_000_000
_TILE = 512


@dataclass(frozen=True)
class SegmenterConfig:
    """How fields are segmented.

    Args:
        network: ``compact`` (ships with the package), one of Cellpose's (``BUILT_IN``), or a path: a folder with
            ``cells.safetensors`` and ``nuclei.safetensors`` that ``train`` wrote, or a file of Cellpose weights.
        nucleus: name of the DNA stain; None finds it by name.
        cytoplasm: names of the stains that fill cells; None takes every other fluorescence channel.
        diameter: width of a cell in pixels. None: from the voxel size, taking cells as 15 um wide, where that gives 8
            to 200 pixels; the network's own scale (30 pixels) where the voxel size is unknown (1, 1, 1) or implausible,
            or the two differ by less than a third.
        stitch_threshold: least intersection over union that joins objects of neighbouring slices.
        flow_threshold: highest flow error of an object in a slice; 0 keeps all.
        cellprob_threshold: least logit of a pixel inside an object; lower gives larger and more objects.
        min_volume: fewest voxels of a cell; of a nucleus a quarter of that.

    Raises:
        SegmentationError: for a value that cannot be meant.
    """

    network: str = "compact"
    nucleus: str | None = None
    cytoplasm: tuple[str, ...] | None = None
    diameter: float | None = None
    stitch_threshold: float = 0.25
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_volume: int = 100

    def __post_init__(self) -> None:
        known = self.network in ("compact", *BUILT_IN) or Path(self.network).exists()
        stains = self.cytoplasm is None or (not isinstance(self.cytoplasm, str) and len(self.cytoplasm) > 0)
        for name, right, remedy in (
            ("network", known, f"Use 'compact', one of {', '.join(BUILT_IN)}, or the path of existing weights"),
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
    """Segments fields with one configuration; networks are loaded on first use.

    Raises:
        SegmentationError: where the configured weights are absent.
    """

    def __init__(self, config: SegmenterConfig | None = None):
        self.config = config or SegmenterConfig()
        self._weights = _weights(self.config.network)

    @cached_property
    def version(self) -> dict[str, Any]:
        """What determines the masks: Cellpose's version, the weights' digests, the parameters. JSON values only."""
        digests = {}
        for which, path in self._weights.items():
            with path.open("rb") as file:  # Up to 1 GB.
                digests[which] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return {
            **asdict(self.config),
            "cytoplasm": self.config.cytoplasm and list(self.config.cytoplasm),
            "network": Path(self.config.network).name,
            "cellpose": importlib.metadata.version("cellpose"),
            "weights": digests,
            "method": 1,
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
        if not stains:
            raise SegmentationError(
                f"there is no cytoplasm stain: the channels are {', '.join(channels)}",
                "Set cytoplasm; the nucleus channel itself may be named where nothing else was stained.",
            )
        nucleus = intensities.combined([image[nuclear]])
        cytoplasm = intensities.combined([image[index] for index in stains])
        diameter = self._diameter(voxel_size)
        return Masks(
            cells=self._objects("cells", [cytoplasm, nucleus], diameter, self.config.min_volume),
            nuclei=self._objects("nuclei", [nucleus], diameter, self.config.min_volume // 4),
        )

    def _diameter(self, voxel_size: Sequence[float]) -> float:
        if self.config.diameter is not None:
            return self.config.diameter
        guessed = NOMINAL_WIDTH / max(float(np.mean(voxel_size[-2:])), 1e-9)
        implausible = tuple(voxel_size) == (1.0, 1.0, 1.0) or not 8 <= guessed <= 200
        return DIAMETER if implausible or 0.75 <= guessed / DIAMETER <= 4 / 3 else guessed

    def _objects(self, which: str, inputs: list[np.ndarray], diameter: float, least: int) -> np.ndarray:
        """Labels (Z, Y, X) uint32 of one kind, from its input images, a batch of slices at a time."""
        planes = np.zeros(inputs[0].shape, np.uint32)
        batch = max(1, _PIXELS // planes[0].size)
        for start in range(0, len(planes), batch):
            parts = [part[start : start + batch] for part in inputs]
            if max(float(part.max()) for part in parts) > 0:
                slices = np.stack((*parts, *[np.zeros_like(parts[0])] * (3 - len(parts))), axis=1)
                planes[start : start + batch] = self._planes(which, slices, diameter)
        return without_specks(stitched(planes, self.config.stitch_threshold), least)

    def _planes(self, which: str, slices: np.ndarray, diameter: float) -> np.ndarray:
        """Each slice (Z, 3, Y, X), of the three channels that Cellpose wants, by itself."""
        import torch

        engine, (depth, _, height, width) = self._engines[which], slices.shape
        compact = engine.backbone == "compact"
        scaled = DIAMETER / diameter * max(height, width)
        threads = torch.get_num_threads()
        if compact and engine.device.type == "cpu":
            # The dynamics are hundreds of small steps, which many threads on busy cores slow tenfold.
            torch.set_num_threads(1)
        try:
            masks, flows, _ = engine.eval(
                slices,
                channel_axis=1,
                normalize=False,
                diameter=None if diameter == DIAMETER else diameter,
                flow_threshold=0.0 if compact else self.config.flow_threshold,
                cellprob_threshold=self.config.cellprob_threshold,
                min_size=-1,
                niter=max(20, round(_STEPS * diameter / DIAMETER)) if compact else None,
                # Cellpose pads an image by 16 pixels: a tile of just that size makes one tile of the whole slice.
                bsize=int(min(_TILE, 16 * np.ceil(scaled / 16) + 16)) if compact else None,
            )
        finally:
            torch.set_num_threads(threads)
        planes = masks.reshape(depth, height, width)
        if compact and self.config.flow_threshold > 0:
            planes = consistent(planes, flows[1].reshape(2, depth, height, width) / 5, self.config.flow_threshold)
        return planes

    @cached_property
    def _engines(self) -> dict[str, Any]:
        import torch
        from cellpose.models import CellposeModel

        from gradcamo_assets.segmentation.compact import load_network

        # Cellpose warns at every stack that its own stitching is off, and at every slice without cells.
        for part in ("models", "dynamics"):
            logging.getLogger(f"cellpose.{part}").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._weights["cells"].suffix != ".safetensors":
            path = self._weights["cells"]
            try:
                model = CellposeModel(pretrained_model=str(path), device=device, use_bfloat16=device.type == "cuda")
            except Exception as error:
                raise SegmentationError(
                    f"Cellpose cannot load these weights: {error}", "Give weights of Cellpose 4.", path=path
                ) from error
            return {"cells": model, "nuclei": model}
        engines = {}
        for which, path in self._weights.items():
            # The constructor only loads Cellpose's own networks; eval needs no more than these five attributes.
            engine = CellposeModel.__new__(CellposeModel)
            engine.net, engine.device, engine.gpu = load_network(which, path, device), device, device.type == "cuda"
            engine.backbone, engine.pretrained_model = "compact", str(path)
            engines[which] = engine
        return engines


def _weights(network: str) -> dict[str, Path]:
    """The weights file of each kind.

    Raises:
        SegmentationError: where it is absent.
    """
    if network in BUILT_IN:
        from cellpose.models import MODEL_DIR

        path = Path(MODEL_DIR) / network
        if not path.is_file():
            raise SegmentationError(
                f"the weights of {network} are not on this machine",
                'Download them once (over 1 GB) with: python -c "from cellpose.models import cache_model_path; '
                f"cache_model_path('{network}')\", or use the network 'compact'.",
                path=path,
            )
        return {"cells": path, "nuclei": path}
    given = SHIPPED if network == "compact" else Path(network)
    found = {which: given if given.is_file() else given / f"{which}.safetensors" for which in ("cells", "nuclei")}
    for path in found.values():
        if not path.is_file():
            raise SegmentationError("weights are missing", "Train them, or install the package anew.", path=path)
    return found
