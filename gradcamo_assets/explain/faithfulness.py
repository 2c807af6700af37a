"""Is the map to be believed? What the network does when its weights or its image are changed, beside what the map says.

Here: tensors in, numbers out. Not here: choosing cells, storing rows.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.maps import Layer
from gradcamo_assets.explain.overlap import LOOKS_AT, overlap, project_regions
from gradcamo_assets.explain.result import GradcamoResult
from gradcamo_assets.explain.score import gradcamo
from gradcamo_assets.explain.swap_test import Response, respond, swap_test

REGIONS = LOOKS_AT[:3]
_TRIES = 24
"""Shifted copies of other crops that are laid under a crop before what is still open gets their median."""


def randomised(model: nn.Module, share: float = 1.0, seed: int = 0) -> nn.Module:
    """A copy of the network whose weights are shuffled, from the head downwards: cascading randomisation.

    Adebayo et al., NeurIPS 2018, arXiv 1810.03292. Each tensor keeps its own values in another order, so activations
    keep their scale whatever the network is made of.

    Args:
        share: of the modules that have weights, counted from the last; at least one.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    weighted = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    with torch.no_grad():
        for module in weighted[::-1][: max(1, round(share * len(weighted)))]:
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def chance_adjusted(maps: Tensor, target_masks: Tensor, others: int = 4) -> np.ndarray:
    """What ``gradcamo_adjusted`` is by chance, (B,): the mean over the same maps under other cells' masks.

    Args:
        maps: (B, *grid). target_masks: (B, *crop). others: masks each map is held against, those of the next cells.
    """
    shifts = range(1, min(others, len(maps) - 1) + 1)
    scores = [
        overlap(maps, project_regions(target_masks.roll(shift, 0), None, maps.shape[1:])).gradcamo_adjusted
        for shift in shifts
    ]
    return torch.stack(scores).nanmean(0).cpu().numpy() if scores else np.full(len(maps), np.nan)


def background_of_others(images: Tensor, occupied: Tensor, seed: int = 0) -> Tensor:
    """Crops in which nothing is left but the background of the others, in the same slice: (B, C, \\*crop).

    Each is laid out with randomly shifted copies of the other crops, their cells left out; what stays open gets the
    median background of its channel and slice.

    Args:
        images: (B, C, *crop), 2D or 3D. occupied: (B, *crop) bool, where cells are.

    Raises:
        ExplainError: for fewer than two crops, or where none has background.
    """
    if len(images) < 2:
        raise ExplainError("one crop has no other crops' background", "Pass at least two crops.")
    if bool(occupied.all()):
        raise ExplainError("no crop has background", "Pass crops that are larger than their cells.")
    rng = np.random.default_rng(seed)
    made = _median_background(images, occupied).expand(images.shape).clone()
    still_open = torch.ones_like(occupied)
    for number in range(_TRIES):
        shift = (number % (len(images) - 1) + 1, *(int(rng.integers(size)) for size in images.shape[-2:]))
        axes = (0, images.ndim - 2, images.ndim - 1)
        usable = still_open & ~occupied.roll(shift, tuple(axis - (axis > 0) for axis in axes))
        made = torch.where(usable[:, None], images.roll(shift, axes), made)
        still_open &= ~usable
        if not bool(still_open.any()):
            break
    return made


def _median_background(images: Tensor, occupied: Tensor) -> Tensor:
    """(1, C, [Z,] 1, 1): median over the background of all crops by channel and slice; over all slices where one is
    full of cells."""
    hidden = torch.where(occupied[:, None], torch.nan, images)
    whole = hidden.transpose(0, 1).flatten(1).nanmedian(1).values
    slices = hidden.movedim((0, -2, -1), (-3, -2, -1)).flatten(-3).nanmedian(-1).values
    whole = whole.reshape(-1, *(1,) * (slices.ndim - 1)).expand_as(slices)
    return torch.where(torch.isnan(slices), whole, slices)[None, ..., None, None]


class Curves(NamedTuple):
    """Probability of the class while voxels go (``deletion``) or come (``insertion``), the map's brightest first.

    Both (steps + 1, B), at ``fraction`` (steps + 1,) of the crop's voxels. Petsiuk et al., BMVC 2018, arXiv 1806.07421.
    The areas below them, (B,): low (deletion) where the map shows what the class rests on, high (insertion) where it
    shows what suffices.
    """

    fraction: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    deletion_auc: np.ndarray
    insertion_auc: np.ndarray


