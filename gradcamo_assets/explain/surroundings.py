"""Transplant cells into the surroundings of other cells, for training and for the audit.

Nothing is shifted in z: a cell keeps its height and its blur, and a target stays at the crop's centre. Callers choose
which crops exchange cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_SHIFTS = 6
"""Shifted copies of a crop's background that are tried for a hole before the mean fills the rest."""


def soften_edges(mask: Tensor, width: int) -> Tensor:
    """Convert masks (B, \\*crop) to weights with a soft edge in plane.

    Weights are 0 outside the mask, 1 from ``width`` voxels inside its outline, and linear between. They are 0
    everywhere outside, since a rim of the old background would reveal the surroundings that the swap hides.
    """
    if not width:
        return mask.float()
    planes = mask.float().flatten(0, -3)[:, None]
    blurred = torch.nn.functional.avg_pool2d(planes, 2 * width + 1, 1, width, count_include_pad=False)
    return (planes * (2 * blurred - 1).clamp_min(0)).view(mask.shape)


def fill_with_background(
    images: Tensor, holes: Tensor, occupied: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Fill ``holes`` with background of the same crop and slice.

    Background is copied from the crop, shifted randomly in plane. Voxels that no copy covers get the mean background of
    their channel and slice. Without background in the slice they get 0, the plate's background in standardised crops.

    Args:
        images: (B, C, [Z,] Y, X).
        holes: (B, [Z,] Y, X) bool.
        occupied: (B, [Z,] Y, X) bool, voxels of cells.
    """
    filled, open_voxels = images.clone(), holes.nonzero(as_tuple=True)
    # Channels last, so that one index selects all channels of a voxel.
    source, destination = images.movedim(1, -1), filled.movedim(1, -1)
    height, width = images.shape[-2:]
    for _ in range(_MAX_SHIFTS):
        if not len(open_voxels[0]):
            break
        # Shift by at least a quarter of the crop, so that the cell does not cover its own hole.
        down, right = (int(torch.randint(n // 4, n - n // 4, (), generator=generator)) for n in (height, width))
        origin = (*open_voxels[:-2], (open_voxels[-2] - down) % height, (open_voxels[-1] - right) % width)
        is_background = ~occupied[origin]
        destination[tuple(axis[is_background] for axis in open_voxels)] = source[
            tuple(axis[is_background] for axis in origin)
        ]
        open_voxels = tuple(axis[~is_background] for axis in open_voxels)
    if not len(open_voxels[0]):
        return filled
    background = ~occupied[:, None]
    mean = (images * background).sum((-2, -1), keepdim=True) / background.sum((-2, -1), keepdim=True).clamp_min(1)
    destination[open_voxels] = mean.expand_as(images).movedim(1, -1)[open_voxels]
    return filled


def transplant_cells(
    images: Tensor,
    target: Tensor,
    hosts: Tensor,
    host_target: Tensor,
    host_neighbours: Tensor,
    soften: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Place each target into the surroundings of a host crop, whose own target is removed: (B, C, [Z,] Y, X).

    Args:
        images, hosts: (B, C, [Z,] Y, X).
        target, host_target, host_neighbours: (B, [Z,] Y, X) bool.
        soften: width of the soft edge in voxels.
    """
    weight = soften_edges(target, soften)
    surroundings = fill_with_background(hosts, host_target & (weight < 1), host_target | host_neighbours, generator)
    return torch.lerp(surroundings, images, weight[:, None].to(images))
