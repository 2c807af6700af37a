"""The overlap of a low-resolution map with full-resolution masks, without ever upsampling the map.

The linear upsampler U (align_corners=False) is a matrix, so the share of an upsampled map L inside a mask M is
``sum(U L * M) / sum(U L) = <L, U'M> / <L, U'1>``: the mask is projected down once, by one small matrix an axis.

Here: that algebra and the columns that follow from it. Not here: networks, gradients, or how L came to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gradcamo_assets.errors import ExplainError

LOOKS_AT = ("target", "neighbour", "background", "none")
"""Meaning of the codes 0 to 3 in ``Overlap.looks_at``; -1 is NULL."""

NULL_REASONS = ("empty mask", "map is not finite", "empty map", "mask fills the crop", "map too coarse for the mask")
"""Meaning of the codes 0 to 4 in ``Overlap.null_reason``; -1 is NULL. The last two leave the score itself standing."""

CHANCE_MARGIN = 0.05
"""A region must exceed chance by this much (adjusted share) before ``looks_at`` names it."""

_PIECE = 1 << 19
"""Voxels of a mask that are turned into floats at a time."""

_RESOLUTION = 1e-5
"""Ceilings closer to chance than this, relatively, are rounding: the map tells nothing about that region."""


@lru_cache(maxsize=256)
def _axis_matrix(grid: int, crop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The upsampler of one axis as a matrix (crop, grid). Made by torch's own upsampler, so any sizes agree with it."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(grid, dtype=torch.float64)[None]
        rows = torch.nn.functional.interpolate(unit, size=crop, mode="linear", align_corners=False)[0]
        return rows.T.contiguous().to(device, dtype)


def project_mask(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """U'M, (B, \\*grid) float64: how much of each map voxel's footprint lies in the mask, in crop voxels, to 1e-6.

    Args:
        mask: (B, *crop), bool, integer or float; 2D or 3D.
        grid: shape of the map, one size an axis of the crop; any sizes, 1 and finer than the crop included.

    Raises:
        ExplainError: where mask and grid differ in the number of axes.
    """
    if mask.ndim != len(grid) + 1:
        what = f"a mask of shape {tuple(mask.shape)} cannot be projected on a map of shape {tuple(grid)}"
        raise ExplainError(what, "Pass a mask with a batch axis and as many further axes as the map has.")
    # Twice as fast in float32, where its products are true ones: TF32 and bfloat16 would round U to three digits.
    exact = mask.dtype == torch.float64 or torch.get_float32_matmul_precision() != "highest"
    dtype = torch.float64 if exact else torch.float32
    with torch.autocast(mask.device.type, enabled=False):
        values = mask
        # The last axis first: its product is the largest. In pieces that stay in the cache as floats; the others from
        # the left, which needs no copy.
        for axis in range(len(grid), 0, -1):
            length, size = values.shape[axis], grid[axis - 1]
            if length == size:
                continue
            matrix = _axis_matrix(size, length, dtype, values.device)
            if axis == len(grid):
                pieces = values.reshape(-1, length).split(max(1, _PIECE // length))
                values = torch.cat([piece.to(dtype) @ matrix for piece in pieces]).reshape(*values.shape[:-1], size)
            else:
                flat = values.to(dtype).reshape(*values.shape[: axis + 1], -1)
                values = (matrix.T @ flat).reshape(*values.shape[:axis], size, *values.shape[axis + 1 :])
    return values.to(torch.float64)


@lru_cache(maxsize=64)
def footprint(crop: tuple[int, ...], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """U'1, (\\*grid) in float64: how many crop voxels each map voxel stands for. Sums to the voxels of the crop."""
    with torch.inference_mode(False), torch.no_grad():
        return project_mask(torch.ones(1, *crop, dtype=torch.float64, device=device), grid)[0]


@dataclass(frozen=True)
class Regions:
    """Target, neighbours and background of B crops as a map of one resolution sees them.

    Attributes:
        reach: (B, 3, *grid) float64, r_i: the share of voxel i's footprint that lies in each region; they add to 1.
        footprint: (*grid) float64, U'1.
        fraction: (B, 3) float64, share of the crop that each region fills.
        centre: (B, *grid) uint8, whether the crop voxel at the centre of each map voxel lies in the target.
        neighbours_known: False where no neighbour masks were given; their voxels then count as background.
    """

    reach: Tensor
    footprint: Tensor
    fraction: Tensor
    centre: Tensor
    neighbours_known: bool = True


