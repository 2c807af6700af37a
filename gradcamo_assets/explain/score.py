"""The score: one call for any network, and the fast entry for a loop that has activations and logits already.

Here: what goes in is checked, maps and masks are brought together, columns come out. Not here: how maps are made
(``cam``, ``methods``) and how they are measured (``overlap``, ``evidence``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcamo_assets.common.errors import ExplainError
from gradcamo_assets.explain.cam import (
    Hooked,
    Layer,
    Target,
    chosen_scalars,
    class_targets,
    find_layer,
    frozen,
    gradient_maps,
    head_logits,
    head_tolerance,
    logits_of,
    pooled_head,
)
from gradcamo_assets.explain.evidence import region_evidence, signed_map
from gradcamo_assets.explain.methods import check_method, library_map, resampled_maps
from gradcamo_assets.explain.overlap import (
    Overlap,
    footprint,
    label_regions,
    mask_labels,
    mean_overlap,
    region_overlap,
)
from gradcamo_assets.explain.result import GradcamoResult, overlap_columns, pack

DEFINITIONS = ("linear", "pytorch_grad_cam")


def gradcamo(
    model: nn.Module,
    images: Any,
    target_masks: Any,
    layer: Layer | Sequence[Layer],
    neighbour_masks: Any = None,
    target: Target = None,
    definition: str = "linear",
    method: str = "gradcam",
) -> GradcamoResult:
    """Grad-CAMO of B cells: the share of each localisation map that lies inside the target cell's mask.

    The model is left as it was: no hook stays, no gradient is written, ``requires_grad`` is restored.

    Args:
        model: any torch CNN in eval mode that returns logits (B, classes), a tuple that begins with them, or a mapping
            or object that names them ``logits``.
        images: (B, C, Y, X) or (B, C, Z, Y, X), as the model takes them; moved to the model's device.
        target_masks: (B, Y, X) or (B, Z, Y, X), 1 in the cell that the crop is about, else 0.
        layer: a module of the model or its dotted name, or a list of them. Of a list, each layer is scored
            (``result.layers``), and so is the mean of their maps, each divided by its mass <L, U'1> first.
        neighbour_masks: same shape, 1 in other cells; without them what tells neighbours from background is NULL.
        target: None (predicted class), a class for all, one a sample, or a callable that takes what the model returns
            and gives one scalar a sample, (B,).
        definition: ``linear``, the upsampler with align_corners=False; or ``pytorch_grad_cam``, what that library's
            users get (minimum subtracted, cubic spline in 3D), for which ``gradcamo_max``, ``gradcamo_adjusted`` and
            ``looks_at`` are NULL: nothing bounds the score there.
        method: ``gradcam``, or another of ``explain.methods.METHODS``, run by pytorch-grad-cam.

    Raises:
        ExplainError: for masks of another shape, an empty batch, images that are not finite, a network in training
            mode, a layer that does not exist or does not run, or a method that cannot do it.
    """
    images, labels, neighbours_known = _checked(model, images, target_masks, neighbour_masks)
    check_method(method, images.ndim - 2)
    if definition not in DEFINITIONS:
        raise ExplainError(f"there is no definition {definition!r}", f"Choose one of {', '.join(DEFINITIONS)}.")
    chosen = [layer] if isinstance(layer, nn.Module | str) else list(layer)
    if not chosen:
        raise ExplainError("no layer was given", "Pass a module of the model, its dotted name, or a list of them.")
    modules = dict(find_layer(model, one) for one in chosen)

    with torch.inference_mode(False), torch.enable_grad(), frozen(model), Hooked(model, chosen, leaves=True) as hooked:
        output = model(images)
        activations = hooked.activations(images.ndim)
        scalars = chosen_scalars(target, output)
        if len(scalars) != len(images):
            raise ExplainError(f"{len(scalars)} outputs came of {len(images)} images", "Return one row a sample.")
        logits, classes = _prediction(target, output, scalars)
        heads = {
            name: None if classes is None or method != "gradcam" else pooled_head(model, values, logits)
            for name, values in activations.items()
        }
        maps: dict[str, Tensor] = {}
        signed: dict[str, Tensor] = {}
        if method == "gradcam":
            rest = [name for name, head in heads.items() if head is None]
            maps = dict(zip(rest, gradient_maps(scalars, [activations[name] for name in rest]), strict=True))
            for name, head in heads.items():
                if head is not None:
                    signed[name] = signed_map(activations[name], head.weight[classes]).detach()
                    maps[name] = signed[name].clamp_min(0)

    if method != "gradcam":
        for name, module in modules.items():
            grid = activations[name].shape[2:]
            maps[name] = library_map(model, images, module, grid, method, target, classes)

    common = _class_columns(logits, classes, scalars)
    results: dict[str, GradcamoResult] = {}
    overlaps: list[Overlap] = []
    for name, values in activations.items():
        regions = label_regions(labels, values.shape[2:], neighbours_known)
        overlaps.append(region_overlap(maps[name], regions))
        columns = dict(common)
        if name in signed:
            columns |= _evidence_columns(signed[name], regions)
            bias = heads[name].bias  # type: ignore[union-attr]
            columns["logit_bias"] = torch.zeros_like(scalars) if bias is None else bias[classes]
        measured = overlaps[-1]
        if definition == "pytorch_grad_cam":
            measured = _library_overlap([maps[name]], labels, neighbours_known)
        embedding = values.detach().float().flatten(2).mean(2)
        columns |= overlap_columns(measured)
        results[name] = pack(columns, logits, embedding, maps[name])[0]
    if len(results) == 1:
        return next(iter(results.values()))
    ordered = [maps[name] for name in activations]
    if definition == "pytorch_grad_cam":
        measured = _library_overlap(ordered, labels, neighbours_known)
    else:
        measured = mean_overlap(overlaps)
    mean = pack(common | overlap_columns(measured), logits, embedding, _mean_map(ordered, labels.shape[1:]))[0]
    return replace(mean, layers=results)


def score_maps(
    activations: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    labels: Tensor,
    target: Target = None,
) -> GradcamoResult:
    """The score at a head of global average pooling and one linear layer, from one forward that was run already.

    All on the device of ``activations``, without a loop over cells; the columns come to the host in one transfer.

    Args:
        activations: (B, K, *grid) that enter the pooling, any float type.
        weight, bias: the linear layer's (classes, K) and (classes,) or None.
        logits: (B, classes) from the model. None: W mean(A) + b in float32, so that under bfloat16 too the evidence
            adds up to the last digit.
        labels: (B, *crop) uint8: 0 background, 1 target cell, 2 neighbours.
        target: None (predicted class), a class for all, or one a sample.

    Raises:
        ExplainError: for shapes that do not fit, a callable target, or logits that this head did not make.
    """
    grid = activations.shape[2:]
    shapes = (activations.shape[:1], grid, weight.shape[1:])
    if (
        not len(activations)
        or labels.ndim != len(grid) + 1
        or shapes != (labels.shape[:1], grid, activations.shape[1:2])
    ):
        raise ExplainError(
            f"activations {tuple(activations.shape)}, weight {tuple(weight.shape)} and labels {tuple(labels.shape)} "
            "do not fit each other",
            "Pass activations (B, K, *grid), weight (classes, K) and labels (B, *crop), with at least one cell.",
        )
    if callable(target):
        raise ExplainError("a callable target has no closed form", "Call gradcamo, or pass a class.")
    with torch.no_grad():
        expected = head_logits(activations, weight, bias)
        logits = expected if logits is None else logits
        classes = class_targets(target, logits)
        signed = signed_map(activations, weight[classes])
        cam = signed.clamp_min(0)
        regions = label_regions(labels.to(activations.device), grid)
        scalars = logits.gather(1, classes[:, None])[:, 0]
        columns = _class_columns(logits, classes, scalars) | _evidence_columns(signed, regions)
        columns["logit_bias"] = torch.zeros_like(scalars) if bias is None else bias[classes]
        columns |= overlap_columns(region_overlap(cam, regions))
        off = (expected - logits).abs().max() / logits.abs().max().clamp_min(1e-6)
        embedding = activations.float().flatten(2).mean(2)
        result, off_host = pack(columns, logits, embedding, cam, off.expand(len(logits)))
    precision = min(activations.dtype, logits.dtype, key=lambda dtype: dtype.itemsize)
    if off_host[0] > head_tolerance(precision):
        raise ExplainError(
            f"the logits are not W mean(A) + b: they differ by {off_host[0]:.2g} of the largest",
            "Pass the activations that enter the pooling and the linear layer after it; or call gradcamo.",
        )
    return result


def _checked(model: nn.Module, images: Any, target_masks: Any, neighbour_masks: Any) -> tuple[Tensor, Tensor, bool]:
    """Images and labels on the model's device, and whether neighbours are known."""
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ExplainError(
            f"the network is in training mode ({training[0]})",
            "Call model.eval() first: dropout and batch statistics make scores depend on chance and on the batch.",
        )
    weight = next(model.parameters(), None)
    device = None if weight is None else weight.device
    images = torch.as_tensor(images, device=device).detach()
    if weight is not None and images.dtype != weight.dtype:
        images = images.to(weight.dtype)
    if images.ndim not in (4, 5) or not images.numel():
        raise ExplainError(
            f"images have shape {tuple(images.shape)}",
            "Pass (B, C, Y, X) or (B, C, Z, Y, X) with at least one image.",
        )
    finite = torch.isfinite(images.flatten(1)).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ExplainError(
            f"{len(bad)} images hold NaN or infinite values, the first at index {bad[0]}",
            "Leave these cells out or repair their crops; no score can be computed from them.",
        )
    expected = (len(images), *images.shape[2:])
    masks = []
    for name, mask in (("target_masks", target_masks), ("neighbour_masks", neighbour_masks)):
        if mask is None and name == "neighbour_masks":
            continue
        mask = torch.as_tensor(mask, device=images.device)
        if tuple(mask.shape) != expected:
            raise ExplainError(
                f"{name} have shape {tuple(mask.shape)}, the images {tuple(images.shape)}",
                f"Pass masks of shape {expected}: one a cell, without a channel axis, at the images' resolution.",
            )
        masks.append(mask)
    return images, mask_labels(*masks), len(masks) == 2


