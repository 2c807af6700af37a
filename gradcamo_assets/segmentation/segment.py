"""Segments a field: two networks, Cellpose's tiling and dynamics on every slice, stitching along z.

Here: the configuration, loading what it names, and the run over a stack. Not here: the compact network (``compact``),
what becomes of channels (``intensities``), stitching (``masks``).
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradcamo_assets.common.errors import SegmentationError
from gradcamo_assets.segmentation import intensities
from gradcamo_assets.segmentation.masks import Masks, consistent, stitched, without_specks

BUILT_IN = ("cpsam_v2", "cpsam", "cpdino", "cpdino-vitb")
"""Cellpose's own networks, by name; the weights of over 1 GB are never downloaded here."""

NOMINAL_WIDTH = 15.0
"""Width of a cell in micrometres that is assumed where no diameter is set."""

_DIAMETER = 30.0
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
        use_gpu: None takes a GPU where there is one; True insists on it.

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
    use_gpu: bool | None = None

    def __post_init__(self) -> None:
        checks = {
            "network": self.network == "compact" or self.network in BUILT_IN or Path(self.network).exists(),
            "cytoplasm": self.cytoplasm is None or (not isinstance(self.cytoplasm, str) and len(self.cytoplasm) > 0),
            "diameter": self.diameter is None or 4 <= self.diameter <= 2000,
            "stitch_threshold": 0 < self.stitch_threshold <= 1,
            "flow_threshold": 0 <= self.flow_threshold <= 4,
            "cellprob_threshold": -20 <= self.cellprob_threshold <= 20,
            "min_volume": self.min_volume >= 0,
        }
        remedies = {
            "network": f"Use 'compact', one of {', '.join(BUILT_IN)}, or the path of existing weights.",
            "cytoplasm": "Give a tuple of channel names, or None for all that are not the nucleus.",
            "diameter": "Give the width of a cell in pixels, 4 to 2000, or None.",
            "stitch_threshold": "Give a number above 0, at most 1.",
        }
        for name, right in checks.items():
            if not right:
                raise SegmentationError(
                    f"{name} cannot be {getattr(self, name)!r}", remedies.get(name, "Use a value near the default.")
                )


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
        from gradcamo_assets.segmentation.compact import weights_digest

        parameters = {name: value for name, value in asdict(self.config).items() if name != "use_gpu"}
        if parameters["cytoplasm"] is not None:
            parameters["cytoplasm"] = list(parameters["cytoplasm"])
        parameters["network"] = Path(self.config.network).name
        digests = {which: weights_digest(path) for which, path in self._weights.items()}
        return {**parameters, "cellpose": importlib.metadata.version("cellpose"), "weights": digests, "method": 1}

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
        across = float(np.mean(voxel_size[-2:]))
        if tuple(voxel_size) == (1.0, 1.0, 1.0) or not 8 <= NOMINAL_WIDTH / max(across, 1e-9) <= 200:
            return _DIAMETER
        guessed = NOMINAL_WIDTH / across
        return _DIAMETER if 0.75 <= guessed / _DIAMETER <= 4 / 3 else guessed

    def _objects(self, which: str, inputs: list[np.ndarray], diameter: float, least: int) -> np.ndarray:
        """Labels (Z, Y, X) uint32 of one kind, from its input images, a batch of slices at a time."""
        depth, height, width = inputs[0].shape
        planes = np.zeros((depth, height, width), np.uint32)
        batch = max(1, _PIXELS // (height * width))
        for start in range(0, depth, batch):
            stop = min(depth, start + batch)
            if max(float(part[start:stop].max()) for part in inputs) <= 0:
                continue
            slices = np.zeros((stop - start, 3, height, width), np.float32)
            for index, part in enumerate(inputs):
                slices[:, index] = part[start:stop]
            planes[start:stop] = self._planes(which, slices, diameter)
        return without_specks(stitched(planes, self.config.stitch_threshold), least)

    def _planes(self, which: str, slices: np.ndarray, diameter: float) -> np.ndarray:
        """Each slice (Z, 3, Y, X) by itself, through Cellpose."""
        engine, (depth, _, height, width) = self._engines[which], slices.shape
        compact = engine.backbone == "compact"
        scaled = _DIAMETER / diameter * max(height, width)
        with _one_thread(compact and engine.device.type == "cpu"):
            masks, flows, _ = engine.eval(
                slices,
                channel_axis=1,
                normalize=False,
                diameter=None if diameter == _DIAMETER else diameter,
                flow_threshold=0.0 if compact else self.config.flow_threshold,
                cellprob_threshold=self.config.cellprob_threshold,
                min_size=-1,
                niter=max(20, round(_STEPS * diameter / _DIAMETER)) if compact else None,
                # Cellpose pads an image by 16 pixels: a tile of just that size makes one tile of the whole slice.
                bsize=int(min(_TILE, 16 * np.ceil(scaled / 16) + 16)) if compact else None,
            )
        planes = masks.reshape(depth, height, width)
        if compact and self.config.flow_threshold > 0:
            planes = consistent(planes, flows[1].reshape(2, depth, height, width) / 5, self.config.flow_threshold)
        return planes

    @cached_property
    def _engines(self) -> dict[str, Any]:
        import torch
        from cellpose.models import CellposeModel

        from gradcamo_assets.segmentation.compact import load_network

        has_gpu = torch.cuda.is_available()
        if self.config.use_gpu and not has_gpu:
            raise SegmentationError("there is no GPU", "Set use_gpu to None or False, or install CUDA's driver.")
        # Cellpose warns at every stack that its own stitching is off, and at every slice without cells.
        for part in ("models", "dynamics"):
            logging.getLogger(f"cellpose.{part}").setLevel(logging.ERROR)
        device = torch.device("cuda" if has_gpu and self.config.use_gpu is not False else "cpu")
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


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """Torch on one thread: the dynamics are hundreds of small steps, which many threads on busy cores slow tenfold."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    folder = Path(__file__).parent / "weights" if network == "compact" else Path(network)
    if folder.is_file():
        return {"cells": folder, "nuclei": folder}
    found = {which: folder / f"{which}.safetensors" for which in ("cells", "nuclei")}
    for path in found.values():
        if not path.is_file():
            raise SegmentationError("weights are missing", "Train them, or install the package anew.", path=path)
    return found
