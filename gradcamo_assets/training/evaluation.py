"""Evaluate a trained encoder on held-out cells, and record the versions of code and data behind it."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradcamo_assets
from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.cells.cell_rows import sample_cells
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.provenance import digest
from gradcamo_assets.thresholds import THRESHOLDS

METRICS = {
    "accuracy": "share of cells whose class was predicted",
    "balanced_accuracy": "mean over classes of the share of their cells whose class was predicted",
    "ece": "expected calibration error: mean distance between confidence and accuracy over ten bins of confidence",
    "median_gradcamo": "median share of the map inside the cell",
    "median_adjusted": "median adjusted score: 0 is chance, 1 the best the map's resolution allows",
    "on_target_fraction": "share of cells with more than half of their map inside",
    "looks_at_target": "share of cells whose map looks at the cell; likewise _neighbour, _background and _none",
    "crops": "number of evaluated cells",
    "audited": "number of test cells in the swap test, each in the surroundings of three cells of other treatments",
    "accuracy_audited": "balanced accuracy on these cells without a change",
    "accuracy_swapped": "balanced accuracy on these cells in other surroundings",
    "survives_swap": "share of these cells that keep their class in other surroundings, with a higher probability than "
    "another cell in their place",
    "trusted": "share of these cells that survive the swap and whose map looks at the cell",
    "one_treatment_per_well": "1 if these cells have one treatment in each well, else 0",
}
"""Metrics of a version in MLflow. Each name is prefixed with the part it was measured on: ``val_``, ``test_`` (held-out
wells) or ``unseen_`` (plates outside the split; absent if there are none). MLflow also has ``seconds`` and
``seconds_per_crop`` of training, ``peak_memory_mb`` of the process and, on a GPU, ``peak_gpu_memory_mb``."""

_BINS = 10
_FLOATS = ("probability", "gradcamo", "mask_fraction", "gradcamo_max", "gradcamo_adjusted")
_SCHEMA: dict[str, type[pl.DataType]] = {
    "true_class": pl.String,
    "predicted_class": pl.String,
    **dict.fromkeys(_FLOATS, pl.Float64),
    "looks_at": pl.String,
}


def evaluate_cells(
    model: nn.Module, layers: Sequence[str], dataset: CropDataset, classes: Sequence[str], batch_size: int = 16
) -> dict[str, pl.DataFrame]:
    """Predict and score every cell of a dataset in one pass, on the GPU if there is one.

    Args:
        model: in eval mode.
        layers: dotted names of the layers to explain.
        classes: name of each logit.

    Returns:
        By layer, one row per cell in the dataset's order: ``Metadata_CellID``, plate, well, ``true_class``,
        ``predicted_class``, ``probability``, ``gradcamo``, ``mask_fraction``, ``gradcamo_max``, ``gradcamo_adjusted``,
        ``looks_at``, ``on_target``.
    """
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    columns: dict[str, dict[str, list]] = {layer: {name: [] for name in _SCHEMA} for layer in layers}
    for *crops, targets in DataLoader(dataset, batch_size):
        images, labels = to_model_input(model, *crops)
        result = gradcamo(model, images, labels == TARGET, layer=layers, neighbour_masks=labels == NEIGHBOUR)
        for layer in layers:
            batch = (result.layers[layer] if len(layers) > 1 else result).columns()
            batch["true_class"] = [classes[index] for index in targets.tolist()]
            batch["predicted_class"] = [classes[index] for index in batch["predicted_class"]]
            for name, values in columns[layer].items():
                values += batch[name]
    cell_ids, id_parts = dataset.cell_ids, pl.col("Metadata_CellID").str.split("/")
    schema: dict[str, type[pl.DataType]] = {"Metadata_CellID": pl.String, **_SCHEMA}
    return {
        layer: pl.DataFrame({"Metadata_CellID": cell_ids, **values}, schema).with_columns(
            Metadata_Plate=id_parts.list.get(0),
            Metadata_Well=id_parts.list.get(1),
            on_target=pl.col("gradcamo") > THRESHOLDS.paper,
        )
        for layer, values in columns.items()
    }


def to_model_input(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the z axis of images (B, C, 1, Y, X) and labels (B, 1, Y, X) for a 2D network; leave others unchanged."""
    return (images.squeeze(2), labels.squeeze(1)) if is_2d(model) else (images, labels)


