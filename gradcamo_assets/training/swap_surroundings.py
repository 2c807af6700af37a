"""Swapping surroundings in training: what stands round a cell must not tell its class.

Who lends surroundings is drawn without regard to class: were it always another class, surroundings would tell what the
cell is not. Draws come from torch's default generator, so ``torch.manual_seed`` repeats them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.explain.surroundings import transplant_cells


def swap(
    images: Tensor, labels: Tensor, *, share: float, soften: int = 2, pool: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Crops and labels of which about ``share`` have the surroundings of another crop; the rest stay as they are.

    Args:
        images: (B, C, Z, Y, X), standardised. labels: (B, Z, Y, X) of ``BACKGROUND``, ``TARGET`` and ``NEIGHBOUR``;
            a crop without a target is never changed.
        soften: width of the seam in voxels.
        pool: (D, C, Z, Y, X) and (D, Z, Y, X), crops of other plates and sites that lend in place of the batch.
    """
    count = len(images)
    lent, lent_labels = (images, labels) if pool is None else pool
    has_target = (labels == TARGET).flatten(1).any(1).cpu()
    rows = torch.nonzero((torch.rand(count) < share) & has_target).flatten()
    if not len(rows) or (pool is None and count == 1):
        return images, labels
    if pool is None:
        source = (rows + torch.randint(1, count, rows.shape)) % count
    else:
        source = torch.randint(len(lent), rows.shape)
    own, other, other_labels = images[rows], lent[source], lent_labels[source]
    target, neighbours = labels[rows] == TARGET, other_labels == NEIGHBOUR
    made = transplant_cells(own, target, other, other_labels == TARGET, neighbours, soften)
    seen = (neighbours & ~target) * NEIGHBOUR + target * TARGET
    images, labels = images.clone(), labels.clone()
    images[rows], labels[rows] = made, seen.to(labels.dtype)
    return images, labels
