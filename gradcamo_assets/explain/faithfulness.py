"""Test the faithfulness of maps: compare them with the network's response to changed weights or changed images."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.maps import Layer
from gradcamo_assets.explain.overlap import LOOKS_AT, measure_overlap
from gradcamo_assets.explain.projection import project_regions
from gradcamo_assets.explain.result import GradcamoResult
from gradcamo_assets.explain.score import gradcamo
from gradcamo_assets.explain.swap_test import NetworkOutput, compute_swap_columns, run_network

REGIONS = LOOKS_AT[:3]
_MAX_SHIFTS = 24
"""Shifted copies of other crops that are tried before the median fills the rest."""


def randomise_weights(model: nn.Module, share: float = 1.0, seed: int = 0) -> nn.Module:
    """Return a copy of the network with shuffled weights, from the head downwards.

    This is the cascading randomisation of Adebayo et al., NeurIPS 2018, arXiv 1810.03292. Each tensor keeps its values
    in another order, so activations keep their scale in any architecture.

    Args:
        share: share of the modules with weights to shuffle, counted from the last; at least one module.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    with_weights = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    with torch.no_grad():
        for module in with_weights[::-1][: max(1, round(share * len(with_weights)))]:
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def compute_chance_level(maps: Tensor, target_masks: Tensor, others: int = 4) -> np.ndarray:
    """Compute the chance level of ``gradcamo_adjusted``, (B,): its mean for the same maps under other cells' masks.

    Args:
        maps: (B, *grid).
        target_masks: (B, *crop).
        others: masks per map, taken from the cells that follow it.
    """
    shifts = range(1, min(others, len(maps) - 1) + 1)
    scores = [
        measure_overlap(maps, project_regions(target_masks.roll(shift, 0), None, maps.shape[1:])).gradcamo_adjusted
        for shift in shifts
    ]
    return torch.stack(scores).nanmean(0).cpu().numpy() if scores else np.full(len(maps), np.nan)


def make_background_crops(images: Tensor, occupied: Tensor, seed: int = 0) -> Tensor:
    """Make crops that contain only background of the other crops, slice by slice: (B, C, \\*crop).

    Each crop is filled with randomly shifted copies of other crops, except where these have cells. Voxels that no copy
    covers get the median background of their channel and slice.

    Args:
        images: (B, C, *crop), 2D or 3D.
        occupied: (B, *crop) bool, voxels of cells.

    Raises:
        ExplainError: for fewer than two crops, or if no crop has background.
    """
    if len(images) < 2:
        raise ExplainError(f"background of other crops needs at least two crops, got {len(images)}", "Pass more crops.")
    if bool(occupied.all()):
        raise ExplainError("no crop has background", "Pass crops that are larger than their cells.")
    rng = np.random.default_rng(seed)
    medians = _median_background(images, occupied).expand(images.shape)
    pixels, free = images.movedim(1, -1).flatten(0, -2), ~occupied.flatten(1)
    index = torch.arange(free.shape[1], device=images.device)
    # Most copies fill little of a crowded crop, so only the voxels that are still open are looked at.
    sources = torch.full_like(free, -1, dtype=torch.long)
    open_places = [index] * len(images)
    for number in range(_MAX_SHIFTS):
        donor, *shift = number % (len(images) - 1) + 1, *(int(rng.integers(size)) for size in images.shape[-2:])
        shifted = index.view(images.shape[2:]).roll(shift, (-2, -1)).flatten()
        for crop, places in enumerate(open_places):
            if len(places):
                found = shifted[places]
                is_free = free[crop - donor][found]
                sources[crop, places[is_free]] = found[is_free] + (crop - donor) % len(images) * len(index)
                open_places[crop] = places[~is_free]
    sources = sources.view(occupied.shape)
    filled = pixels[sources.clamp(min=0)].movedim(-1, 1)
    return torch.where(sources[:, None] < 0, medians, filled)


def _median_background(images: Tensor, occupied: Tensor) -> Tensor:
    """Return the median background of all crops by channel and slice: (1, C, [Z,] 1, 1).

    A slice without background gets the channel's median over all slices.
    """
    background = torch.where(occupied[:, None], torch.nan, images)
    by_slice = background.movedim((0, -2, -1), (-3, -2, -1)).flatten(-3).nanmedian(-1).values
    if bool(torch.isnan(by_slice).any()):
        by_channel = background.transpose(0, 1).flatten(1).nanmedian(1).values
        by_channel = by_channel.reshape(-1, *(1,) * (by_slice.ndim - 1)).expand_as(by_slice)
        by_slice = torch.where(torch.isnan(by_slice), by_channel, by_slice)
    return by_slice[None, ..., None, None]


class DeletionInsertionCurves(NamedTuple):
    """Class probability while voxels are deleted or inserted, the map's brightest first.

    After Petsiuk et al., BMVC 2018, arXiv 1806.07421. A faithful map has a low deletion area and a high insertion area.

    Attributes:
        fraction: (steps + 1,), share of the crop's voxels that are deleted or inserted.
        deletion, insertion: (steps + 1, B), probability of the class.
        deletion_auc, insertion_auc: (B,), areas under the curves.
    """

    fraction: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    deletion_auc: np.ndarray
    insertion_auc: np.ndarray


