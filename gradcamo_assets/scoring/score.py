"""The batch loop that embeds and scores the crops of a field in one pass over them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from gradcamo_assets.common.errors import BundleError
from gradcamo_assets.crops import NEIGHBOUR, TARGET
from gradcamo_assets.crops.dataset import channel_order, standardise
from gradcamo_assets.crops.store import CropField
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.bundle import load_bundle

ON_TARGET_THRESHOLD = 0.5
_FROM_RESULT = (
    "probability", "logit", "logit_bias", "gradcamo", "mask_fraction", "gradcamo_max", "gradcamo_adjusted",
    "neighbour_share", "background_share", "neighbour_fraction", "looks_at", "evidence_target", "evidence_neighbour",
    "evidence_background", "null_reason",
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
    """An encoder ready to embed and score crops.

    Args:
        bundle: folder of a model bundle. batch_size: crops a forward pass. device: "cuda" if there is one, else "cpu".

    Raises:
        BundleError: if the bundle is missing, damaged or inconsistent.
    """

    def __init__(self, bundle: Path, *, batch_size: int = 32, device: str | None = None):
        model, self.config = load_bundle(bundle)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device, memory_format=torch.channels_last_3d)
        self.batch_size = batch_size

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
        reason = self.misfit(field)
        if reason:
            raise BundleError(
                f"the encoder does not fit these crops: {reason}", "Promote one that does.", path=field.path
            )
        columns: dict[str, list] = {name: [] for name in ("predicted_class", *_FROM_RESULT)}
        embeddings: list[np.ndarray] = []
        maps: list[np.ndarray] = []
        for images, labels in self._batches(field):
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
                maps.append(result.cam.float().cpu().numpy())
        scores = pl.DataFrame(columns, schema=_SCHEMA).with_columns(
            pl.Series("Metadata_CellID", field.cell_ids, dtype=pl.String),
            on_target=pl.col("gradcamo") > ON_TARGET_THRESHOLD,
        )
        return Scored(
            scores,
            np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
            np.concatenate(maps)[:keep_maps] if maps else np.zeros((0, 1, 1, 1), np.float32),
        )

    def _batches(self, field: CropField) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised images and labels on the device; the next batch is read while this one is scored."""
        order = channel_order(field, self.config.channels)
        center, scale = (torch.from_numpy(values[order]).to(self.device) for values in (field.center, field.scale))
        rows = [slice(start, start + self.batch_size) for start in range(0, len(field), self.batch_size)]
        with ThreadPoolExecutor(1) as reader:
            pending = reader.submit(field.read, rows[0]) if rows else None
            for following in [*rows[1:], None]:
                if pending is None:
                    return
                images, labels = pending.result()
                pending = reader.submit(field.read, following) if following else None
                raw = torch.from_numpy(images[:, order]).to(self.device)
                yield standardise(raw, center, scale), torch.from_numpy(labels).to(self.device)


_SCHEMA: dict[str, type[pl.DataType]] = {
    "predicted_class": pl.String,
    **dict.fromkeys(_FROM_RESULT, pl.Float64),
    "looks_at": pl.String,
    "null_reason": pl.String,
}
