"""Signed evidence at a head of global average pooling and one linear layer.

There the logit is ``b_y + sum over voxels of w_y . A_i / n`` exactly, so it can be split by where the voxels look.

Here: that sum and its split over target, neighbours and background. Not here: rectified maps and their shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradcamo_assets.common.errors import ExplainError
from gradcamo_assets.explain.overlap import Regions, label_regions, mask_labels


@dataclass(frozen=True)
class Evidence:
    """What speaks for (positive) or against (negative) the class, by region: each (B,) float64, in logits.

    Without neighbour masks ``neighbour`` and ``background`` are NaN.
    """

    target: Tensor
    neighbour: Tensor
    background: Tensor


def signed_map(activations: Tensor, weight: Tensor) -> Tensor:
    """The un-rectified CAM at such a head, w_y . A_i / n: (B, *grid); its sum over voxels is the logit less its bias.

    Multiplied and added elementwise in float32 or better: a matrix product may run in TF32 or bfloat16.

    Args:
        activations: (B, K, *grid) that enter the pooling.
        weight: (B, K), the linear layer's row of each cell's class.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    grid = activations.shape[2:]
    scaled = weight.to(dtype) / grid.numel()
    with torch.autocast(activations.device.type, enabled=False):
        return (activations.to(dtype) * scaled.reshape(*scaled.shape, *(1,) * len(grid))).sum(1)


def evidence(activations: Tensor, weight: Tensor, target: Tensor, neighbours: Tensor | None = None) -> Evidence:
    """Split the logit less its bias over target, neighbours and background; the three add to it.

    A map voxel whose footprint straddles regions is split as its footprint is (r_i of the three masks).

    Args:
        activations: (B, K, *grid) that enter the global average pooling.
        weight: (B, K), the linear layer's row of each cell's class.
        target, neighbours: (B, *crop) binary masks.

    Raises:
        ExplainError: for shapes that do not fit.
    """
    if activations.ndim != target.ndim + 1 or tuple(weight.shape) != tuple(activations.shape[:2]):
        raise ExplainError(
            f"activations are {tuple(activations.shape)}, weights {tuple(weight.shape)}, masks {tuple(target.shape)}",
            "Pass activations (B, K, *grid), weights (B, K) and masks (B, *crop).",
        )
    regions = label_regions(mask_labels(target, neighbours), activations.shape[2:], neighbours is not None)
    return region_evidence(signed_map(activations, weight), regions)


def region_evidence(signed: Tensor, regions: Regions) -> Evidence:
    """``evidence`` from a signed map (B, *grid) and masks that are projected already."""
    values = signed.to(regions.reach.device, torch.float64).flatten(1)
    parts = torch.einsum("bn,bcn->bc", values, regions.reach.flatten(2))
    if not regions.neighbours_known:
        parts = torch.where(torch.tensor([False, True, True], device=parts.device), torch.nan, parts)
    return Evidence(parts[:, 0], parts[:, 1], parts[:, 2])
