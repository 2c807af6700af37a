"""Compare layers, crop sizes and maskings by accuracy and Grad-CAMO, as arXiv 2403.17615 proposes.

Layers are compared by explaining the same cells at each layer. Crop sizes and maskings are compared by training a small
encoder for each setting.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from gradcamo_assets.cells import BACKGROUND, TARGET
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.explain.layout import is_channels_last
from gradcamo_assets.provenance import digest
from gradcamo_assets.training.compare import MEASURES, mean_with_interval
from gradcamo_assets.training.evaluation import evaluate_cells
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.training import train_encoder

MASKINGS = ("none", "target", "background")
"""Hide nothing; hide all but the target cell; hide the background only. Hidden voxels are 0, the plate's background."""
_MEDIANS = {
    "median_gradcamo": "gradcamo",
    "median_chance": "mask_fraction",
    "median_ceiling": "gradcamo_max",
    "median_adjusted": "gradcamo_adjusted",
}


class ReducedCrops(CropDataset):
    """The central part of stored crops, with hidden voxels set to 0.

    Args:
        crops: the stored crops.
        size: in-plane edge in voxels, at most that of the stored crops; z stays complete.
        masking: one of ``MASKINGS``.

    Raises:
        GradcamoError: if the size exceeds the stored crops or the masking is unknown.
    """

    def __init__(self, crops: CropDataset, size: int, masking: str = "none"):
        edges = [*crops.fields[0].crop_shape[-2:]] if crops.fields else []
        if edges and not 1 <= size <= min(edges):
            raise GradcamoError(
                f"crop size must be between 1 and {min(edges)} voxels, got {size}",
                f"Choose sizes that fit into the stored crops of {edges[0]} x {edges[1]} voxels.",
            )
        if masking not in MASKINGS:
            raise GradcamoError(f"unknown masking {masking!r}", f"Choose one of {', '.join(MASKINGS)}.")
        self.__dict__.update(crops.__dict__)
        self.crops, self.size, self.masking = crops, size, masking

    @property
    def identity(self) -> str:
        """Digest of the stored crops, the size and the masking."""
        return digest([self.crops.identity, self.size, self.masking])

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, int]:
        image, labels, target = self.crops[item]  # The stored dataset caches what it reads for all settings.
        y, x = ((edge - self.size) // 2 for edge in labels.shape[-2:])
        window = (..., slice(y, y + self.size), slice(x, x + self.size))
        image, labels = image[window], labels[window]
        if self.masking != "none":
            hidden = labels != TARGET if self.masking == "target" else labels == BACKGROUND
            image = image.masked_fill(hidden, 0.0)
        return image.contiguous(), labels.contiguous(), target


def find_stage_ends(model: nn.Module, images: Tensor, layer: str) -> list[str]:
    """Return dotted names of the layers that end a network's stages: its last block at each resolution, and ``layer``.

    Args:
        images: input of the model; one image is enough.
        layer: the explained layer; it represents its own resolution.
    """
    shapes: dict[str, torch.Size] = {}

    def record(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == images.ndim:
            shapes.pop(name, None)
            shapes[name] = output.shape

    blocks = {name: module for name, module in model.named_modules() if name and any(module.children())}
    blocks[layer] = model.get_submodule(layer)
    hooks = [module.register_forward_hook(partial(record, name)) for name, module in blocks.items()]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    last_at_resolution: dict[tuple[int, ...], str] = {}
    for name, shape in shapes.items():
        grid = tuple(shape[1:-1] if is_channels_last(model, images, blocks[name], shape) else shape[2:])
        if last_at_resolution.get(grid) != layer:
            last_at_resolution[grid] = name
    return [name for grid, name in last_at_resolution.items() if max(grid) > 1 or name == layer]


def layer_sweep(model: nn.Module, layers: Sequence[str], crops: CropDataset, classes: Sequence[str]) -> pl.DataFrame:
    """Explain the same cells at several layers in one pass.

    Returns:
        One row per layer: ``layer`` and the columns of ``_summary_row``.
    """
    evaluated = evaluate_cells(model, list(dict.fromkeys(layers)), crops, classes)
    rows = [{"layer": layer, **_summary_row(cells)} for layer, cells in evaluated.items()]
    return pl.DataFrame(rows, infer_schema_length=None)


def crop_sweep(
    parts: Mapping[str, CropDataset],
    classes: Sequence[str],
    config: TrainingConfig,
    sizes: Sequence[int],
    maskings: Sequence[str],
    *,
    work: Path,
    report: Callable[[str], None] = lambda line: None,
    modules: Collection[str] = (),
) -> pl.DataFrame:
    """Train an encoder with each crop size and masking, and evaluate it on test wells with the same setting.

    Args:
        parts: datasets ``train``, ``val`` and ``test``.
        config: settings of each training.
        sizes, maskings: see ``ReducedCrops``.
        work: folder for temporary files.
        report: called with one line per training.
        modules: see ``train_encoder``.

    Returns:
        One row per training: ``size``, ``masking``, the columns of ``_summary_row``, and ``seconds`` of training.
    """
    # All datasets are made first, so that a wrong setting fails before any training.
    settings = [
        (size, masking, {part: ReducedCrops(crops, size, masking) for part, crops in parts.items()})
        for size, masking in product(sizes, maskings)
    ]
    rows = []
    for size, masking, reduced in settings:
        result = train_encoder(
            reduced["train"], reduced["val"], classes, config, work=work, progress=False, modules=modules
        )
        shutil.rmtree(result.checkpoints, ignore_errors=True)
        cells = evaluate_cells(result.model, [result.layer], reduced["test"], classes)[result.layer]
        row = {"size": size, "masking": masking, **_summary_row(cells), "seconds": result.metrics["seconds"]}
        report(f"{size} voxels, masking {masking}: accuracy {row['accuracy']:.2f}, "
               f"on target {row['on_target_fraction'] or 0:.2f}")  # fmt: skip
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _summary_row(cells: pl.DataFrame) -> dict[str, Any]:
    """Summarise the cells of one setting.

    Columns: ``n_cells``, ``null_cells``, accuracy and on-target share with 95% intervals over wells, medians of the
    scores, and the bounds of the score: ``median_chance``, the share of the crop inside the mask, and
    ``median_ceiling``.
    """
    row: dict[str, Any] = {"n_cells": len(cells), "null_cells": cells["gradcamo"].null_count()}
    for measure in ("accuracy", "on_target_fraction"):
        values = mean_with_interval(cells.with_columns(value=MEASURES[measure]))
        row |= zip((measure, f"{measure}_low", f"{measure}_high"), values, strict=True)
    for name, column in _MEDIANS.items():
        row[name] = cells[column].median()
    return row