def compute_metrics(cells: pl.DataFrame, part: str) -> dict[str, float]:
    """Compute ``METRICS`` of evaluated cells, each name prefixed with ``part`` and an underscore.

    Metrics without a value are left out.
    """
    if cells.is_empty():
        return {}
    hit = pl.col("predicted_class") == pl.col("true_class")
    looks = pl.col("looks_at").filter(pl.col("gradcamo").is_not_null())
    bins = calibration_bins(cells)
    metrics = cells.select(
        accuracy=hit.mean(),
        median_gradcamo=pl.col("gradcamo").median(),
        median_adjusted=pl.col("gradcamo_adjusted").median(),
        on_target_fraction=pl.col("on_target").mean(),
        **{f"looks_at_{region}": (looks == region).mean() for region in ("target", "neighbour", "background", "none")},
        crops=pl.len(),
    ).row(0, named=True)
    metrics["balanced_accuracy"] = balanced_accuracy(cells)
    metrics["ece"] = (bins["cells"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(cells)
    return {f"{part}_{name}": float(value) for name, value in metrics.items() if value is not None}


def balanced_accuracy(cells: pl.DataFrame, predicted: str = "predicted_class") -> float:
    """Return the mean recall over the true classes; ``predicted`` names the column of predictions."""
    hit = pl.col(predicted) == pl.col("true_class")
    return float(cells.group_by("true_class").agg(hit.mean().alias("recall"))["recall"].to_numpy().mean())


def calibration_bins(cells: pl.DataFrame) -> pl.DataFrame:
    """Compare confidence with accuracy in bins of equal width (Guo et al., ICML 2017, arXiv 1706.04599).

    Returns:
        One row per bin with cells: ``low`` < ``probability`` <= ``high``, ``cells``, mean ``confidence`` and
        ``accuracy``.
    """
    bin_number = (pl.col("probability") * _BINS).ceil().clip(1, _BINS)
    return (
        cells.group_by(high=bin_number / _BINS)
        .agg(
            cells=pl.len(),
            confidence=pl.col("probability").mean(),
            accuracy=(pl.col("predicted_class") == pl.col("true_class")).mean(),
        )
        .sort("high")
        .select((pl.col("high") - 1 / _BINS).alias("low"), "high", "cells", "confidence", "accuracy")
    )


def confusion_counts(cells: pl.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Count cells by true class (row) and predicted class (column): (K, K)."""
    from sklearn.metrics import confusion_matrix

    if cells.is_empty():
        return np.zeros((len(classes), len(classes)), np.int64)
    return confusion_matrix(cells["true_class"], cells["predicted_class"], labels=list(classes))


def best_median_worst(cells: pl.DataFrame, each: int = 2) -> list[int]:
    """Return the row numbers of the cells with the highest, median and lowest ``gradcamo_adjusted``, in this order.

    Args:
        each: number of cells in each of the three groups.
    """
    rows = cells.with_row_index().drop_nulls("gradcamo_adjusted").sort("gradcamo_adjusted", descending=True)["index"]
    middle = max(0, (len(rows) - each) // 2)
    return list(dict.fromkeys([*rows[:each], *rows[middle : middle + each], *rows[-each:]]))


def unseen_cells(cells: pl.DataFrame, split: pl.DataFrame, max_cells: int = 5000) -> pl.DataFrame:
    """Select cells of plates outside the split whose class occurs in the split. The selection is reproducible.

    A plate that shares fewer than two classes with the split is left out, because its accuracy means little.

    Args:
        cells: kept cells of all plates with ``Metadata_CellID``, ``Metadata_Plate``, ``Metadata_Well``,
            ``treatment_class``.
        split: ``Metadata_Plate``, ``Metadata_Well``, ``split``.
        max_cells: a larger number is sampled down to it.
    """
    split_cells = cells.join(split, on=["Metadata_Plate", "Metadata_Well"], how="semi")
    classes = split_cells["treatment_class"].drop_nulls().unique().implode()
    others = cells.join(split, on="Metadata_Plate", how="anti").filter(pl.col("treatment_class").is_in(classes))
    return sample_cells(others.filter(pl.col("treatment_class").n_unique().over("Metadata_Plate") > 1), max_cells)


def code_versions() -> dict[str, str]:
    """Return MLflow tags: versions of this package, torch and numpy, and the Git commit if the package is a clone."""
    tags = {"gradcamo-assets": version("gradcamo-assets"), "torch": str(torch.__version__), "numpy": np.__version__}
    git = ["git", "-C", str(Path(gradcamo_assets.__file__).parent)]
    try:
        # The working tree around an installed package may belong to another project, which does not track it.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        commit = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        tags["mlflow.source.git.commit"] = subprocess.run(
            commit, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return tags


def data_versions(parts: Mapping[str, CropDataset], cells: pl.DataFrame) -> dict[str, dict]:
    """Return, by plate, digests of the crops and masks that were read, and the number of crops in each part.

    Args:
        parts: datasets by part.
        cells: ``Metadata_Plate`` and, where known, ``mask_version``.
    """
    crop_versions: dict[str, set[str]] = {}
    counts: dict[str, dict[str, int]] = {}
    for part, dataset in parts.items():
        for field, row, _ in dataset.items:
            plate = dataset.fields[field].cell_ids[row].split("/")[0]
            crop_versions.setdefault(plate, set()).add(dataset.fields[field].version)
            counts.setdefault(plate, dict.fromkeys(parts, 0))[part] += 1
    versions = {
        plate: {"crop_version": digest(sorted(plate_versions)), "crops": counts[plate]}
        for plate, plate_versions in sorted(crop_versions.items())
    }
    if "mask_version" in cells.columns:
        for plate in versions:
            masks = cells.filter(Metadata_Plate=plate)["mask_version"].drop_nulls().unique().sort()
            versions[plate]["mask_version"] = digest(masks.to_list())
    return versions


def peak_memory() -> Mapping[str, float]:
    """Return ``peak_memory_mb`` of this process and, on a GPU, ``peak_gpu_memory_mb``, both in MiB."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return peak
