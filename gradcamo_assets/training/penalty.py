"""What a training can add to its loss so that the encoder looks at the cell.

The penalty ``gradcamo``: max(0, tau - adjusted Grad-CAMO of the true class), after the outlook of arXiv 2403.17615.

A score that was trained for is no evidence: an encoder may move its map and keep its reasons. Swapping surroundings in
training (``training.swap_surroundings``) removes the reasons; the swap test (``explain.swap_test``) tests for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcamo_assets.explain import maps as cam
from gradcamo_assets.explain.overlap import measure_overlap, project_regions


def penalised(
    model: nn.Module, layer: str, images: Tensor, masks: Tensor, classes: Tensor, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) of one forward pass, and the penalty, a scalar; both to be differentiated by the weights.

    The penalty is a mean over the crops that have an adjusted score: none of an empty map, an empty mask or a mask that
    fills the crop. 0 where no crop has.

    Args:
        layer: dotted name of the layer whose map counts.
        images: (B, C, *crop), 2D or 3D. masks: (B, *crop) bool, the target cells.
        classes: (B,) int64, the true ones. tau: adjusted score from which the penalty is 0.

    Raises:
        ExplainError: where the layer did not run, or the logits do not depend on it.
    """
    output, activations = cam.capture_activations(model, images, dict([cam.find_layer(model, layer)]))
    logits, values = cam.extract_logits(output), next(iter(activations.values()))
    maps = class_maps(model, values, logits, classes)
    grid = maps.shape[1:]
    adjusted = measure_overlap(maps, project_regions(dilated(masks, grid) > 0, None, grid)).gradcamo_adjusted
    there = ~torch.isnan(adjusted)
    penalty = (tau - adjusted[there]).clamp_min(0).sum() / there.sum().clamp_min(1)
    return logits, penalty.to(torch.promote_types(logits.dtype, torch.float32))


def class_maps(model: nn.Module, activations: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM maps of the given classes, (B, \\*grid) in float32 or better, differentiable by all that made them.

    In closed form where the activations feed global average pooling and one linear layer; else by a backward that is
    kept in the graph, from the logits to the layer. That one also sees, through batch statistics, how a sample moves
    the others' logits, which evaluation mode does not.
    """
    with torch.autocast(activations.device.type, enabled=False):
        head = cam.find_pooled_head(model, activations, logits)
        if head is not None:
            return cam.compute_signed_map(activations, head.linear.weight[classes]).clamp_min(0)
        return cam.compute_gradient_maps(logits.gather(1, classes[:, None])[:, 0], [activations], graph=True)[0]


def dilated(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """Masks (B, *crop) grown by half a map cell along each axis: no map of that grid can be sharper."""
    grown = masks.float()
    for axis, size in enumerate(grid, start=1):
        reach = round(masks.shape[axis] / size / 2)
        if reach:
            lines = grown.movedim(axis, -1)
            grown = F.max_pool1d(lines.flatten(0, -2), 2 * reach + 1, 1, reach).view(lines.shape).movedim(-1, axis)
    return grown