def deletion_insertion(
    model: nn.Module, images: Tensor, blank: Tensor, maps: Tensor, layer: Layer, classes: Tensor, steps: int = 10
) -> Curves:
    """Deletion and insertion curves in 2D or 3D.

    Args:
        images, blank: (B, C, *crop), the crops and what takes the place of their voxels (``background_of_others``).
        maps: (B, *grid), upsampled linearly to the crop. classes: (B,), whose probability is followed.
        steps: their share of the crop grows quadratically, since cells are small.
    """
    crop = images.shape[2:]
    mode = "bilinear" if len(crop) == 2 else "trilinear"
    fine = nn.functional.interpolate(maps[:, None].float(), size=crop, mode=mode, align_corners=False)
    place = fine.flatten(1).argsort(1, descending=True).argsort(1).reshape(len(images), 1, *crop)
    fraction = np.linspace(0, 1, steps + 1) ** 2
    curves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in fraction:
        inside = place < part * place[0].numel()
        for curve, (there, elsewhere) in zip(curves, ((blank, images), (images, blank)), strict=True):
            seen = respond(model, torch.where(inside, there, elsewhere), layer)
            curve.append(seen.logits.softmax(1).gather(1, classes[:, None])[:, 0].cpu().numpy())
    deletion, insertion = (np.stack(curve) for curve in curves)
    areas = (np.trapezoid(curve, fraction, axis=0) for curve in (deletion, insertion))
    return Curves(fraction, deletion, insertion, *areas)


def audit(
    model: nn.Module,
    images: Tensor,
    target_masks: Tensor,
    layer: Layer,
    neighbour_masks: Tensor,
    seed: int = 0,
    treatments: Sequence[Hashable] | None = None,
) -> tuple[GradcamoResult, dict[str, np.ndarray]]:
    """Score B cells and hold the score against what the network does: the result, and further columns, (B,) each.

    ``logit_drop_<region>``: how far the logit of the predicted class falls, and ``embedding_move_<region>``: how far
    the embedding turns (cosine distance), when the region gets other crops' background; NaN where the crop has none of
    it. ``effect_target``: the target's part of the absolute drops. What ``causal.swap_test`` says of the two swaps, and
    the same drops where target and neighbours get the background at once. ``deletion_auc``, ``insertion_auc``: of the
    map.
    ``randomised_adjusted``: ``gradcamo_adjusted`` with all weights shuffled; ``randomised_chance``: of the same maps
    under other cells' masks.

    Args:
        images: (B, C, Y, X) or (B, C, Z, Y, X), of B >= 2 cells of a plate. target_masks, neighbour_masks: as in
            ``gradcamo``. layer: one layer. treatments: of each cell, for the swaps; by default what was predicted.

    Raises:
        ExplainError: as ``gradcamo`` and ``background_of_others`` do.
    """
    scored = gradcamo(model, images, target_masks, layer, neighbour_masks)
    classes = torch.as_tensor(scored.predicted_class, device=images.device)
    target = target_masks.bool()
    neighbours = neighbour_masks.bool() & ~target
    regions = dict(zip(REGIONS, (target, neighbours, ~(target | neighbours)), strict=True))
    blank = background_of_others(images, target | neighbours, seed)
    intact = Response(scored.logits.float(), scored.embedding)
    columns: dict[str, np.ndarray] = {}
    for name, region in regions.items():
        changed = intact.changes(respond(model, torch.where(region[:, None], blank, images), layer), classes)
        there = region.flatten(1).any(1)
        for what in ("logit_drop", "embedding_move"):
            columns[f"{what}_{name}"] = torch.where(there, changed[what], torch.nan).cpu().double().numpy()
    drops = np.abs(np.nan_to_num(np.stack([columns[f"logit_drop_{name}"] for name in REGIONS])))
    with np.errstate(invalid="ignore"):
        columns["effect_target"] = np.where(np.isnan(columns["logit_drop_target"]), np.nan, drops[0] / drops.sum(0))
    groups = classes.tolist() if treatments is None else treatments
    columns |= swap_test(model, images, target, neighbours, layer, intact, groups, seed)
    bare = respond(model, torch.where((target | neighbours)[:, None], blank, images), layer)
    for what, values in intact.changes(bare, classes).items():
        columns[f"{what}_background_only"] = values.cpu().double().numpy()
    curves = deletion_insertion(model, images, blank, scored.cam, layer, classes)
    columns |= {"deletion_auc": curves.deletion_auc, "insertion_auc": curves.insertion_auc}
    shuffled = gradcamo(
        randomised(model, seed=seed), images, target_masks, layer, neighbour_masks, target=classes.tolist()
    )
    columns["randomised_adjusted"] = shuffled.gradcamo_adjusted
    columns["randomised_chance"] = chance_adjusted(shuffled.cam, target.to(shuffled.cam.device))
    return scored, columns


def rank_correlation(score: Sequence[float] | np.ndarray, effect: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation of a score with a measured effect over cells; NaN where fewer than three have both."""
    from scipy.stats import spearmanr

    pairs = np.stack([np.asarray(score, float), np.asarray(effect, float)])
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    if pairs.shape[1] < 3 or (pairs == pairs[:, :1]).all(1).any():
        return float("nan")
    return float(spearmanr(*pairs).statistic)
