"""Measure the overlap of low-resolution maps with full-resolution masks without upsampling the maps.

The linear upsampler U (align_corners=False) is a matrix. The share of an upsampled map L inside a mask M is therefore
``sum(U L * M) / sum(U L) = <L, U'M> / <L, U'1>``, where ``explain.projection`` projects the mask to the map's grid.
Networks and gradients do not appear here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.projection import ProjectedRegions

LOOKS_AT = ("target", "neighbour", "background", "none")
"""Meaning of the codes 0 to 3 in ``Overlap.looks_at``; -1 is NULL."""

NULL_REASONS = ("empty mask", "map is not finite", "empty map", "mask fills the crop", "map too coarse for the mask")
"""Meaning of the codes 0 to 4 in ``Overlap.null_reason``; -1 is NULL. With the last two the score itself is valid."""

CHANCE_MARGIN = 0.05
"""Smallest adjusted share of a region that ``looks_at`` reports."""

_MIN_HEADROOM = 1e-5
"""Smallest relative distance between ceiling and chance. Below it the map cannot resolve the region."""


@dataclass(frozen=True)
class Overlap:
    """Overlap of B maps with their regions, on the map's device.

    Float columns are float64 with NaN for NULL; codes are int64 with -1 for NULL. ``shares``, ``fractions`` and
    ``ceilings`` are (B, 3), for target, neighbour and background in that order.
    """

    gradcamo: Tensor
    mask_fraction: Tensor
    gradcamo_max: Tensor
    gradcamo_adjusted: Tensor
    neighbour_share: Tensor
    background_share: Tensor
    neighbour_fraction: Tensor
    looks_at: Tensor
    pointing_game: Tensor
    relevance_rank_accuracy: Tensor
    null_reason: Tensor
    shares: Tensor
    fractions: Tensor
    ceilings: Tensor


def decode(codes: Any, names: Sequence[str]) -> list[str | None]:
    """Convert codes (a tensor or an array) to names; -1 becomes None."""
    return [None if code < 0 else names[int(code)] for code in codes.tolist()]


def measure_overlap(cam: Tensor, regions: ProjectedRegions) -> Overlap:
    """Compute Grad-CAMO of localisation maps (arXiv 2403.17615), and adjust it for chance and the map's resolution.

    ``gradcamo`` = <L, U'M> / <L, U'1> is the share of the upsampled map inside the mask. It is a convex combination of
    r_i = (U'M)_i / (U'1)_i, so ``gradcamo_max`` = max r. An adjusted share is (share - fraction) / (ceiling -
    fraction): 0 at chance, 1 at the ceiling. ``looks_at`` is the region with the highest adjusted share, or ``none`` if
    no region exceeds chance by 0.05. Gradients flow through the shares to the map.

    Two measures depend only on the order of map voxels. ``pointing_game`` (Zhang et al., ECCV 2016) is 1 if the crop
    voxel at the centre of the brightest map voxel lies in the target. ``relevance_rank_accuracy`` (Arras et al., arXiv
    2003.07258) is the share of the mask covered by the brightest map voxels whose total volume equals the mask's; each
    counts with the part of its footprint inside the mask. At the crop's resolution both equal the published measures.

    These values are NULL (NaN, -1): every share, if the map or the mask is empty; the adjusted score, if the mask fills
    the crop or covers the same part of every map voxel; ``neighbour_share``, ``neighbour_fraction``,
    ``background_share`` and ``looks_at``, if neighbour masks are missing. A crop without neighbours has a neighbour
    share of 0, and ``looks_at`` does not consider neighbours.

    Args:
        cam: (B, *grid); negative values count as 0.
        regions: masks of the same cells, projected to the same grid.

    Raises:
        ExplainError: if maps and regions differ in shape.
    """
    if cam.shape != regions.coverage[:, 0].shape:
        problem = f"maps have shape {tuple(cam.shape)}, projected masks {tuple(regions.coverage[:, 0].shape)}"
        raise ExplainError(problem, "Pass one map and one mask per cell, both with a batch axis and on one grid.")
    mass = (cam.to(regions.footprint).clamp_min(0) * regions.footprint).flatten(1)
    total = mass.sum(1, keepdim=True)
    coverage = regions.coverage.flatten(2)
    ceilings = coverage.amax(2).maximum(regions.fractions)
    is_finite = torch.isfinite(total)
    has_mass = is_finite & (total > 0)
    parts = torch.einsum("bn,bcn->bc", mass, coverage)
    shares = torch.where(has_mass, parts / torch.where(has_mass, total, 1), torch.nan).minimum(ceilings)
    measured = _build_overlap(shares, regions.fractions, ceilings, is_finite[:, 0], regions.neighbours_known)
    is_scored = ~torch.isnan(measured.gradcamo)
    values = cam.detach().flatten(1)
    brightest = values.argmax(1, keepdim=True)
    hit = regions.centre_in_target.flatten(1).gather(1, brightest)[:, 0].to(total)
    rank_accuracy = _compute_rank_accuracy(values, regions.footprint.flatten(), coverage[:, 0], regions.fractions[:, 0])
    return replace(
        measured,
        pointing_game=torch.where(is_scored, hit, torch.nan),
        relevance_rank_accuracy=torch.where(is_scored, rank_accuracy, torch.nan),
    )


def _compute_rank_accuracy(cam: Tensor, footprint: Tensor, coverage: Tensor, fraction: Tensor) -> Tensor:
    """Compute the share of the mask covered by the brightest map voxels whose total volume equals the mask's: (B,).

    Voxels tied at the threshold count in part, so the order of voxels does not matter.

    Args:
        cam, coverage: (B, n).
        footprint: (n,), U'1.
        fraction: (B,), share of the crop that the mask fills.
    """
    mask_volume = (fraction * footprint.sum())[:, None]
    is_used = footprint > 0
    cam = torch.where(is_used, cam, -torch.inf)
    # Enough voxels even if all have the smallest footprint.
    smallest = torch.where(is_used, footprint, torch.inf).min()
    max_voxels = math.ceil(float(mask_volume.max() / smallest)) + 1
    brightest, order = cam.topk(min(max_voxels, cam.shape[1]), 1)
    below_volume = footprint[order].cumsum(1) < mask_volume * (1 - 1e-12)
    last = below_volume.sum(1, keepdim=True).clamp_max(order.shape[1] - 1)
    threshold = brightest.gather(1, last)
    above, tied = footprint * (cam > threshold), footprint * (cam == threshold)
    tied_share = (mask_volume - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).clamp_min(1e-300)
    covered = torch.addcmul(above, tied_share.clamp(0, 1), tied).mul_(coverage).sum(1)
    return covered / mask_volume[:, 0].clamp_min(1e-300)


def split_evidence(signed: Tensor, regions: ProjectedRegions) -> dict[str, Tensor]:
    """Split the evidence for (positive) or against the class by region: columns (B,) float64, in logits.

    A voxel whose footprint spans several regions is split in proportion, so the columns add to the map's sum. Without
    neighbour masks the evidence of neighbours and background is NaN.

    Args:
        signed: (B, *grid), the map before rectification.
    """
    parts = torch.einsum("bn,bcn->bc", signed.to(regions.coverage).flatten(1), regions.coverage.flatten(2))
    if not regions.neighbours_known:
        parts[:, 1:] = torch.nan
    return {f"evidence_{name}": parts[:, index] for index, name in enumerate(LOOKS_AT[:3])}


def average_overlaps(parts: Sequence[Overlap]) -> Overlap:
    """Compute the overlap of the mean of several maps per cell, each divided by its mass <L, U'1> first.

    Shares are linear in the map and the masses are equal, so the result is the mean of the shares. The ceiling is the
    mean of the ceilings, which each map can reach on its own. Empty maps are left out. Measures that depend on the
    order of voxels are NULL.
    """
    shares = torch.stack([part.shares for part in parts])
    ceilings = torch.stack([part.ceilings for part in parts])
    is_present = ~torch.isnan(shares[..., :1])
    any_present = is_present.any(0)
    is_finite = torch.stack([part.null_reason != NULL_REASONS.index("map is not finite") for part in parts]).all(0)
    ceilings = torch.where(is_present | ~any_present, ceilings, torch.nan).nanmean(0)
    neighbours_known = not bool(torch.isnan(parts[0].neighbour_fraction).any())
    shares = torch.where(is_finite[:, None], shares.nanmean(0), torch.nan)
    return _build_overlap(shares, parts[0].fractions, ceilings, is_finite, neighbours_known)


def _build_overlap(
    shares: Tensor, fractions: Tensor, ceilings: Tensor, is_finite: Tensor, neighbours_known: bool
) -> Overlap:
    """Build all columns from shares (NaN for an empty map), fractions and ceilings, each (B, 3)."""
    null = torch.full_like(shares[:, 0], torch.nan)
    has_mask, fills_crop = fractions[:, 0] > 0, fractions[:, 0] == 1
    shares = torch.where(has_mask[:, None], shares, torch.nan)
    is_empty = torch.isnan(shares[:, 0])
    target = torch.where(fills_crop & ~is_empty, 1.0, shares[:, 0])
    ceilings = torch.cat((torch.where(fills_crop, 1.0, ceilings[:, 0])[:, None], ceilings[:, 1:]), 1)
    neighbour = torch.where(fractions[:, 1] > 0, shares[:, 1], torch.where(is_empty, torch.nan, 0.0))
    background = (1 - target - neighbour).clamp_min(0)
    shares = torch.stack((target, neighbour, background), 1)

    headroom = ceilings - fractions
    is_resolved = (fractions > 0) & (headroom > _MIN_HEADROOM * ceilings) & ~is_empty[:, None]
    adjusted = torch.where(is_resolved, (shares - fractions) / torch.where(is_resolved, headroom, 1), torch.nan)
    best, region = adjusted.nan_to_num(nan=-torch.inf).max(1)
    looks_at = torch.where(best > CHANCE_MARGIN, region, LOOKS_AT.index("none"))
    looks_at = torch.where(is_resolved.any(1) & neighbours_known, looks_at, -1)
    # In the order of NULL_REASONS; the first reason that applies wins.
    reasons = (~has_mask, ~is_finite, is_empty, fills_crop, ~is_resolved[:, 0])
    null_reason = torch.full_like(looks_at, -1)
    for code, applies in reversed([*enumerate(reasons)]):
        null_reason = torch.where(applies, code, null_reason)
    return Overlap(
        gradcamo=target,
        mask_fraction=fractions[:, 0],
        gradcamo_max=ceilings[:, 0],
        gradcamo_adjusted=adjusted[:, 0],
        neighbour_share=neighbour if neighbours_known else null,
        background_share=background if neighbours_known else null,
        neighbour_fraction=fractions[:, 1] if neighbours_known else null,
        looks_at=looks_at,
        # ``measure_overlap`` fills in the measures that depend on the order of map voxels.
        pointing_game=null,
        relevance_rank_accuracy=null,
        null_reason=null_reason,
        shares=shares,
        fractions=fractions,
        ceilings=ceilings,
    )
