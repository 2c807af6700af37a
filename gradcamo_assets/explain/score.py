"""The score: one call for any network.

Here: what goes in is checked, maps and masks are brought together, columns come out. Not here: how maps are made
(``cam``, ``methods``) and how they are measured (``overlap``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain import maps as cam
from gradcamo_assets.explain import methods, overlap
from gradcamo_assets.explain.maps import Layer, PooledHead, Target
from gradcamo_assets.explain.overlap import Overlap, Regions
from gradcamo_assets.explain.result import GradcamoResult, pack

_Masks: TypeAlias = tuple[Tensor, Tensor | None]

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
    images, masks = _checked(model, images, target_masks, neighbour_masks)
    methods.check_method(method, images.ndim - 2)
    if definition not in DEFINITIONS:
        raise ExplainError(f"there is no definition {definition!r}", f"Choose one of {', '.join(DEFINITIONS)}.")
    modules = dict(cam.find_layer(model, one) for one in ([layer] if isinstance(layer, nn.Module | str) else layer))
    if not modules:
        raise ExplainError("no layer was given", "Pass a module of the model, its dotted name, or a list of them.")

    run = _closed_form(model, images, modules, target) if method == "gradcam" else None
    run = run or _backward(model, images, modules, target, method)
    if not bool(torch.isfinite(run.logits).all()) and not bool(torch.isfinite(images).all()):
        bad = (~torch.isfinite(images.flatten(1)).all(1)).nonzero()[:, 0].tolist()
        problem = f"{len(bad)} images hold NaN or infinite values, the first at index {bad[0]}"
        raise ExplainError(problem, "Leave these cells out or repair their crops: they cannot be scored.")
    common = _class_columns(run)
    results: dict[str, GradcamoResult] = {}
    overlaps: list[Overlap] = []
    linear = definition == "linear"
    regions: dict[tuple[int, ...], Regions] = {}
    for name, values in run.activations.items():
        columns = dict(common)
        grid = tuple(values.shape[2:])
        if grid not in regions:
            regions[grid] = overlap.project_regions(*masks, grid)
        head = run.heads.get(name)
        if head is not None and run.classes is not None:
            columns["logit_bias"] = head.bias(run.classes)
            columns |= overlap.region_evidence(run.maps[name], regions[grid])
            run.maps[name] = run.maps[name].clamp_min(0)
        overlaps.append(overlap.overlap(run.maps[name], regions[grid]))
        columns |= vars(overlaps[-1] if linear else _library_overlap([run.maps[name]], masks))
        embedding = values.detach().flatten(2).mean(2, dtype=torch.float32) if head is None else head.pooled.float()
        results[name] = pack(columns, run.logits, embedding, run.maps[name])
    if len(results) == 1:
        return next(iter(results.values()))
    ordered = list(run.maps.values())
    measured = overlap.mean_overlap(overlaps) if linear else _library_overlap(ordered, masks)
    mean = pack(common | vars(measured), run.logits, embedding, _mean_map(ordered, masks[0].shape[1:]))
    return replace(mean, layers=results)


@dataclass(frozen=True)
class _Run:
    """What came of one batch: maps (B, \\*grid) by layer, not yet rectified at a pooled head."""

    scalars: Tensor
    logits: Tensor
    classes: Tensor | None
    activations: dict[str, Tensor]
    maps: dict[str, Tensor]
    heads: dict[str, PooledHead]


_NOT_POOLED: WeakKeyDictionary[nn.Module, set[tuple[str, ...]]] = WeakKeyDictionary()
"""Layers that do not feed global average pooling and a linear layer, so that the next batch need not try."""


def _closed_form(model: nn.Module, images: Tensor, modules: dict[str, nn.Module], target: Target) -> _Run | None:
    """The maps by one forward pass without a graph, where every layer feeds a pooled head and a class is explained."""
    names = tuple(modules)
    if callable(target) or names in _NOT_POOLED.get(model, ()):
        return None
    with torch.inference_mode(False), torch.no_grad():
        output, activations = cam.captured(model, images, modules, graph=False)
        logits = cam.logits_of(output)
        found = {name: cam.pooled_head(model, values, logits) for name, values in activations.items()}
        heads = {name: head for name, head in found.items() if head is not None}
        if len(heads) < len(found):
            if bool(torch.isfinite(logits).all()):
                _NOT_POOLED.setdefault(model, set()).add(names)
            return None
        # Logits of a half precision have three digits; those that the head makes of its own activations have seven.
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits = logits if logits.dtype == wide else next(iter(heads.values())).logits
        classes = cam.class_targets(target, logits)
        maps = {
            name: cam.signed_map(values, heads[name].linear.weight.detach()[classes])
            for name, values in activations.items()
        }
    return _Run(logits.gather(1, classes[:, None])[:, 0], logits, classes, activations, maps, heads)


def _backward(model: nn.Module, images: Tensor, modules: dict[str, nn.Module], target: Target, method: str) -> _Run:
    """The maps by a truncated backward, or by pytorch-grad-cam."""
    maps: dict[str, Tensor] = {}
    heads: dict[str, PooledHead] = {}
    with torch.inference_mode(False), torch.enable_grad(), cam.frozen(model):
        output, activations = cam.captured(model, images, modules)
        scalars, logits, classes = cam.explained(target, output)
        if len(scalars) != len(images):
            raise ExplainError(f"{len(scalars)} outputs came of {len(images)} images", "Return one row a sample.")
        if method == "gradcam":
            for name, values in activations.items():
                head = None if classes is None else cam.pooled_head(model, values, logits)
                if head is not None and classes is not None:
                    heads[name] = head
                    maps[name] = cam.signed_map(values.detach(), head.linear.weight.detach()[classes])
            rest = [name for name in activations if name not in heads]
            maps |= zip(rest, cam.gradient_maps(scalars, [activations[name] for name in rest]), strict=True)
    if method != "gradcam":
        for name, module in modules.items():
            grid = activations[name].shape[2:]
            maps[name] = methods.library_map(model, images, module, grid, method, target, classes)
    return _Run(scalars, logits, classes, activations, {name: maps[name] for name in activations}, heads)


def _checked(model: nn.Module, images: Any, target_masks: Any, neighbour_masks: Any) -> tuple[Tensor, _Masks]:
    """Images on the model's device, and the masks beside them."""
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        remedy = "Call model.eval() first: dropout and batch statistics make scores depend on chance and on the batch."
        raise ExplainError(f"the network is in training mode ({training[0]})", remedy)
    images = torch.as_tensor(images).detach()
    weight = next(model.parameters(), None)
    if weight is not None:
        images = images.to(weight.device, weight.dtype)
    if images.ndim not in (4, 5) or not images.numel():
        remedy = "Pass (B, C, Y, X) or (B, C, Z, Y, X) with at least one image."
        raise ExplainError(f"images have shape {tuple(images.shape)}", remedy)
    expected = (len(images), *images.shape[2:])
    masks: list[Tensor | None] = []
    for name, mask in (("target_masks", target_masks), ("neighbour_masks", neighbour_masks)):
        if mask is not None or not masks:
            # Apple's GPUs have no float64, in which shares are computed.
            mask = torch.as_tensor(mask, device="cpu" if images.device.type == "mps" else images.device)
            if tuple(mask.shape) != expected:
                remedy = f"Pass masks {expected}: one a cell, without a channel axis, at the images' resolution."
                raise ExplainError(f"{name} are {tuple(mask.shape)}, the images {tuple(images.shape)}", remedy)
        masks.append(mask)
    assert masks[0] is not None
    return images, (masks[0], masks[1])


