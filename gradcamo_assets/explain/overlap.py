"""Measure the overlap of low-resolution maps with full-resolution masks without upsampling the maps.

The linear upsampler U (align_corners=False) is a matrix. The share of an upsampled map L inside a mask M is therefore
``sum(U L * M) / sum(U L) = <L, U'M> / <L, U'1>``: the mask is projected to the map's grid once, with one small matrix
per axis. U is rational, so the projection of a binary mask is an exact sum of integers, divided once. Networks and
gradients do not appear here.
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
"""Meaning of the codes 0 to 4 in ``Overlap.null_reason``; -1 is NULL. With the last two the score itself is valid."""

CHANCE_MARGIN = 0.05
"""Smallest adjusted share of a region that ``looks_at`` reports."""

_LARGEST_IN_FLOAT32, _LARGEST_IN_BYTE = 1 << 24, (1 << 8) - 1
"""Largest integer up to which float32 or a byte holds every integer."""

_MIN_HEADROOM = 1e-5
"""Smallest relative distance between ceiling and chance. Below it the map cannot resolve the region."""


@dataclass(frozen=True)
class _Axis:
    """torch's linear upsampler of one axis in integers.

    Attributes:
        weights: (grid, crop) int64, U' times the divisor.
        divisor: smallest number that makes all weights integers.
        largest_sum: largest sum of one map voxel's weights.
        first: the first map voxel that each crop voxel reads; it reads no other than the next one besides.
    """

    weights: Tensor
    divisor: int
    largest_sum: int
    first: tuple[int, ...]


@lru_cache(maxsize=256)
def _upsampler_axis(grid: int, crop: int) -> _Axis:
    """Build the upsampler of one axis (align_corners=False).

    Crop voxel i has the map coordinate ((2i + 1) grid / crop - 1) / 2, limited to the first and the last map voxel, so
    its two weights are multiples of 1 / (2 crop).
    """
    with torch.inference_mode(False):
        position = ((2 * torch.arange(crop) + 1) * grid - crop).clamp(0, 2 * crop * (grid - 1))
        first, part = position // (2 * crop), position % (2 * crop)
        weights = torch.zeros(grid, crop, dtype=torch.int64)
        weights.scatter_add_(0, first[None], 2 * crop - part[None])
        weights.scatter_add_(0, (first + 1).clamp_max(grid - 1)[None], part[None])
        common = math.gcd(*weights.flatten().tolist())
        weights //= common
    return _Axis(weights, 2 * crop // common, int(weights.sum(1).max()), tuple(first.tolist()))


@lru_cache(maxsize=256)
def _axis_matrix(grid: int, crop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _upsampler_axis(grid, crop).weights.to(device, dtype)


def project_mask(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Project masks to a map's grid, U'M: (B, \\*grid) float64.

    Each value is the part of a map voxel's footprint inside the mask, in crop voxels: for a boolean mask the exact
    value, rounded once.

    Args:
        mask: (B, *crop), bool, integer or float; 2D or 3D.
        grid: shape of the map, one size per axis of the crop. Any size works, including 1 and sizes above the crop's.

    Raises:
        ExplainError: if mask and grid differ in the number of axes.
    """
    if mask.ndim != len(grid) + 1:
        problem = f"a mask of shape {tuple(mask.shape)} cannot be projected to a map of shape {tuple(grid)}"
        raise ExplainError(problem, "Pass a mask with a batch axis and as many spatial axes as the map.")
    return _sum_weights(mask, grid) / _divisor(grid, mask.shape[1:])


def _divisor(grid: Sequence[int], crop: Sequence[int]) -> int:
    """Return what the sums of integer weights are divided by to give U'M."""
    return math.prod(_upsampler_axis(*sizes).divisor for sizes in zip(grid, crop, strict=True))


