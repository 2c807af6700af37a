"""Augmentation that keeps to what a microscope could have seen.

Crops are mirrored, turned in plane, shifted by a slice, and lit a little differently stain by stain. A crop turns about
its own axis, where its target is and from which the shipped encoder measures distance; it is never moved in plane.
Channels keep their places, and z is never exchanged with y or x: stains and resolution differ there.

Draws come from torch's default generator, so ``torch.manual_seed`` repeats them.
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
    unlit: int = 0,
) -> Tensor:
    """A changed copy of standardised crops (B, C, Z, Y, X); each crop has draws of its own.

    Args:
        unlit: channels at the end, masks for example, that are moved only.
        flip: chance of a mirror image along each axis and, where crops are square, of y and x exchanged: at 0.5 every
            quarter turn and mirror image is as likely. These move voxels and interpolate nothing.
        rotate: chance of a turn by any angle. shift_z: chance of a shift by one slice, up or down.
        gain, offset: deviation of a factor and of a term a crop and stain. noise: deviation of a term a voxel.
    """
    count, square = len(images), images.shape[-1] == images.shape[-2]
    flips = (torch.rand(count, 4) < flip).tolist()
    steps = torch.where(torch.rand(count) < shift_z, torch.randint(2, (count,)) * 2 - 1, 0).tolist()
    crops = []
    for image, (*axes, exchange), step in zip(images, flips, steps, strict=True):
        image = image.flip([axis for axis, drawn in zip((-3, -2, -1), axes, strict=True) if drawn])
        image = image.transpose(-1, -2) if exchange and square else image
        crops.append(shifted(image, step) if step else image)
    images = torch.stack(crops)
    angles = torch.rand(count) * 2 * math.pi
    chosen = torch.nonzero(torch.rand(count) < rotate).flatten().to(images.device)
    if len(chosen):
        images[chosen] = rotated(images[chosen], angles.to(images.device)[chosen])
    lit = images[:, : images.shape[1] - unlit]
    of_stains = (*lit.shape[:2], 1, 1, 1)
    lit.mul_((1 + gain * torch.randn(of_stains)).to(images)).add_((offset * torch.randn(of_stains)).to(images))
    if noise:
        lit.add_(torch.randn_like(lit), alpha=noise)
    return images


def shifted(images: Tensor, step: int) -> Tensor:
    """(..., Z, Y, X) as seen with the focus ``step`` slices higher; the last slice is repeated where the stack ends."""
    depth = images.shape[-3]
    return images[..., (torch.arange(depth, device=images.device) + step).clamp(0, depth - 1), :, :]


def rotated(images: Tensor, angles: Tensor) -> Tensor:
    """(B, C, Z, Y, X) turned in plane about the crop's axis by (B,) radians, in the sense of ``torch.rot90``.

    Bilinear. What comes in from outside the crop is 0, the plate's background in standardised crops.
    """
    height, width = images.shape[-2:]
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid counts in half sides, which differ in y and x where a crop is not square.
    matrix = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(images), 1, height, width], align_corners=False)
    return F.grid_sample(images.flatten(1, 2), grid, align_corners=False).view_as(images)
