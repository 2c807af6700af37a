"""Exchange the surroundings of cells in training, so that they do not predict the class.

Donors are drawn regardless of class: if donors always had another class, surroundings would exclude a class. Random
numbers come from torch's default generator, so ``torch.manual_seed`` makes them reproducible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.explain.surroundings import transplant_cells


def swap_surroundings(
    images: Tensor,
    labels: Tensor,
    *,
    share: float,
    soften: int = 2,
    alone: float = 0.0,
    pool: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Give about ``share`` of the crops the surroundings of another crop, and return new images and labels.

    Args:
        images: (B, C, Z, Y, X), standardised.
        labels: (B, Z, Y, X) with ``BACKGROUND``, ``TARGET`` and ``NEIGHBOUR``. A crop without a target never changes.
        share: probability that a crop changes.
        soften: width of the blended seam in voxels.
        alone: probability that the neighbours of a changed crop are removed too, so that its cell is alone.
        pool: donor images (D, C, Z, Y, X) and labels (D, Z, Y, X), for example of other plates; by default the other
            crops of the batch.
    """
    count = len(images)
    donor_images, donor_labels = (images, labels) if pool is None else pool
    has_target = (labels == TARGET).flatten(1).any(1).cpu()
    rows = torch.nonzero((torch.rand(count) < share) & has_target).flatten()
    if not len(rows) or (pool is None and count == 1):
        return images, labels
    if pool is None:
        donors = (rows + torch.randint(1, count, rows.shape)) % count
    else:
        donors = torch.randint(len(donor_images), rows.shape)
    target = labels[rows] == TARGET
    donor_target, donor_neighbours = donor_labels[donors] == TARGET, donor_labels[donors] == NEIGHBOUR
    is_alone = (torch.rand(len(rows)) < alone).to(labels.device).view(-1, *[1] * (labels.ndim - 1))
    donor_target, donor_neighbours = donor_target | (donor_neighbours & is_alone), donor_neighbours & ~is_alone
    swapped = transplant_cells(images[rows], target, donor_images[donors], donor_target, donor_neighbours, soften)
    swapped_labels = (donor_neighbours & ~target) * NEIGHBOUR + target * TARGET
    images, labels = images.clone(), labels.clone()
    images[rows], labels[rows] = swapped, swapped_labels.to(labels.dtype)
    return images, labels
