"""Hyperparameters steered by where encoders look, as arXiv 2403.17615 proposes: layers, crop sizes and masking.

A layer is chosen by explaining the same cells at each; a crop size or a masking by training a small encoder with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from gradcamo_assets.cells import BACKGROUND, TARGET
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.provenance import digest
from gradcamo_assets.training.compare import MEASURES, mean_by_wells
from gradcamo_assets.training.evaluation import judge
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.training import train_encoder

MASKINGS = ("none", "target", "background")
"""Nothing hidden; all but the target cell; the background alone. Hidden voxels get 0, the plate's background."""


_MEDIANS = {
    "median_gradcamo": "gradcamo",
    "median_chance": "mask_fraction",
    "median_ceiling": "gradcamo_max",
    "median_adjusted": "gradcamo_adjusted",
}


class VariedCrops(CropDataset):
    """The middle of stored crops, parts of it hidden.

    Args:
        crops: the stored ones. size: in-plane edge in voxels, at most theirs; z stays. masking: one of ``MASKINGS``.

    Raises:
        GradcamoError: for a size that the crops do not have, or an unknown masking.
    """

    def __init__(self, crops: CropDataset, size: int, masking: str = "none"):
        edges = [*crops.fields[0].images.shape[-2:]] if crops.fields else []
        if edges and not 1 <= size <= min(edges):
            raise GradcamoError(f"no crop of {size} voxels lies in one of {edges}", "Name sizes the crops contain.")
        if masking not in MASKINGS:
            raise GradcamoError(f"there is no masking {masking!r}", f"Choose of {', '.join(MASKINGS)}.")
        self.__dict__.update(crops.__dict__)
        self.crops, self.size, self.masking = crops, size, masking

    @property
    def identity(self) -> str:
        """Digest of which crops these are and of what is left of them."""
        return digest([self.crops.identity, self.size, self.masking])

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, int]:
        image, labels, target = self.crops[item]  # Which keeps what it read for all variants.
        y, x = ((edge - self.size) // 2 for edge in labels.shape[-2:])
        window = (..., slice(y, y + self.size), slice(x, x + self.size))
        image, labels = image[window], labels[window]
        if self.masking != "none":
            hidden = labels != TARGET if self.masking == "target" else labels == BACKGROUND
            image = image.masked_fill(hidden, 0.0)
        return image.contiguous(), labels.contiguous(), target


def stages(model: nn.Module, images: Tensor, layer: str) -> list[str]:
    """Dotted names of the layers that end the stages of a network: its last block at each resolution, and ``layer``.

    Args:
        images: what the model takes, one is enough. layer: the explained one, which stands for its own resolution.
    """
    last: dict[tuple[int, ...], str] = {}

    def see(name: str, output: object) -> None:
        if (
            isinstance(output, Tensor)
            and output.ndim == images.ndim
            and last.get(grid := tuple(output.shape[2:])) != layer
        ):
            last[grid] = name

    blocks = {name for name, module in model.named_modules() if name and any(module.children())} | {layer}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: see(name, output))
        for name in blocks
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for grid, name in last.items() if max(grid) > 1 or name == layer]


def layer_sweep(model: nn.Module, layers: Sequence[str], crops: CropDataset, classes: Sequence[str]) -> pl.DataFrame:
    """The same cells explained at several layers, in one pass: a row a layer, ``layer`` and the columns of ``_row``."""
    judged = judge(model, list(dict.fromkeys(layers)), crops, classes)
    return pl.DataFrame([{"layer": layer, **_row(cells)} for layer, cells in judged.items()], infer_schema_length=None)


def crop_sweep(
    parts: Mapping[str, CropDataset],
    classes: Sequence[str],
    config: TrainingConfig,
    sizes: Sequence[int],
    maskings: Sequence[str],
    *,
    work: Path,
    report: Callable[[str], None] = lambda line: None,
) -> pl.DataFrame:
    """Train an encoder with each size and masking, and judge it on test wells seen through the same window.

    Args:
        parts: ``train``, ``val`` and ``test``. config: of each training. sizes, maskings: as of ``VariedCrops``.
        work: folder for scratch files. report: called with one line a training.

    Returns:
        A row a training: ``size``, ``masking``, the columns of ``_row``, and ``seconds`` of training.
    """
    variants = [
        (size, masking, {part: VariedCrops(crops, size, masking) for part, crops in parts.items()})
        for size, masking in product(sizes, maskings)
    ]
    rows = []
    for size, masking, varied in variants:
        result = train_encoder(varied["train"], varied["val"], classes, config, work=work, progress=False)
        shutil.rmtree(result.checkpoints, ignore_errors=True)
        cells = judge(result.model, [result.layer], varied["test"], classes)[result.layer]
        row = {"size": size, "masking": masking, **_row(cells), "seconds": result.metrics["seconds"]}
        report(f"{size} voxels, masking {masking}: accuracy {row['accuracy']:.2f}, "
               f"on target {row['on_target_fraction'] or 0:.2f}")  # fmt: skip
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _row(cells: pl.DataFrame) -> dict[str, Any]:
    """What a setting is worth: accuracy and on-target share with 95% intervals over wells, medians, and what bounds
    the score: ``median_chance``, the share of the crop that the mask fills, and ``median_ceiling``."""
    row: dict[str, Any] = {"n_cells": len(cells), "null_cells": cells["gradcamo"].null_count()}
    for measure in ("accuracy", "on_target_fraction"):
        ends = mean_by_wells(cells.with_columns(value=MEASURES[measure]))
        row |= zip((measure, f"{measure}_low", f"{measure}_high"), ends, strict=True)
    for name, column in _MEDIANS.items():
        row[name] = cells[column].median()
    return row