def _sum_weights(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Sum the integer weights of the upsampler over masks: (B, \\*grid) float64.

    One matrix product per axis adds integers from 0 on. For a boolean mask, no partial sum exceeds ``bound``, the
    product of ``largest_sum`` so far. Up to 2^24 float32 is therefore exact in any order of summation, and float64 is
    up to 2^53 (behind that it is accurate to 1e-15). As long as sums fit into a byte, two neighbouring voxels are
    summed as one 16-bit number: no sum of the lower byte carries into the upper one.
    """
    crop, rows = mask.shape[1:], len(grid) - 1
    is_binary = mask.dtype == torch.bool
    projected = torch.zeros(len(mask), *grid, dtype=torch.float64, device=mask.device)
    box = _find_box(mask) if is_binary else [slice(0, length) for length in crop]
    if not box:
        return projected
    values = (mask.contiguous().view(torch.uint8) if is_binary else mask)[:, *box]
    # Products in TF32 or bfloat16 round what float32 holds.
    is_rounded = not is_binary or torch.get_float32_matmul_precision() != "highest"
    bound, reached = 1, list(box)
    with torch.autocast(mask.device.type, enabled=False):
        # Rows first: their sums are the small ones, and the product needs no copy.
        for axis in (rows, *range(1, rows), len(grid)):
            size, length, side = grid[axis - 1], crop[axis - 1], box[axis - 1]
            if size == length:
                continue
            upsampler = _upsampler_axis(size, length)
            bound *= upsampler.largest_sum
            dtype = torch.float64 if is_rounded or bound > _LARGEST_IN_FLOAT32 else torch.float32
            reached[axis - 1] = slice(upsampler.first[side.start], min(upsampler.first[side.stop - 1] + 2, size))
            matrix = _axis_matrix(size, length, dtype, mask.device)[reached[axis - 1], side]
            if axis == len(grid):
                values = values.to(dtype) @ matrix.T
                continue
            in_pairs = values.dtype == torch.uint8 and bound <= _LARGEST_IN_BYTE and crop[-1] % 2 == 0
            if in_pairs:
                values = values.view(torch.uint16)
            sums = matrix @ values.to(dtype).reshape(*values.shape[: axis + 1], -1)
            values = sums.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :])
            if in_pairs:
                values = values.to(torch.uint16).view(torch.uint8)
    projected[:, *reached] = values.to(torch.float64)
    return projected


def _find_box(mask: Tensor) -> list[slice]:
    """Find the box that holds the voxels of all masks; its last side begins and ends at even voxels. Empty if none."""
    occupied = mask.view(torch.uint8).amax(0)
    lines = [occupied.movedim(axis, 0).flatten(1).amax(1) for axis in range(occupied.ndim)]
    box = []
    for line in torch.cat(lines).cpu().split([*occupied.shape]):
        (voxels,) = line.numpy().nonzero()
        if not len(voxels):
            return []
        box.append(slice(int(voxels[0]), int(voxels[-1]) + 1))
    box[-1] = slice(box[-1].start // 2 * 2, min(-(-box[-1].stop // 2) * 2, occupied.shape[-1]))
    return box


@lru_cache(maxsize=64)
def _sum_all_weights(crop: tuple[int, ...], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the sums of integer weights over the whole crop: (\\*grid) float64."""
    with torch.inference_mode(False):
        return _sum_weights(torch.ones(1, *crop, dtype=torch.bool, device=device), grid)[0]


@lru_cache(maxsize=64)
def compute_footprint(crop: tuple[int, ...], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Return each map voxel's footprint in crop voxels, U'1: (\\*grid) float64. It sums to the voxels of the crop."""
    with torch.inference_mode(False):
        return _sum_all_weights(crop, grid, device) / _divisor(grid, crop)


@lru_cache(maxsize=64)
def _centre_voxels(crop: tuple[int, ...], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the index, in the flattened crop, of the voxel at each map voxel's centre: (n,) int64."""
    with torch.inference_mode(False):
        index = torch.zeros((), dtype=torch.int64)
        for size, length in zip(grid, crop, strict=True):
            index = index[..., None] * length + (2 * torch.arange(size) + 1) * length // (2 * size)
        return index.flatten().to(device)


@dataclass(frozen=True)
class ProjectedRegions:
    """Target, neighbours and background of B crops, projected to a map's grid.

    Attributes:
        coverage: (B, 3, *grid) float64, r_i: share of voxel i's footprint inside each region. The shares add to 1.
        footprint: (*grid) float64, U'1.
        fractions: (B, 3) float64, share of the crop that each region fills.
        centre_in_target: (B, *grid) uint8, 1 if the crop voxel at the map voxel's centre lies in the target.
        neighbours_known: False without neighbour masks; neighbours then count as background.
    """

    coverage: Tensor
    footprint: Tensor
    fractions: Tensor
    centre_in_target: Tensor
    neighbours_known: bool = True


def project_regions(target: Tensor, neighbours: Tensor | None, grid: Sequence[int]) -> ProjectedRegions:
    """Project the masks of B crops to a map's ``grid``.

    Args:
        target: (B, *crop), 1 in the target cell, else 0; any dtype.
        neighbours: the same for other cells, or None if unknown. The target wins where masks overlap.

    Raises:
        ExplainError: if a mask contains values other than 0 and 1, or its axes do not match the map's.
    """
    crop, grid = tuple(target.shape[1:]), tuple(grid)
    inside = _as_binary(target, "target masks")
    sums = torch.zeros(len(target), 3, *grid, dtype=torch.float64, device=target.device)
    sums[:, 0] = _sum_weights(inside, grid)
    if neighbours is not None:
        sums[:, 1] = _sum_weights(_as_binary(neighbours, "neighbour masks") > inside, grid)
    # In a map finer than its crop the upsampler skips some voxels. These count as background.
    whole = _sum_all_weights(crop, grid, target.device).clamp_min(1)
    sums[:, 2] = whole - sums[:, 0] - sums[:, 1]
    # The two weights of a crop voxel add to the divisor, so the sums keep the number of voxels.
    voxels = (sums[:, :2].flatten(2).sum(2) / _divisor(grid, crop)).round()
    centres = inside.flatten(1).index_select(1, _centre_voxels(crop, grid, target.device))
    voxels = torch.cat([voxels, math.prod(crop) - voxels.sum(1, keepdim=True)], 1)
    return ProjectedRegions(
        coverage=sums / whole,
        footprint=compute_footprint(crop, grid, target.device),
        fractions=voxels / math.prod(crop),
        centre_in_target=centres.view(torch.uint8).unflatten(1, grid),
        neighbours_known=neighbours is not None,
    )


def _as_binary(mask: Tensor, name: str) -> Tensor:
    """Return a mask as booleans."""
    if mask.dtype == torch.bool:
        return mask
    inside = mask != 0
    if not bool((inside == mask).all()):
        remedy = "Pass one binary mask per cell, for example labels == label."
        raise ExplainError(f"{name} contain values other than 0 and 1", remedy)
    return inside


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
