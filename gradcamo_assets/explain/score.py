"""Compute the score of any network in one call.

This module checks the inputs and combines maps with masks. ``maps`` and ``methods`` compute the maps, ``overlap``
measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain import methods
from gradcamo_assets.explain.batch_independence import check_evaluation_mode, check_repeatable
from gradcamo_assets.explain.maps import (
    Layer,
    PooledHead,
    capture_activations,
    compute_gradient_maps,
    compute_signed_map,
    find_layer,
    find_pooled_head,
    frozen_parameters,
)
from gradcamo_assets.explain.overlap import Overlap, average_overlaps, measure_overlap, split_evidence
from gradcamo_assets.explain.projection import ProjectedRegions, compute_footprint, project_regions
from gradcamo_assets.explain.result import GradcamoResult, pack_result
from gradcamo_assets.explain.targets import (
    Target,
    class_logits,
    class_probabilities,
    extract_logits,
    resolve_classes,
    resolve_target,
)

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
    """Compute Grad-CAMO of B cells: the share of each localisation map inside the target cell's mask.

    The model stays unchanged: hooks are removed, no gradient is written, ``requires_grad`` is restored.

    Args:
        model: any torch CNN in eval mode that returns logits (B, classes), a tuple that begins with them, or a mapping
            or object that names them ``logits``.
        images: (B, C, Y, X) or (B, C, Z, Y, X), as the model expects them; moved to the model's device.
        target_masks: (B, Y, X) or (B, Z, Y, X), 1 in the crop's target cell, else 0.
        layer: a module of the model, its dotted name, or a list of these. Its output is (B, K, \\*grid) or (B, \\*grid,
            K). For a list, each layer is scored (``result.layers``), and so is the mean of their maps, each divided by
            its mass <L, U'1> first.
        neighbour_masks: same shape, 1 in other cells. Without them, columns that separate neighbours from background
            are NULL.
        target: None (predicted class), one class for all samples, one class per sample, or a callable that maps the
            model's output to one scalar per sample, (B,). A head with a single logit has class 1 where the logit is
            above 0, else class 0, which is explained by the negative logit.
        definition: ``linear``, the upsampler with align_corners=False; or ``pytorch_grad_cam``, that library's
            resampling (minimum subtracted, cubic spline in 3D). The latter has no upper bound below 1, so
            ``gradcamo_max``, ``gradcamo_adjusted`` and ``looks_at`` are NULL.
        method: ``gradcam``, or a method of ``explain.methods.METHODS``, run by pytorch-grad-cam.

    Raises:
        ExplainError: if masks do not match the images, the batch is empty, images are not finite, the network is in
            training mode or normalises with statistics of the batch, a layer does not exist or does not run, or the
            method does not support the images.
    """
    images, masks = _check_inputs(model, images, target_masks, neighbour_masks)
    methods.check_method(method, images.ndim - 2)
    if definition not in DEFINITIONS:
        raise ExplainError(f"unknown definition {definition!r}", f"Choose one of {', '.join(DEFINITIONS)}.")
    layers = [layer] if isinstance(layer, nn.Module | str) else layer
    modules = dict(find_layer(model, one_layer) for one_layer in layers)
    if not modules:
        raise ExplainError("no layer was given", "Pass a module of the model, its dotted name, or a list of them.")

    run, logits = _compute_maps_in_closed_form(model, images, modules, target) if method == "gradcam" else (None, None)
    if run is None:
        run = _compute_maps_by_backward(model, images, modules, target, method)
        if logits is not None:
            check_repeatable(logits, run.logits)
    if not bool(torch.isfinite(run.scalars).all()) and not bool(torch.isfinite(images).all()):
        not_finite = (~torch.isfinite(images.flatten(1)).all(1)).nonzero()[:, 0].tolist()
        problem = f"{len(not_finite)} images contain NaN or infinite values, the first at index {not_finite[0]}"
        raise ExplainError(problem, "Leave these cells out or repair their crops.")
    class_columns = _class_columns(run)
    results: dict[str, GradcamoResult] = {}
    overlaps: list[Overlap] = []
    is_linear = definition == "linear"
    regions: dict[tuple[int, ...], ProjectedRegions] = {}
    for name, values in run.activations.items():
        columns = dict(class_columns)
        grid = tuple(values.shape[2:])
        if grid not in regions:
            regions[grid] = project_regions(*masks, grid)
        head = run.heads.get(name)
        if head is not None and run.classes is not None:
            columns["logit_bias"] = head.bias(run.classes)
            columns |= split_evidence(run.maps[name], regions[grid])
            run.maps[name] = run.maps[name].clamp_min(0)
        overlaps.append(measure_overlap(run.maps[name], regions[grid]))
        columns |= vars(overlaps[-1] if is_linear else _library_overlap([run.maps[name]], masks))
        embedding = values.detach().flatten(2).mean(2, dtype=torch.float32) if head is None else head.pooled.float()
        results[name] = pack_result(columns, run.logits, embedding, run.maps[name])
    if len(results) == 1:
        return next(iter(results.values()))
    layer_maps = list(run.maps.values())
    measured = average_overlaps(overlaps) if is_linear else _library_overlap(layer_maps, masks)
    mean_map = _average_maps(layer_maps, masks[0].shape[1:])
    mean = pack_result(class_columns | vars(measured), run.logits, embedding, mean_map)
    return replace(mean, layers=results)


@dataclass(frozen=True)
class _BatchMaps:
    """Maps (B, \\*grid) of one batch by layer, with the model's output. At a pooled head they are not yet rectified."""

    scalars: Tensor
    logits: Tensor
    classes: Tensor | None
    activations: dict[str, Tensor]
    maps: dict[str, Tensor]
    heads: dict[str, PooledHead]