def _prediction(target: Any, output: Any, scalars: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (the scalars as one column where a callable explains another kind of output) and the explained classes."""
    if not callable(target):
        logits = logits_of(output)
        return logits, class_targets(target, logits)
    try:
        logits = logits_of(output)
    except ExplainError:
        return scalars[:, None], None
    return logits, None


def _class_columns(logits: Tensor, classes: Tensor | None, scalars: Tensor) -> dict[str, Tensor]:
    columns = {"logit": scalars}
    if logits.ndim == 2 and logits.shape[1] > 0:
        columns["predicted_class"] = logits.argmax(1)
    if classes is not None:
        wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        probability = wide.sigmoid() if wide.shape[1] == 1 else wide.softmax(1)
        columns |= {"target_class": classes, "probability": probability.gather(1, classes[:, None])[:, 0]}
    return columns


def _evidence_columns(signed: Tensor, regions: Any) -> dict[str, Tensor]:
    parts = region_evidence(signed, regions)
    return {
        "evidence_target": parts.target,
        "evidence_neighbour": parts.neighbour,
        "evidence_background": parts.background,
    }


def _library_overlap(maps: Sequence[Tensor], labels: Tensor, neighbours_known: bool) -> Overlap:
    """The overlap at full resolution, where U is the identity: no ceiling but 1 exists, so what needs one is NULL."""
    crop = labels.shape[1:]
    measured = region_overlap(resampled_maps(maps, crop), label_regions(labels, crop, neighbours_known))
    null = torch.full_like(measured.gradcamo, torch.nan)
    return replace(measured, gradcamo_max=null, gradcamo_adjusted=null, looks_at=torch.full_like(measured.looks_at, -1))


def _mean_map(maps: Sequence[Tensor], crop: Sequence[int]) -> Tensor:
    """Mean of the maps, each divided by its mass first, linearly resampled to the finest grid where they differ."""
    finest = tuple(max(sizes) for sizes in zip(*(values.shape[1:] for values in maps), strict=True))
    mode = "bilinear" if len(finest) == 2 else "trilinear"
    total = torch.zeros((), device=maps[0].device)
    for values in maps:
        mass = (values * footprint(crop, values.shape[1:], values.device).to(values)).flatten(1).sum(1)
        scaled = values / mass.clamp_min(torch.finfo(values.dtype).tiny).reshape(-1, *(1,) * len(finest))
        if values.shape[1:] != finest:
            scaled = torch.nn.functional.interpolate(scaled[:, None], size=finest, mode=mode)[:, 0]
        total = total + scaled / len(maps)
    return total
