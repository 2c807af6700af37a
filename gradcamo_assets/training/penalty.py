"""Penalise Grad-CAM maps outside the cell during training.

The penalty ``gradcamo`` is max(0, tau - adjusted Grad-CAMO of the true class), after the outlook of arXiv 2403.17615.

A score that training rewards is no evidence by itself: an encoder can move its map onto the cell and still decide by
the surroundings. Swapping surroundings in training (``training.swap_surroundings``) removes that shortcut; the swap
test (``explain.swap_test``) detects it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcamo_assets.explain import maps as cam
from gradcamo_assets.explain.overlap import measure_overlap
from gradcamo_assets.explain.projection import project_regions
from gradcamo_assets.explain.targets import class_logits, extract_logits


def logits_and_penalty(
    model: nn.Module, layer: str, images: Tensor, masks: Tensor, classes: Tensor, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the logits (B, classes) of one forward pass and the penalty, a scalar; both are differentiable.

    The penalty is the mean over the crops with an adjusted score. Crops with an empty map, an empty mask or a mask that
    fills the crop have no score. Without any score the penalty is 0.

    Args:
        layer: dotted name of the layer whose maps are penalised.
        images: (B, C, *crop), 2D or 3D.
        masks: (B, *crop) bool, the target cells.
        classes: (B,) int64, the true classes.
        tau: adjusted score from which the penalty is 0.

    Raises:
        ExplainError: if the layer did not run or the logits do not depend on it.
    """
    output, activations = cam.capture_activations(model, images, dict([cam.find_layer(model, layer)]))
    logits, values = extract_logits(output), next(iter(activations.values()))
    maps = class_maps(model, values, logits, classes)
    grid = maps.shape[1:]
    adjusted = measure_overlap(maps, project_regions(dilate_masks(masks, grid) > 0, None, grid)).gradcamo_adjusted
    has_score = ~torch.isnan(adjusted)
    penalty = (tau - adjusted[has_score]).clamp_min(0).sum() / has_score.sum().clamp_min(1)
    return logits, penalty.to(torch.promote_types(logits.dtype, torch.float32))


def class_maps(model: nn.Module, activations: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
    """Return differentiable Grad-CAM maps of the given classes, (B, \\*grid), in float32 or better.

    If the activations feed global average pooling and one linear layer, the map has a closed form. Otherwise a backward
    pass from the logits to the layer is kept in the graph. In training mode that pass includes, through batch
    statistics, the effect of a sample on the logits of the others; in evaluation mode there is no such effect.
    """
    with torch.autocast(activations.device.type, enabled=False):
        head = cam.find_pooled_head(model, activations, logits)
        if head is not None:
            return cam.compute_signed_map(activations, head.weight(classes)).clamp_min(0)
        return cam.compute_gradient_maps(
            class_logits(logits).gather(1, classes[:, None])[:, 0], [activations], graph=True
        )[0]


def dilate_masks(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """Grow masks (B, *crop) by half a map cell along each axis, because no map on that grid can be sharper."""
    grown = masks.float()
    for axis, size in enumerate(grid, start=1):
        reach = round(masks.shape[axis] / size / 2)
        if reach:
            lines = grown.movedim(axis, -1)
            grown = F.max_pool1d(lines.flatten(0, -2), 2 * reach + 1, 1, reach).view(lines.shape).movedim(-1, axis)
    return grown