_WITHOUT_POOLED_HEAD: WeakKeyDictionary[nn.Module, set[tuple[str, ...]]] = WeakKeyDictionary()
"""Layers without global average pooling and a linear head, remembered so that later batches skip the attempt."""


def _compute_maps_in_closed_form(
    model: nn.Module, images: Tensor, modules: dict[str, nn.Module], target: Target
) -> tuple[_BatchMaps | None, Tensor | None]:
    """Compute the maps in one forward pass without a graph, unless a layer does not feed a pooled head.

    A callable target has no closed form.

    Returns:
        The maps, or None; and the logits of the forward pass, if there was one.
    """
    names = tuple(modules)
    if callable(target) or names in _WITHOUT_POOLED_HEAD.get(model, ()):
        return None, None
    with torch.inference_mode(False), torch.no_grad():
        output, activations = capture_activations(model, images, modules, graph=False)
        logits = extract_logits(output)
        candidates = {name: find_pooled_head(model, values, logits) for name, values in activations.items()}
        heads = {name: head for name, head in candidates.items() if head is not None}
        if len(heads) < len(candidates):
            if bool(torch.isfinite(logits).all()):
                _WITHOUT_POOLED_HEAD.setdefault(model, set()).add(names)
            return None, logits
        # Half-precision logits have three digits; those recomputed from the activations have seven.
        is_half_precision = logits.dtype != torch.promote_types(logits.dtype, torch.float32)
        logits = next(iter(heads.values())).logits if is_half_precision else logits
        classes = resolve_classes(target, logits)
        maps = {
            name: compute_signed_map(values, heads[name].weight(classes).detach())
            for name, values in activations.items()
        }
    run = _BatchMaps(
        scalars=class_logits(logits).gather(1, classes[:, None])[:, 0],
        logits=logits,
        classes=classes,
        activations=activations,
        maps=maps,
        heads=heads,
    )
    return run, logits


