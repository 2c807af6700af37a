"""Swapping surroundings in training: what stands round a cell must not tell its class.

Who lends surroundings is drawn without regard to class: were it always another class, surroundings would tell what the
cell is not. Draws come from torch's default generator, so ``torch.manual_seed`` repeats them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradcamo_assets.crops import NEIGHBOUR, TARGET
from gradcamo_assets.explain.surroundings import among_others, moved_to
from gradcamo_assets.learning.configuration import SwapKind


def hosts(wanted: Tensor, allowed: Tensor) -> Tensor:
    """For each crop another one to take surroundings from: (B,) index, -1 where none is wanted or allowed.

    Args:
        wanted: (B,) bool. allowed: (B, D) bool, whom each may take from.
    """
    able = wanted & allowed.any(1)
    drawn = torch.full((len(wanted),), -1)
    if bool(able.any()):
        drawn[able] = torch.multinomial(allowed[able].float(), 1)[:, 0]
    return drawn


def swap(
    images: Tensor,
    labels: Tensor,
    *,
    share: float,
    kind: SwapKind = "any",
    soften: int = 2,
    controls: Tensor | None = None,
    pool: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Crops and labels of which about ``share`` have been given other surroundings; the rest stay as they are.

    Args:
        images: (B, C, Z, Y, X), standardised. labels: (B, Z, Y, X) of ``BACKGROUND``, ``TARGET`` and ``NEIGHBOUR``;
            a crop without a target is never changed.
        kind: ``any``: all that is not the target comes from another crop; ``neighbours``: the neighbours do, and the
            background stays; ``controls``: as any, but from crops of control wells.
        soften: width of the seam in voxels.
        controls: (B,) bool, or (D,) where a pool is given: which are of control wells; asked for by ``controls``.
        pool: (D, C, Z, Y, X) and (D, Z, Y, X), crops of other plates and sites that lend in place of the batch.
    """
    count = len(images)
    lent, lent_labels = (images, labels) if pool is None else pool
    allowed = torch.ones(count, len(lent), dtype=torch.bool)
    if pool is None:
        allowed.fill_diagonal_(False)
    if kind == "controls":
        allowed &= torch.zeros(len(lent), dtype=torch.bool) if controls is None else controls.cpu()
    has_target = (labels == TARGET).flatten(1).any(1).cpu()
    source = hosts((torch.rand(count) < share) & has_target, allowed)
    rows = torch.nonzero(source >= 0).flatten()
    if not len(rows):
        return images, labels
    own, own_labels = images[rows], labels[rows]
    other, other_labels = lent[source[rows]], lent_labels[source[rows]]
    target, neighbours = own_labels == TARGET, other_labels == NEIGHBOUR
    if kind == "neighbours":
        made = among_others(own, target, own_labels == NEIGHBOUR, other, neighbours, soften)
    else:
        made = moved_to(own, target, other, other_labels == TARGET, neighbours, soften)
    seen = (neighbours & ~target) * NEIGHBOUR + target * TARGET
    images, labels = images.clone(), labels.clone()
    images[rows], labels[rows] = made, seen.to(labels.dtype)
    return images, labels
