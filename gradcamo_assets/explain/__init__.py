"""Grad-CAM and its overlap with masks: pure tensor functions for any torch CNN, in 2D and 3D.

Here: the score and everything it is made of (layers, maps, masks projected down, signed evidence). Not here: reading
crops, batching a plate, choosing a model, storing rows, pictures.

    from gradcamo_assets.explain import gradcamo
    scores = gradcamo(model, images, target_masks, layer=model.layer4)

The names below are imported when first used, since they need torch. The functions ``overlap`` and ``evidence`` stand
in the modules of the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradcamo_assets.explain.cam import Hooked, find_layer, pooled_head
    from gradcamo_assets.explain.methods import METHODS
    from gradcamo_assets.explain.overlap import LOOKS_AT, NULL_REASONS, Overlap, mask_labels, project_mask
    from gradcamo_assets.explain.result import COLUMNS, GradcamoResult
    from gradcamo_assets.explain.score import gradcamo, score_maps

_HOME = {
    "Hooked": "cam", "find_layer": "cam", "pooled_head": "cam", "METHODS": "methods", "LOOKS_AT": "overlap",
    "NULL_REASONS": "overlap", "Overlap": "overlap", "mask_labels": "overlap", "project_mask": "overlap",
    "COLUMNS": "result", "GradcamoResult": "result", "gradcamo": "score", "score_maps": "score",
}  # fmt: skip

__all__ = [
    "COLUMNS",
    "LOOKS_AT",
    "METHODS",
    "NULL_REASONS",
    "GradcamoResult",
    "Hooked",
    "Overlap",
    "find_layer",
    "gradcamo",
    "mask_labels",
    "pooled_head",
    "project_mask",
    "score_maps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
