"""The result of the score: per-cell columns on the host, moved there in one transfer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradcamo_assets.explain.overlap import LOOKS_AT, NULL_REASONS, decode

_CLASS_COLUMNS = ("target_class", "predicted_class")


@dataclass(frozen=True)
class GradcamoResult:
    """Grad-CAMO of B cells. Float columns are (B,) float64 arrays on the host; NaN stands for NULL.

    Attributes:
        gradcamo: share of the map inside the target mask, the score of arXiv 2403.17615.
        mask_fraction: share of the crop that the mask fills, the score of a uniform map.
        gradcamo_max: highest score that the map's resolution allows for this mask.
        gradcamo_adjusted: (gradcamo - mask_fraction) / (gradcamo_max - mask_fraction).
        neighbour_share, background_share: the rest of the map; the three shares add to 1.
        neighbour_fraction: share of the crop that neighbours fill.
        looks_at: ``target``, ``neighbour``, ``background`` or ``none``; None for NULL.
        pointing_game: 1 if the brightest map voxel lies in the target, else 0.
        relevance_rank_accuracy: share of the mask covered by the brightest map voxels of the mask's volume.
        evidence_target, evidence_neighbour, evidence_background: signed evidence that adds to ``logit`` -
            ``logit_bias``; NULL unless the layer feeds global average pooling and one linear layer.
        target_class: (B,) int64, the explained class; -1 for a callable target.
        predicted_class: (B,) int64, the class of the highest logit; for a single logit, 1 where it is above 0, else 0;
            -1 unless the output is (B, classes).
        probability: softmax probability of the explained class (sigmoid for a single logit).
        logit: the explained logit (the negative one for class 0 of a single logit), or the callable's scalar.
        logit_bias: the head's bias of the explained class; NULL without a pooled linear head.
        null_reason: why the score or the adjusted score is NULL; else None.
        logits: (B, classes), as the model returns them, on its device; (B, 0) if it returns none.
        embedding: (B, K) float32, the layer's activations averaged over voxels; of several layers, the last one's.
        cam: (B, \\*grid), the rectified low-resolution map; of several layers, the mean of their maps divided by
            their masses, at the finest grid.
        layers: for several layers, the result of each by name.
    """

    gradcamo: np.ndarray
    mask_fraction: np.ndarray
    gradcamo_max: np.ndarray
    gradcamo_adjusted: np.ndarray
    neighbour_share: np.ndarray
    background_share: np.ndarray
    neighbour_fraction: np.ndarray
    looks_at: list[str | None]
    pointing_game: np.ndarray
    relevance_rank_accuracy: np.ndarray
    evidence_target: np.ndarray
    evidence_neighbour: np.ndarray
    evidence_background: np.ndarray
    target_class: np.ndarray
    predicted_class: np.ndarray
    probability: np.ndarray
    logit: np.ndarray
    logit_bias: np.ndarray
    null_reason: list[str | None]
    logits: Tensor
    embedding: Tensor
    cam: Tensor
    layers: dict[str, GradcamoResult] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.gradcamo)

    def columns(self) -> dict[str, list[Any]]:
        """Return the per-cell columns as lists of Python values with None for NULL, ready for a data frame."""
        table: dict[str, list[Any]] = {}
        for name in COLUMNS:
            values = getattr(self, name)
            if isinstance(values, np.ndarray):
                is_null = values < 0 if name in _CLASS_COLUMNS else np.isnan(values)
                values = [None if null else value for null, value in zip(is_null, values.tolist(), strict=True)]
            table[name] = list(values)
        return table


COLUMNS: tuple[str, ...] = tuple(
    name for name in GradcamoResult.__dataclass_fields__ if name not in ("logits", "embedding", "cam", "layers")
)
"""The per-cell columns of a result, in order."""


def pack_result(columns: dict[str, Tensor], logits: Tensor, embedding: Tensor, cam: Tensor) -> GradcamoResult:
    """Move columns (B,) to the host in one transfer and build the result. Missing columns are NULL.

    Args:
        columns: by name; codes and classes as integers. Names outside ``COLUMNS`` are ignored.
        logits, embedding, cam: stay on their device.
    """
    device = columns["gradcamo"].device
    null = torch.full((len(logits),), torch.nan)
    stacked = torch.stack([columns.get(name, null).detach().to(device, torch.float64) for name in COLUMNS])
    values: dict[str, Any] = dict(zip(COLUMNS, stacked.cpu().numpy(), strict=True))
    for name in _CLASS_COLUMNS:
        values[name] = np.nan_to_num(values[name], nan=-1).astype(np.int64)
    values["looks_at"] = decode(values["looks_at"], LOOKS_AT)
    values["null_reason"] = decode(values["null_reason"], NULL_REASONS)
    return GradcamoResult(**values, logits=logits.detach(), embedding=embedding, cam=cam.detach())
