"""The score: one call for any network.

Here: what goes in is checked, maps and masks are brought together, columns come out. Not here: how maps are made
(``cam``, ``methods``) and how they are measured (``overlap``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcamo_assets.common.errors import ExplainError
from gradcamo_assets.explain import cam, methods, overlap
from gradcamo_assets.explain.cam import Layer, Target
from gradcamo_assets.explain.overlap import Overlap
from gradcamo_assets.explain.result import GradcamoResult, pack

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
    methods.check_method(method, images.ndim - 2)
    if definition not in DEFINITIONS:
        raise ExplainError(f"there is no definition {definition!r}", f"Choose one of {', '.join(DEFINITIONS)}.")
    modules = dict(cam.find_layer(model, one) for one in ([layer] if isinstance(layer, nn.Module | str) else layer))
    if not modules:
        raise ExplainError("no layer was given", "Pass a module of the model, its dotted name, or a list of them.")

    maps: dict[str, Tensor] = {}
    heads: dict[str, nn.Linear] = {}
    with torch.inference_mode(False), torch.enable_grad(), cam.frozen(model):
        output, activations = cam.captured(model, images, modules)
        scalars, logits, classes = cam.explained(target, output)
        if len(scalars) != len(images):
            raise ExplainError(f"{len(scalars)} outputs came of {len(images)} images", "Return one row a sample.")
        if method == "gradcam":
            for name, values in activations.items():
                head = None if classes is None else cam.pooled_head(model, values, logits)
                if head is not None:
                    heads[name] = head
            rest = [name for name in activations if name not in heads]
            maps = dict(zip(rest, cam.gradient_maps(scalars, [activations[name] for name in rest]), strict=True))
    if method != "gradcam":
        for name, module in modules.items():
            grid = activations[name].shape[2:]
            maps[name] = methods.library_map(model, images, module, grid, method, target, classes)

    common = _class_columns(logits, classes, scalars)
    results: dict[str, GradcamoResult] = {}
    overlaps: list[Overlap] = []
    linear = definition == "linear"
    for name, values in activations.items():
        columns = dict(common)
        regions = overlap.label_regions(labels, values.shape[2:], neighbours_known)
        if name in heads:
            signed = cam.signed_map(values.detach(), heads[name].weight.detach()[classes])
            maps[name] = signed.clamp_min(0)
            bias = heads[name].bias
            columns["logit_bias"] = torch.zeros_like(scalars) if bias is None else bias[classes]
            columns |= overlap.region_evidence(signed, regions)
        overlaps.append(overlap.overlap(maps[name], regions))
        columns |= vars(overlaps[-1] if linear else _library_overlap([maps[name]], labels, neighbours_known))
        embedding = values.detach().float().flatten(2).mean(2)
        results[name] = pack(columns, logits, embedding, maps[name])
    if len(results) == 1:
        return next(iter(results.values()))
    ordered = [maps[name] for name in activations]
    measured = overlap.mean_overlap(overlaps) if linear else _library_overlap(ordered, labels, neighbours_known)
    mean = pack(common | vars(measured), logits, embedding, _mean_map(ordered, labels.shape[1:]))
    return replace(mean, layers=results)


def _checked(model: nn.Module, images: Any, target_masks: Any, neighbour_masks: Any) -> tuple[Tensor, Tensor, bool]:
    """Images on the model's device, labels, and whether neighbours are known."""
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ExplainError(
            f"the network is in training mode ({training[0]})",
            "Call model.eval() first: dropout and batch statistics make scores depend on chance and on the batch.",
        )
    images = torch.as_tensor(images).detach()
    weight = next(model.parameters(), None)
    if weight is not None:
        images = images.to(weight.device, weight.dtype)
    if images.ndim not in (4, 5) or not images.numel():
        raise ExplainError(
            f"images have shape {tuple(images.shape)}", "Pass (B, C, Y, X) or (B, C, Z, Y, X) with at least one image."
        )
    finite = torch.isfinite(images.flatten(1)).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ExplainError(
            f"{len(bad)} images hold NaN or infinite values, the first at index {bad[0]}",
            "Leave these cells out or repair their crops; no score can be computed from them.",
        )
    expected = (len(images), *images.shape[2:])
    masks: list[Tensor] = []
    for name, mask in (("target_masks", target_masks), ("neighbour_masks", neighbour_masks)):
        if mask is None and masks:
            continue
        mask = torch.as_tensor(mask, device=images.device)
        if tuple(mask.shape) != expected:
            raise ExplainError(
                f"{name} have shape {tuple(mask.shape)}, the images {tuple(images.shape)}",
                f"Pass masks of shape {expected}: one a cell, without a channel axis, at the images' resolution.",
            )
        masks.append(mask)
    labels = overlap.mask_labels(*masks)
    # Apple's GPUs have no float64, in which shares are computed.
    return images, labels.cpu() if labels.device.type == "mps" else labels, len(masks) == 2


def _class_columns(logits: Tensor, classes: Tensor | None, scalars: Tensor) -> dict[str, Tensor]:
    columns = {"logit": scalars}
    if logits.ndim == 2 and logits.shape[1] > 0:
        columns["predicted_class"] = logits.argmax(1)
    if classes is not None:
        wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        probability = wide.sigmoid() if wide.shape[1] == 1 else wide.softmax(1)
        columns |= {"target_class": classes, "probability": probability.gather(1, classes[:, None])[:, 0]}
    return columns


def _library_overlap(maps: Sequence[Tensor], labels: Tensor, neighbours_known: bool) -> Overlap:
    """The overlap at full resolution, where U is the identity: no ceiling but 1 exists, so what needs one is NULL."""
    crop = labels.shape[1:]
    regions = overlap.label_regions(labels, crop, neighbours_known)
    measured = overlap.overlap(methods.resampled_maps(maps, crop), regions)
    null = torch.full_like(measured.gradcamo, torch.nan)
    return replace(measured, gradcamo_max=null, gradcamo_adjusted=null, looks_at=torch.full_like(measured.looks_at, -1))


def _mean_map(maps: Sequence[Tensor], crop: Sequence[int]) -> Tensor:
    """Mean of the maps, each divided by its mass first, linearly resampled to the finest grid where they differ."""
    finest = tuple(max(sizes) for sizes in zip(*(values.shape[1:] for values in maps), strict=True))
    mode = "bilinear" if len(finest) == 2 else "trilinear"
    total = torch.zeros((), device=maps[0].device)
    for values in maps:
        area = overlap.footprint(crop, values.shape[1:], torch.device("cpu")).to(values)
        mass = (values * area).flatten(1).sum(1).clamp_min(torch.finfo(values.dtype).tiny)
        scaled = values / mass.reshape(-1, *(1,) * len(finest))
        total = total + torch.nn.functional.interpolate(scaled[:, None], size=finest, mode=mode)[:, 0] / len(maps)
    return total
