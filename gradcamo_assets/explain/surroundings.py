"""A cell in another cell's surroundings: what swapping does to the pixels, in training and in the audit.

Slices keep their places: z is never shifted, so that a cell stays in the blur and at the height it was seen in, and the
centre of a target on the centre of a crop. Here: pixels, given who lends what to whom.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TRIES = 6
"""Shifts of a crop's own background that are laid into a hole before what is still open gets its mean."""


def soft_edge(mask: Tensor, width: int) -> Tensor:
    """A mask (B, \\*crop) as weights: 0 outside, 1 from ``width`` voxels inside its outline in plane, linear between.

    Nothing outside keeps any weight: a rim of the old background would tell what the swap is to hide.
    """
    if not width:
        return mask.float()
    planes = mask.float().flatten(0, -3)[:, None]
    blurred = torch.nn.functional.avg_pool2d(planes, 2 * width + 1, 1, width, count_include_pad=False)
    return (planes * (2 * blurred - 1).clamp_min(0)).view(mask.shape)


def cleared(images: Tensor, holes: Tensor, occupied: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Crops with ``holes`` filled with background of the same crop and slice.

    By copies of the crop shifted at random in plane; what no copy covers gets the mean background of channel and slice,
    or 0, the plate's background in standardised crops, where the slice has none.

    Args:
        images: (B, C, [Z,] Y, X). holes, occupied: (B, [Z,] Y, X) bool; occupied is where cells are.
    """
    made, place = images.clone(), holes.nonzero(as_tuple=True)
    # Channels last: one index names all channels of a voxel.
    source, goal = images.movedim(1, -1), made.movedim(1, -1)
    height, width = images.shape[-2:]
    for _ in range(_TRIES):
        if not len(place[0]):
            break
        # A quarter of the crop at least, or the shifted cell covers its own hole.
        down, right = (int(torch.randint(n // 4, n - n // 4, (), generator=generator)) for n in (height, width))
        origin = (*place[:-2], (place[-2] - down) % height, (place[-1] - right) % width)
        usable = ~occupied[origin]
        goal[tuple(axis[usable] for axis in place)] = source[tuple(axis[usable] for axis in origin)]
        place = tuple(axis[~usable] for axis in place)
    if not len(place[0]):
        return made
    free = ~occupied[:, None]
    mean = (images * free).sum((-2, -1), keepdim=True) / free.sum((-2, -1), keepdim=True).clamp_min(1)
    goal[place] = mean.expand_as(images).movedim(1, -1)[place]
    return made


def moved_to(
    images: Tensor,
    target: Tensor,
    hosts: Tensor,
    host_target: Tensor,
    host_neighbours: Tensor,
    soften: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each target in the surroundings of another crop, whose own target makes room: (B, C, [Z,] Y, X).

    Args:
        images, hosts: (B, C, [Z,] Y, X). target, host_target, host_neighbours: (B, [Z,] Y, X) bool.
        soften: width of the seam in voxels.
    """
    weight = soft_edge(target, soften)
    ground = cleared(hosts, host_target & (weight < 1), host_target | host_neighbours, generator)
    return torch.lerp(ground, images, weight[:, None].to(images))