def project_regions(target: Tensor, neighbours: Tensor | None, grid: Sequence[int]) -> Regions:
    """Project the masks of B crops on a map's ``grid``.

    Args:
        target: (B, *crop), 1 in the target cell, else 0; any dtype.
        neighbours: the same of other cells; the target wins where they overlap. None: not known.

    Raises:
        ExplainError: where a mask holds other values than 0 and 1, or has not the map's axes.
    """
    crop = target.shape[1:]
    area = footprint(tuple(crop), tuple(grid), target.device)
    inside = _bytes(target, "target masks")
    others = None if neighbours is None else (_bytes(neighbours, "neighbour masks") > inside).view(torch.uint8)
    reach: list[Tensor] = []
    fraction: list[Tensor] = []
    for mask in (inside, others):
        projected = torch.zeros_like(reach[0]) if mask is None else project_mask(mask, grid)
        # A voxel that the upsampler never reads (a map finer than its crop) belongs to no region but the background.
        reach.append(torch.where(area > 0, projected / area.clamp_min(1e-300), 0).clamp(0, 1))
        # The rows of U add to 1, so the projection keeps the mask's number of voxels.
        fraction.append(projected.flatten(1).sum(1).round() / math.prod(crop))
    for known in (reach, fraction):
        known.append((1 - known[0] - known[1]).clamp_min(0))
    centre = inside
    for axis, (size, length) in enumerate(zip(grid, crop, strict=True), start=1):
        middles = (torch.arange(size, device=target.device) * 2 + 1) * length // (2 * size)
        centre = centre.index_select(axis, middles)
    return Regions(torch.stack(reach, 1), area, torch.stack(fraction, 1), centre, neighbours is not None)


def _bytes(mask: Tensor, name: str) -> Tensor:
    """A binary mask as bytes: they turn into floats, and multiply, much faster than booleans do."""
    inside = mask if mask.dtype == torch.bool else mask != 0
    if inside is not mask and not bool((inside == mask).all()):
        remedy = "Pass one binary mask a cell, for example labels == label."
        raise ExplainError(f"{name} hold other values than 0 and 1", remedy)
    return inside.view(torch.uint8)