def _class_columns(run: _Run) -> dict[str, Tensor]:
    columns, logits = {"logit": run.scalars}, run.logits
    if logits.ndim == 2 and logits.shape[1] > 0:
        columns["predicted_class"] = logits.argmax(1)
    if run.classes is not None:
        wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        probability = wide.sigmoid() if wide.shape[1] == 1 else wide.softmax(1)
        columns |= {"target_class": run.classes, "probability": probability.gather(1, run.classes[:, None])[:, 0]}
    return columns


def _library_overlap(maps: Sequence[Tensor], masks: _Masks) -> Overlap:
    """The overlap at full resolution, where U is the identity: no ceiling but 1 exists, so what needs one is NULL."""
    crop = masks[0].shape[1:]
    regions = overlap.project_regions(*masks, crop)
    measured = overlap.overlap(methods.resampled_maps(maps, crop), regions)
    null = torch.full_like(measured.gradcamo, torch.nan)
    return replace(measured, gradcamo_max=null, gradcamo_adjusted=null, looks_at=torch.full_like(measured.looks_at, -1))


def _mean_map(maps: Sequence[Tensor], crop: Sequence[int]) -> Tensor:
    """Mean of the maps, each divided by its mass first, linearly resampled to the finest grid where they differ."""
    finest = tuple(max(sizes) for sizes in zip(*(values.shape[1:] for values in maps), strict=True))
    mode = "bilinear" if len(finest) == 2 else "trilinear"
    total = torch.zeros((), device=maps[0].device)
    for values in maps:
        area = overlap.footprint(tuple(crop), tuple(values.shape[1:]), torch.device("cpu")).to(values)
        mass = (values * area).flatten(1).sum(1).clamp_min(torch.finfo(values.dtype).tiny)
        scaled = values / mass.reshape(-1, *(1,) * len(finest))
        total = total + torch.nn.functional.interpolate(scaled[:, None], size=finest, mode=mode)[:, 0] / len(maps)
    return total
