"""Project masks to the grid of a low-resolution map, exactly.

U' is the transpose of torch's linear upsampler U (align_corners=False), one small matrix per axis. U is rational, so
the projection U'M of a binary mask M is an exact sum of integers, divided once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gradcamo_assets.errors import ExplainError

_LARGEST_IN_FLOAT32, _LARGEST_IN_BYTE = 1 << 24, (1 << 8) - 1
"""Largest integer up to which float32 or a byte holds every integer."""


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