@dataclass(frozen=True)
class Overlap:
    """Where B maps lie. Float columns are float64 on the map's device with NaN for NULL; codes are int64, -1 is NULL.

    ``shares``, ``fractions`` and ``ceilings`` (B, 3) hold the same for target, neighbour and background, in that order.
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


def named(codes: Any, names: Sequence[str]) -> list[str | None]:
    """Codes (a tensor or an array) as their names, -1 as None."""
    return [None if code < 0 else names[int(code)] for code in codes.tolist()]


def overlap(cam: Tensor, regions: Regions) -> Overlap:
    """Grad-CAMO of localisation maps (arXiv 2403.17615), with what chance and the map's resolution allow.

    ``gradcamo`` = <L, U'M> / <L, U'1>, the share of the upsampled map in the mask; a convex combination of
    r_i = (U'M)_i / (U'1)_i, hence ``gradcamo_max`` = max r. An adjusted share is (share - fraction) / (ceiling -
    fraction): 0 at chance, 1 at the ceiling. ``looks_at`` is the region with the highest adjusted share, ``none`` where
    no region exceeds chance by 0.05. Gradients flow to the map, through the shares.

    Two measures that look at the order of map voxels only: ``pointing_game`` (Zhang et al., ECCV 2016), 1 where the
    crop voxel at the centre of the brightest one lies in the target; and ``relevance_rank_accuracy`` (Arras et al.,
    arXiv 2003.07258), the share of the mask that the brightest ones of the mask's volume cover, each counted by the
    part of its footprint in the mask. On a map of the crop's own grid they are the published ones.

    NULL (NaN, -1) stands where there is no answer: every share of an empty map or mask; the adjusted score where the
    mask fills the crop or every map voxel sees the same part of it; and, where no neighbour masks are given,
    ``neighbour_share``, ``neighbour_fraction``, ``background_share`` and ``looks_at``, since what lies outside the
    target may be either. A crop without neighbours has share 0 and they are no candidate for ``looks_at``.

    Args:
        cam: (B, *grid), not negative (negative values count as 0).
        regions: the masks of the same cells, projected on the same grid.

    Raises:
        ExplainError: where the two do not fit each other.
    """
    if cam.shape != regions.reach[:, 0].shape:
        what = f"maps are {tuple(cam.shape)} and projected masks {tuple(regions.reach[:, 0].shape)}"
        raise ExplainError(what, "Pass one map and one mask a cell, both with a batch axis and on one grid.")
    mass = (cam.to(regions.footprint).clamp_min(0) * regions.footprint).flatten(1)
    total = mass.sum(1, keepdim=True)
    reach = regions.reach.flatten(2)
    ceilings = reach.amax(2).maximum(regions.fraction)
    finite = torch.isfinite(total)
    there = finite & (total > 0)
    weights = torch.where(there, mass / torch.where(there, total, 1), torch.nan)
    shares = torch.einsum("bn,bcn->bc", weights, reach).clamp_min(0).minimum(ceilings)
    measured = _columns(shares, regions.fraction, ceilings, finite[:, 0], regions.neighbours_known)
    answered = ~torch.isnan(measured.gradcamo)
    values = cam.detach().to(regions.footprint).flatten(1)
    hit = regions.centre.flatten(1).gather(1, values.argmax(1, keepdim=True))[:, 0].to(values)
    rank = _rank_accuracy(values, regions.footprint.flatten(), reach[:, 0], regions.fraction[:, 0])
    return replace(
        measured,
        pointing_game=torch.where(answered, hit, torch.nan),
        relevance_rank_accuracy=torch.where(answered, rank, torch.nan),
    )


def _rank_accuracy(cam: Tensor, area: Tensor, reach: Tensor, fraction: Tensor) -> Tensor:
    """The share of the mask's volume that the brightest map voxels, of the same volume together, cover of it: (B,).

    Voxels that tie for the last places count in part, so that the order of voxels does not matter.

    Args:
        cam, reach: (B, n). area: (n,), U'1. fraction: (B,), of the crop, that the mask fills.
    """
    wanted = (fraction * area.sum())[:, None]
    cam = cam.masked_fill(area == 0, -torch.inf)
    # As many as can be needed, should all of them have the smallest footprint.
    most = math.ceil(float(wanted.max() / area[area > 0].min())) + 1
    brightest, order = cam.topk(min(most, cam.shape[1]), 1)
    last = (area[order].cumsum(1) < wanted * (1 - 1e-12)).sum(1, keepdim=True).clamp_max(order.shape[1] - 1)
    threshold = brightest.gather(1, last)
    above, tied = area * (cam > threshold), area * (cam == threshold)
    part = (wanted - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).clamp_min(1e-300)
    return ((above + part.clamp(0, 1) * tied) * reach).sum(1) / wanted[:, 0].clamp_min(1e-300)


def region_evidence(signed: Tensor, regions: Regions) -> dict[str, Tensor]:
    """What speaks for (positive) or against the class by region, (B,) float64 each, in logits, by column.

    A voxel whose footprint straddles regions is split as its footprint is, so the three add to the map's sum. Without
    neighbour masks the neighbours' and the background's are NaN.

    Args:
        signed: (B, *grid), un-rectified.
    """
    parts = torch.einsum("bn,bcn->bc", signed.to(regions.reach).flatten(1), regions.reach.flatten(2))
    if not regions.neighbours_known:
        parts[:, 1:] = torch.nan
    return {f"evidence_{name}": parts[:, index] for index, name in enumerate(LOOKS_AT[:3])}


def mean_overlap(parts: Sequence[Overlap]) -> Overlap:
    """The overlap of the mean of several maps a cell, each divided by its own mass <L, U'1> first.

    Shares are linear in the map and the masses are equal, so it is the mean of the shares; and so is the ceiling, which
    each map reaches on its own. Maps that are empty take no part. What depends on the order of voxels is NULL.
    """
    shares = torch.stack([part.shares for part in parts])
    ceilings = torch.stack([part.ceilings for part in parts])
    present = ~torch.isnan(shares[..., :1])
    some = present.any(0)
    finite = torch.stack([part.null_reason != NULL_REASONS.index("map is not finite") for part in parts]).all(0)
    ceilings = torch.where(present | ~some, ceilings, torch.nan).nanmean(0)
    known = not bool(torch.isnan(parts[0].neighbour_fraction).any())
    shares = torch.where(finite[:, None], shares.nanmean(0), torch.nan)
    return _columns(shares, parts[0].fractions, ceilings, finite, known)


def _columns(shares: Tensor, fractions: Tensor, ceilings: Tensor, finite: Tensor, neighbours_known: bool) -> Overlap:
    """The columns from shares (NaN where the map is empty), fractions and ceilings, each (B, 3)."""
    null = torch.full_like(shares[:, 0], torch.nan)
    masked, fills = fractions[:, 0] > 0, fractions[:, 0] == 1
    shares = torch.where(masked[:, None], shares, torch.nan)
    empty = torch.isnan(shares[:, 0])
    target = torch.where(fills & ~empty, 1.0, shares[:, 0])
    ceilings = torch.cat((torch.where(fills, 1.0, ceilings[:, 0])[:, None], ceilings[:, 1:]), 1)
    neighbour = torch.where(fractions[:, 1] > 0, shares[:, 1], torch.where(empty, torch.nan, 0.0))
    background = (1 - target - neighbour).clamp_min(0)
    shares = torch.stack((target, neighbour, background), 1)

    resolved = (fractions > 0) & (ceilings - fractions > _RESOLUTION * ceilings) & ~empty[:, None]
    adjusted = torch.where(resolved, (shares - fractions) / torch.where(resolved, ceilings - fractions, 1), torch.nan)
    best, region = adjusted.nan_to_num(nan=-torch.inf).max(1)
    looks_at = torch.where(best > CHANCE_MARGIN, region, LOOKS_AT.index("none"))
    looks_at = torch.where(resolved.any(1) & neighbours_known, looks_at, -1)
    reason = torch.full_like(looks_at, -1)
    for code, condition in reversed([*enumerate((~masked, ~finite, empty, fills, ~resolved[:, 0]))]):
        reason = torch.where(condition, code, reason)
    around = (neighbour, background, fractions[:, 1]) if neighbours_known else (null,) * 3
    measured = (target, fractions[:, 0], ceilings[:, 0], adjusted[:, 0], *around, looks_at)
    # In the order of the columns; what depends on the order of map voxels is filled in by ``overlap``.
    return Overlap(*measured, null, null, reason, shares, fractions, ceilings)