def _compute_maps_by_backward(
    model: nn.Module, images: Tensor, modules: dict[str, nn.Module], target: Target, method: str
) -> _BatchMaps:
    """Compute the maps by a truncated backward pass, or with pytorch-grad-cam."""
    maps: dict[str, Tensor] = {}
    heads: dict[str, PooledHead] = {}
    with torch.inference_mode(False), torch.enable_grad(), frozen_parameters(model):
        output, activations = capture_activations(model, images, modules)
        scalars, logits, classes = resolve_target(target, output)
        if len(scalars) != len(images):
            raise ExplainError(
                f"the model returned {len(scalars)} rows for {len(images)} images", "Return one per image."
            )
        if method == "gradcam":
            for name, values in activations.items():
                head = None if classes is None else find_pooled_head(model, values, logits)
                if head is not None and classes is not None:
                    heads[name] = head
                    maps[name] = compute_signed_map(values.detach(), head.weight(classes).detach())
            without_head = [name for name in activations if name not in heads]
            gradient_maps = compute_gradient_maps(scalars, [activations[name] for name in without_head])
            maps |= zip(without_head, gradient_maps, strict=True)
    if method != "gradcam":
        for name, module in modules.items():
            grid = activations[name].shape[2:]
            maps[name] = methods.compute_library_map(model, images, module, grid, method, target, classes)
    return _BatchMaps(
        scalars=scalars,
        logits=logits,
        classes=classes,
        activations=activations,
        maps={name: maps[name] for name in activations},
        heads=heads,
    )


def _check_inputs(model: nn.Module, images: Any, target_masks: Any, neighbour_masks: Any) -> tuple[Tensor, _Masks]:
    """Check model, images and masks, and move images and masks to the model's device."""
    check_evaluation_mode(model)
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
            # Shares are computed in float64, which Apple GPUs lack.
            mask = torch.as_tensor(mask, device="cpu" if images.device.type == "mps" else images.device)
            if tuple(mask.shape) != expected:
                problem = f"{name} have shape {tuple(mask.shape)}, the images {tuple(images.shape)}"
                remedy = f"Pass masks {expected}: one per cell, without a channel axis, at the images' resolution."
                raise ExplainError(problem, remedy)
        masks.append(mask)
    assert masks[0] is not None
    return images, (masks[0], masks[1])


def _class_columns(run: _BatchMaps) -> dict[str, Tensor]:
    """Return the columns that depend on the model's output alone."""
    columns, logits = {"logit": run.scalars}, run.logits
    if logits.ndim == 2 and logits.shape[1] > 0:
        columns["predicted_class"] = class_logits(logits).argmax(1)
    if run.classes is not None:
        columns["target_class"] = run.classes
        columns["probability"] = class_probabilities(logits.detach()).gather(1, run.classes[:, None])[:, 0]
    return columns


def _library_overlap(maps: Sequence[Tensor], masks: _Masks) -> Overlap:
    """Measure the overlap of maps resampled as pytorch-grad-cam does.

    At full resolution U is the identity and the ceiling is 1, so columns that need a ceiling are NULL.
    """
    crop = masks[0].shape[1:]
    regions = project_regions(*masks, crop)
    measured = measure_overlap(methods.resample_maps(maps, crop), regions)
    null = torch.full_like(measured.gradcamo, torch.nan)
    return replace(measured, gradcamo_max=null, gradcamo_adjusted=null, looks_at=torch.full_like(measured.looks_at, -1))


def _average_maps(maps: Sequence[Tensor], crop: Sequence[int]) -> Tensor:
    """Average maps after dividing each by its mass and resampling it linearly to the finest grid."""
    finest = tuple(max(sizes) for sizes in zip(*(values.shape[1:] for values in maps), strict=True))
    mode = "bilinear" if len(finest) == 2 else "trilinear"
    total = torch.zeros((), device=maps[0].device)
    for values in maps:
        area = compute_footprint(tuple(crop), tuple(values.shape[1:]), torch.device("cpu")).to(values)
        mass = (values * area).flatten(1).sum(1).clamp_min(torch.finfo(values.dtype).tiny)
        scaled = values / mass.reshape(-1, *(1,) * len(finest))
        total = total + torch.nn.functional.interpolate(scaled[:, None], size=finest, mode=mode)[:, 0] / len(maps)
    return total