def compute_deletion_insertion(
    model: nn.Module, images: Tensor, blank: Tensor, maps: Tensor, layer: Layer, classes: Tensor, steps: int = 10
) -> DeletionInsertionCurves:
    """Compute deletion and insertion curves in 2D or 3D.

    Args:
        images: (B, C, *crop).
        blank: (B, C, *crop), replacement for deleted voxels (``make_background_crops``).
        maps: (B, *grid), upsampled linearly to the crop.
        classes: (B,), the class of each cell.
        steps: number of steps. Their share of the crop grows quadratically, since cells are small.
    """
    crop = images.shape[2:]
    mode = "bilinear" if len(crop) == 2 else "trilinear"
    upsampled = nn.functional.interpolate(maps[:, None].float(), size=crop, mode=mode, align_corners=False)
    rank = upsampled.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).reshape(len(images), 1, *crop)
    fractions = np.linspace(0, 1, steps + 1) ** 2
    curves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for fraction in fractions:
        is_brightest = rank < fraction * rank[0].numel()
        for curve, (inside, outside) in zip(curves, ((blank, images), (images, blank)), strict=True):
            output = run_network(model, torch.where(is_brightest, inside, outside), layer)
            curve.append(output.probabilities.gather(1, classes[:, None])[:, 0].cpu().numpy())
    deletion, insertion = (np.stack(curve) for curve in curves)
    return DeletionInsertionCurves(
        fraction=fractions,
        deletion=deletion,
        insertion=insertion,
        deletion_auc=np.trapezoid(deletion, fractions, axis=0),
        insertion_auc=np.trapezoid(insertion, fractions, axis=0),
    )


def audit(
    model: nn.Module,
    images: Tensor,
    target_masks: Tensor,
    layer: Layer,
    neighbour_masks: Tensor,
    seed: int = 0,
    treatments: Sequence[Hashable] | None = None,
) -> tuple[GradcamoResult, dict[str, np.ndarray]]:
    """Score B cells and measure how the network responds to changes of the image and of its weights.

    Returns the result of ``gradcamo`` and these columns, (B,) each:

    - ``logit_drop_<region>``, ``embedding_move_<region>``: drop of the predicted class's logit, and cosine distance of
      the embeddings, after background of other crops replaces the region; NaN if the crop lacks the region.
    - ``effect_target``: the target's share of the absolute logit drops.
    - the columns of ``swap_test.compute_swap_columns``.
    - ``probability_drop_background_only``, ``logit_drop_background_only``, ``embedding_move_background_only``: the same
      after background of other crops replaces target and neighbours together.
    - ``deletion_auc``, ``insertion_auc``: areas under the map's deletion and insertion curves.
    - ``randomised_adjusted``: ``gradcamo_adjusted`` after all weights are shuffled. ``randomised_chance``: the chance
      level of these maps, under other cells' masks.

    Args:
        images: (B, C, Y, X) or (B, C, Z, Y, X), at least 2 cells of a plate.
        target_masks, neighbour_masks: as in ``gradcamo``.
        layer: one layer.
        treatments: of each cell, for the swaps; the predicted classes by default.

    Raises:
        ExplainError: as ``gradcamo`` and ``make_background_crops`` do.
    """
    scored = gradcamo(model, images, target_masks, layer, neighbour_masks)
    classes = torch.as_tensor(scored.predicted_class, device=images.device)
    target = target_masks.bool()
    neighbours = neighbour_masks.bool() & ~target
    regions = dict(zip(REGIONS, (target, neighbours, ~(target | neighbours)), strict=True))
    blank = make_background_crops(images, target | neighbours, seed)
    intact = NetworkOutput(scored.logits.float(), scored.embedding)
    columns: dict[str, np.ndarray] = {}
    for name, region in regions.items():
        changes = intact.compare(run_network(model, torch.where(region[:, None], blank, images), layer), classes)
        has_region = region.flatten(1).any(1)
        for measure in ("logit_drop", "embedding_move"):
            columns[f"{measure}_{name}"] = torch.where(has_region, changes[measure], torch.nan).cpu().double().numpy()
    drops = np.abs(np.nan_to_num(np.stack([columns[f"logit_drop_{name}"] for name in REGIONS])))
    with np.errstate(invalid="ignore"):
        columns["effect_target"] = np.where(np.isnan(columns["logit_drop_target"]), np.nan, drops[0] / drops.sum(0))
    groups = classes.tolist() if treatments is None else treatments
    columns |= compute_swap_columns(model, images, target, neighbours, layer, intact, groups, seed)
    background_only = run_network(model, torch.where((target | neighbours)[:, None], blank, images), layer)
    for measure, values in intact.compare(background_only, classes).items():
        columns[f"{measure}_background_only"] = values.cpu().double().numpy()
    curves = compute_deletion_insertion(model, images, blank, scored.cam, layer, classes)
    columns |= {"deletion_auc": curves.deletion_auc, "insertion_auc": curves.insertion_auc}
    shuffled = gradcamo(
        randomise_weights(model, seed=seed), images, target_masks, layer, neighbour_masks, target=classes.tolist()
    )
    columns["randomised_adjusted"] = shuffled.gradcamo_adjusted
    columns["randomised_chance"] = compute_chance_level(shuffled.cam, target.to(shuffled.cam.device))
    return scored, columns


def rank_correlation(score: Sequence[float] | np.ndarray, effect: Sequence[float] | np.ndarray) -> float:
    """Compute Spearman's correlation of a score with a measured effect; NaN for fewer than three cells with both."""
    from scipy.stats import spearmanr

    pairs = np.stack([np.asarray(score, float), np.asarray(effect, float)])
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    if pairs.shape[1] < 3 or (pairs == pairs[:, :1]).all(1).any():
        return float("nan")
    return float(spearmanr(*pairs).statistic)
