"""Embed and score the crops of a field in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from gradcamo_assets.cells import NEIGHBOUR, TARGET, CropField
from gradcamo_assets.cells.dataset import channel_order, standardise, standardise_channels_last
from gradcamo_assets.errors import BundleError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.explain.result import GradcamoResult
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.scoring.fast_path import convert_to_bfloat16, convert_to_bfloat16_if_native, fold_batchnorm
from gradcamo_assets.scoring.openvino_encoder import OpenvinoEncoder, compile_encoder
from gradcamo_assets.scoring.settings import ScoringConfig
from gradcamo_assets.thresholds import THRESHOLDS

_RESULT_COLUMNS = (
    "probability", "logit", "logit_bias", "gradcamo", "mask_fraction", "gradcamo_max", "gradcamo_adjusted",
    "neighbour_share", "background_share", "neighbour_fraction", "looks_at", "pointing_game",
    "relevance_rank_accuracy", "evidence_target", "evidence_neighbour", "evidence_background", "null_reason",
)  # fmt: skip


@dataclass(frozen=True)
class FieldScores:
    """Result of one pass over the crops of a field.

    Attributes:
        scores: one row per crop: ``Metadata_CellID``, ``predicted_class`` and the columns of the score.
        embeddings: (N, K) float32, the mean of the explained layer's activations.
        maps: (N, z, y, x) float32 low-resolution maps of the first crops, for figures.
    """

    scores: pl.DataFrame
    embeddings: np.ndarray
    maps: np.ndarray


class Scorer:
    """An encoder prepared for scoring: BatchNorm folded, channels last, and bfloat16 where it is faster.

    ``model`` is the torch network, for everything that needs gradients or other layers. ``explain``, and with it
    ``score``, run the same network with OpenVINO on a CPU; see ``runtime``.

    Args:
        bundle: folder of a model bundle.
        modules: modules of which a bundle may name an encoder; see ``networks.encoders.build_encoder``.

    Raises:
        BundleError: if the bundle is missing, damaged or inconsistent, or the encoder does not support the precision.
    """

    def __init__(self, bundle: Path, config: ScoringConfig | None = None, modules: Collection[str] = ()):
        settings = config or ScoringConfig()
        self._bundle = bundle
        model, self.config = load_bundle(bundle, modules)
        self.device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = settings.batch_size or (64 if self.device.type == "cuda" else 8)
        self.is_2d = is_2d(model)
        memory_format = torch.channels_last if self.is_2d else torch.channels_last_3d
        model = model.to(self.device, memory_format=memory_format)
        generator = torch.Generator().manual_seed(0)
        shape = self.config.crop_shape[1:] if self.is_2d else self.config.crop_shape
        sample = torch.randn(2, len(self.config.channels), *shape, generator=generator)
        sample = sample.to(self.device, memory_format=memory_format)
        model = fold_batchnorm(model, sample, keep=[self.config.layer])
        half = None
        if settings.precision == "auto":
            half = convert_to_bfloat16_if_native(model, sample)
        elif settings.precision == "bfloat16":
            half = convert_to_bfloat16(model, sample)
            if half is None:
                raise BundleError("the encoder's logits differ in bfloat16", "Set precision = 'float32'.", path=bundle)
        # Copies in another type or with folded weights lose the memory format.
        self.model = (half or model).to(memory_format=memory_format)
        self.precision = "bfloat16" if half else "float32"
        self._runtime, self._exact_model, self._sample = settings.runtime, model, sample
        self._buffers: tuple[tuple[tuple[int, ...], int], list[Any]] | None = None

    @property
    def runtime(self) -> str:
        """What runs the scoring pass: ``openvino`` or ``torch``.

        Raises:
            BundleError: if the settings demand OpenVINO, and it cannot run the encoder.
        """
        return "torch" if self._compiled is None else "openvino"

    @cached_property
    def _compiled(self) -> OpenvinoEncoder | None:
        """The encoder in OpenVINO, compiled on first use; None: torch is used."""
        try:
            if self._runtime != "torch":
                return compile_encoder(self._exact_model, self.config.layer, self._sample, self.precision)
        except BundleError as error:
            if self._runtime == "openvino":
                raise error.at(path=self._bundle) from error
        return None

    def explain(self, images: Tensor, labels: Tensor) -> GradcamoResult:
        """Score a batch that ``batches`` or ``prepare`` returned.

        Raises:
            BundleError: as ``runtime``.
        """
        compiled = self._compiled
        model, layer = (compiled, compiled.layer) if compiled else (self.model, self.config.layer)
        return gradcamo(model, images, labels == TARGET, layer=layer, neighbour_masks=labels == NEIGHBOUR)

    def find_mismatch(self, field: CropField) -> str | None:
        """Return the reason why the encoder cannot score these crops, or None."""
        shape = list(field.crop_shape)
        if shape != list(self.config.crop_shape):
            return f"crops are {shape}, the encoder expects {list(self.config.crop_shape)} (z, y, x)"
        return self.config.find_mismatch(field.channels, field.voxel_size)

    def score(self, field: CropField, keep_maps: int = 0) -> FieldScores:
        """Score every crop of a field.

        Args:
            keep_maps: number of crops whose maps are returned.

        Raises:
            BundleError: if the encoder does not fit the crops; or as ``runtime``.
            CropError: if a crop cannot be read.
        """
        columns: dict[str, list] = {name: [] for name in ("predicted_class", *_RESULT_COLUMNS)}
        embeddings: list[np.ndarray] = []
        maps: list[np.ndarray] = []
        rows = [slice(start, start + self.batch_size) for start in range(0, len(field), self.batch_size)]
        for images, labels in self.batches(field, rows):
            result = self.explain(images, labels)
            table = result.columns()
            columns["predicted_class"] += [self.config.classes[index] for index in table["predicted_class"]]
            for name in _RESULT_COLUMNS:
                columns[name] += table[name]
            embeddings.append(result.embedding.float().cpu().numpy())
            if sum(map(len, maps)) < keep_maps:
                cam = result.cam.float().cpu().numpy()
                maps.append(cam[:, None] if self.is_2d else cam)
        scores = pl.DataFrame(columns, schema=_SCHEMA).with_columns(
            pl.Series("Metadata_CellID", field.cell_ids, dtype=pl.String),
            on_target=pl.col("gradcamo") > THRESHOLDS.paper,
        )
        return FieldScores(
            scores=scores,
            embeddings=np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
            maps=np.concatenate(maps)[:keep_maps] if maps else np.zeros((0, 1, 1, 1), np.float32),
        )

    def batches(self, field: CropField, rows: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield standardised images (channels last) and labels on the device.

        A 2D network gets planes, (B, C, Y, X) and (B, Y, X); any other (B, C, Z, Y, X) and (B, Z, Y, X).
        All batches share one buffer: the images of a batch are valid until the next one is requested.

        Args:
            rows: crops of each batch.

        Raises:
            BundleError: if the encoder does not fit the crops.
            CropError: if a crop cannot be read.
        """
        order = self._require_fit(field)
        center, scale = field.center[order], field.scale[order]
        batches = [range(*chosen.indices(len(field))) for chosen in rows]
        largest_batch = max(map(len, batches), default=0)
        images, *stored = self._buffers_for((largest_batch, len(field.channels), *field.crop_shape), len(order))
        on_cpu = self.device.type == "cpu"
        threads = torch.get_num_threads()

        def read(crops: range, raw: np.ndarray, standardised: Tensor) -> np.ndarray:
            _, labels = field.read(slice(crops.start, crops.stop, crops.step), raw)
            if on_cpu:
                standardise_channels_last(raw, order, center, scale, standardised.permute(0, 2, 3, 4, 1).numpy())
            return labels

        def start(number: int) -> list[Future[np.ndarray]]:
            crops, raw = batches[number], stored[number % len(stored)]
            size = -(-len(crops) // threads)
            parts = [slice(first, min(first + size, len(crops))) for first in range(0, len(crops), size)]
            return [readers.submit(read, crops[part], raw[part], images[part]) for part in parts]

        reading: list[Future[np.ndarray]] = []
        with ThreadPoolExecutor(threads) as readers:
            for number, crops in enumerate(batches):
                labels = np.concatenate([part.result() for part in reading or start(number)])
                n = len(crops)
                # The cores of a CPU first read, then compute: a thread that reads meanwhile delays all that compute.
                if not on_cpu:
                    reading = start(number + 1) if number + 1 < len(batches) else []
                    raw = stored[number % len(stored)][:n]
                    raw = self._to_device(raw if order == list(range(raw.shape[1])) else raw[:, order])
                    statistics = (torch.from_numpy(values).to(self.device) for values in (center, scale))
                    images[:n].copy_(standardise(raw, *statistics))
                regions = self._to_device(labels)
                yield (images[:n, :, 0], regions[:, 0]) if self.is_2d else (images[:n], regions)

    def prepare(self, crops: Sequence[tuple[CropField, np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Return what ``batches`` yields, for single crops of any fields: field, image (C, Z, Y, X) and labels of each.

        All crops are standardised at once. One at a time, threads wait for each other for longer than they compute.

        Raises:
            BundleError: if the encoder does not fit the crops.
        """
        orders = [self._require_fit(field) for field, _, _ in crops]
        center, scale = (
            torch.from_numpy(np.stack([values[order] for values, order in zip(all_values, orders, strict=True)]))
            for all_values in zip(*((field.center, field.scale) for field, _, _ in crops), strict=True)
        )
        raw = np.stack([image[order] for (_, image, _), order in zip(crops, orders, strict=True)])
        images = standardise(self._to_device(raw), center.to(self.device), scale.to(self.device))
        labels = self._to_device(np.stack([labels for _, _, labels in crops]))
        if self.is_2d:
            return images[:, :, 0].contiguous(memory_format=torch.channels_last), labels[:, 0]
        return images.contiguous(memory_format=torch.channels_last_3d), labels

    def _require_fit(self, field: CropField) -> list[int]:
        """Return the positions of the encoder's channels in the crops.

        Raises:
            BundleError: if the encoder does not fit the crops.
        """
        reason = self.find_mismatch(field)
        if reason:
            raise BundleError(
                f"the encoder does not fit these crops: {reason}", "Promote an encoder that does.", path=field.path
            )
        return channel_order(field, self.config.channels)

    def _buffers_for(self, shape: tuple[int, ...], channels: int) -> list[Any]:
        """Return buffers for a batch of standardised images (channels last), and for one or two of stored crops.

        They are reused between fields, since allocating them costs more than the arithmetic on them.
        """
        if self._buffers is None or self._buffers[0] != (shape, channels):
            images = torch.empty(
                (shape[0], channels, *shape[2:]), device=self.device, memory_format=torch.channels_last_3d
            )
            stored = [np.empty(shape, np.uint16) for _ in range(1 if self.device.type == "cpu" else 2)]
            self._buffers = (shape, channels), [images, *stored]
        return self._buffers[1]

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


_SCHEMA: dict[str, type[pl.DataType]] = {
    "predicted_class": pl.String,
    **dict.fromkeys(_RESULT_COLUMNS, pl.Float64),
    "looks_at": pl.String,
    "null_reason": pl.String,
}
