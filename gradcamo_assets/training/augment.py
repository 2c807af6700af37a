"""Augment crops with changes that a microscope could produce.

Crops are mirrored, rotated in plane, shifted by one slice, changed in brightness stain by stain, and stains leak into
each other. A crop rotates about its centre, where its target is and from which the built-in encoder measures distance;
it is never translated in plane. Channels keep their order, and z is never exchanged with y or x, because stains and
resolution differ there.

Random numbers come from torch's default generator, so ``torch.manual_seed`` makes them reproducible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(
    images: Tensor,
    *,
    flip: float,
    rotate: float,
    shift_z: float,
    gain: float,
    offset: float,
    noise: float,
    crosstalk: float = 0.0,
    mask_channels: int = 0,
) -> Tensor:
    """Return an augmented copy of standardised crops (B, C, Z, Y, X); each crop gets its own random changes.

    Args:
        flip: probability of a mirror image along each axis and, for square crops, of exchanging y and x. At 0.5 all
            quarter turns and mirror images are equally likely. These changes move voxels without interpolation.
        rotate: probability of a rotation by any angle.
        shift_z: probability of a shift by one slice, up or down.
        gain: standard deviation of a factor, one per crop and stain.
        offset: standard deviation of a summand, one per crop and stain.
        noise: standard deviation of a summand per voxel.
        crosstalk: standard deviation of the share of one stain that is added to another, one per crop and pair of
            stains. Filters let stains through to each other, and unmixing may subtract too much.
        mask_channels: number of trailing channels that are moved but keep their values, such as masks.
    """
    count, is_square = len(images), images.shape[-1] == images.shape[-2]
    flips = (torch.rand(count, 4) < flip).tolist()
    steps = torch.where(torch.rand(count) < shift_z, torch.randint(2, (count,)) * 2 - 1, 0).tolist()
    crops = []
    for image, (*flip_axes, exchange_xy), step in zip(images, flips, steps, strict=True):
        image = image.flip([axis for axis, flipped in zip((-3, -2, -1), flip_axes, strict=True) if flipped])
        image = image.transpose(-1, -2) if exchange_xy and is_square else image
        crops.append(shift_slices(image, step) if step else image)
    images = torch.stack(crops)
    angles = torch.rand(count) * 2 * math.pi
    rotated = torch.nonzero(torch.rand(count) < rotate).flatten().to(images.device)
    if len(rotated):
        images[rotated] = rotate_in_plane(images[rotated], angles.to(images.device)[rotated])
    stains = images[:, : images.shape[1] - mask_channels]
    if crosstalk:
        pairs = torch.randn(count, stains.shape[1], stains.shape[1]) * (1 - torch.eye(stains.shape[1]))
        stains.add_(torch.einsum("bij,bjzyx->bizyx", (crosstalk * pairs).to(images), stains))
    per_stain = (*stains.shape[:2], 1, 1, 1)
    stains.mul_((1 + gain * torch.randn(per_stain)).to(images)).add_((offset * torch.randn(per_stain)).to(images))
    if noise:
        stains.add_(torch.randn_like(stains), alpha=noise)
    return images


def shift_slices(images: Tensor, step: int) -> Tensor:
    """Move the focus of (..., Z, Y, X) up by ``step`` slices; the end slice is repeated beyond the stack."""
    depth = images.shape[-3]
    return images[..., (torch.arange(depth, device=images.device) + step).clamp(0, depth - 1), :, :]


def rotate_in_plane(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate (B, C, Z, Y, X) in plane about the crop's centre by (B,) radians, in the direction of ``torch.rot90``.

    The interpolation is bilinear. Voxels from outside the crop are 0, the plate's background in standardised crops.
    """
    height, width = images.shape[-2:]
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid measures in half sides, which differ in y and x for a crop that is not square.
    matrix = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(images), 1, height, width], align_corners=False)
    return F.grid_sample(images.flatten(1, 2), grid, align_corners=False).view_as(images)
