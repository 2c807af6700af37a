"""The batch loop that embeds and scores the crops of a field in one pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.cells.crop_store import CropField
from gradcamo_assets.cells.dataset import channel_order, standardise
from gradcamo_assets.errors import BundleError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.scoring.fast_path import convert_to_bfloat16, convert_to_bfloat16_if_native, fold_batchnorm
from gradcamo_assets.scoring.settings import ScoringConfig

ON_TARGET_THRESHOLD = 0.5
_FROM_RESULT = (
    "probability", "logit", "logit_bias", "gradcamo", "mask_fraction", "gradcamo_max", "gradcamo_adjusted",
    "neighbour_share", "background_share", "neighbour_fraction", "looks_at", "pointing_game",
    "relevance_rank_accuracy", "evidence_target", "evidence_neighbour", "evidence_background", "null_reason",
)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """What one pass over crops gives.

    Attributes:
        scores: a row a crop: ``Metadata_CellID``, ``predicted_class`` and the columns of the score.
        embeddings: (N, K) float32, the mean of the explained layer's activations.
        maps: (N, z, y, x) float32 low-resolution maps of the first crops, for pictures.
    """

    scores: pl.DataFrame
    embeddings: np.ndarray
    maps: np.ndarray


class Scorer:
    """An encoder ready to embed and score crops: BatchNorm folded, channels last, in bfloat16 where that is faster.

    Args:
        bundle: folder of a model bundle.

    Raises:
        BundleError: if the bundle is missing, damaged or inconsistent, or the precision not fit for this encoder.
    """

    def __init__(self, bundle: Path, config: ScoringConfig | None = None):
        settings = config or ScoringConfig()
        model, self.config = load_bundle(bundle)
        self.device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = settings.batch_size or (64 if self.device.type == "cuda" else 8)
        self.planar = is_2d(model)
        memory = torch.channels_last if self.planar else torch.channels_last_3d
        model = model.to(self.device, memory_format=memory)
        generator = torch.Generator().manual_seed(0)
        shape = self.config.crop_shape[1:] if self.planar else self.config.crop_shape
        sample = torch.randn(2, len(self.config.channels), *shape, generator=generator)
        sample = sample.to(self.device, memory_format=memory)
        model = fold_batchnorm(model, sample, keep=[self.config.layer])
        half = None
        if settings.precision == "auto":
            half = convert_to_bfloat16_if_native(model, sample)
        elif settings.precision == "bfloat16":
            half = convert_to_bfloat16(model, sample)
            if half is None:
                raise BundleError("the encoder's logits differ in bfloat16", "Set precision = 'float32'.", path=bundle)
        # A copy in another type or with folded weights does not keep the memory format by itself.
        self.model = (half or model).to(memory_format=memory)
        self.precision = "bfloat16" if half else "float32"
        self._memory: tuple[tuple[tuple[int, ...], int], list[Any]] | None = None

    def misfit(self, field: CropField) -> str | None:
        """Why these crops cannot be scored by this encoder, or None."""
        shape = list(field.images.shape[2:])
        if shape != list(self.config.crop_shape):
            return f"crops are {shape}, the encoder takes {list(self.config.crop_shape)} (z, y, x)"
        return self.config.misfit(field.channels, field.voxel_size)

    def score(self, field: CropField, keep_maps: int = 0) -> Scored:
        """Score every crop of a field.

        Raises:
            BundleError: if the encoder does not fit the crops. CropError: if a crop cannot be read.
        """
        columns: dict[str, list] = {name: [] for name in ("predicted_class", *_FROM_RESULT)}
        embeddings: list[np.ndarray] = []
        maps: list[np.ndarray] = []
        rows = [slice(start, start + self.batch_size) for start in range(0, len(field), self.batch_size)]
        for images, labels in self.batches(field, rows):
            result = gradcamo(
                self.model,
                images,
                labels == TARGET,
                layer=self.config.layer,
                neighbour_masks=labels == NEIGHBOUR,
            )
            table = result.columns()
            columns["predicted_class"] += [self.config.classes[index] for index in table["predicted_class"]]
            for name in _FROM_RESULT:
                columns[name] += table[name]
            embeddings.append(result.embedding.float().cpu().numpy())
            if sum(map(len, maps)) < keep_maps:
                cam = result.cam.float().cpu().numpy()
                maps.append(cam[:, None] if self.planar else cam)
        scores = pl.DataFrame(columns, schema=_SCHEMA).with_columns(
            pl.Series("Metadata_CellID", field.cell_ids, dtype=pl.String),
            on_target=pl.col("gradcamo") > ON_TARGET_THRESHOLD,
        )
        return Scored(
            scores,
            np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
            np.concatenate(maps)[:keep_maps] if maps else np.zeros((0, 1, 1, 1), np.float32),
        )

    def batches(self, field: CropField, rows: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised images, channels last, and labels on the device; the next are read while these are worked on.

        A 2D network gets planes, (B, C, Y, X) and (B, Y, X), any other (B, C, Z, Y, X) and (B, Z, Y, X).
        The images of a batch are good until the next one is asked for: they lie in the same memory.

        Args:
            rows: crops of each batch.

        Raises:
            BundleError: if the encoder does not fit the crops. CropError: if a crop cannot be read.
        """
        reason = self.misfit(field)
        if reason:
            raise BundleError(
                f"the encoder does not fit these crops: {reason}", "Promote one that does.", path=field.path
            )
        order = channel_order(field, self.config.channels)
        center, scale = (torch.from_numpy(values[order]).to(self.device) for values in (field.center, field.scale))
        most = max((row.stop - row.start for row in rows), default=0)
        plain, last, *stored = self._memory_for((most, *field.images.shape[1:]), len(order))

        def read(number: int) -> tuple[np.ndarray, np.ndarray]:
            images = stored[number % 2][: len(range(*rows[number].indices(len(field))))]
            return field.read(rows[number], images)

        with ThreadPoolExecutor(1) as reader:
            pending = [reader.submit(read, 0)] if rows else []
            for number in range(len(rows)):
                images, labels = pending.pop().result()
                if number + 1 < len(rows):
                    pending.append(reader.submit(read, number + 1))
                raw = self._to_device(images if order == list(range(images.shape[1])) else images[:, order])
                n = len(raw)
                last[:n].copy_(standardise(raw, center, scale, out=plain[:n]))
                found = self._to_device(labels)
                yield (last[:n, :, 0], found[:, 0]) if self.planar else (last[:n], found)

    def _memory_for(self, shape: tuple[int, ...], channels: int) -> list[Any]:
        """Memory for a batch (contiguous, channels last) and for two of stored crops, kept from field to field.

        Memory that is asked for anew costs more than the arithmetic on it.
        """
        if self._memory is None or self._memory[0] != (shape, channels):
            plain = torch.empty((shape[0], channels, *shape[2:]), device=self.device)
            last = torch.empty_like(plain, memory_format=torch.channels_last_3d)
            self._memory = (shape, channels), [plain, last, np.empty(shape, np.uint16), np.empty(shape, np.uint16)]
        return self._memory[1]

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


_SCHEMA: dict[str, type[pl.DataType]] = {
    "predicted_class": pl.String,
    **dict.fromkeys(_FROM_RESULT, pl.Float64),
    "looks_at": pl.String,
    "null_reason": pl.String,
}
