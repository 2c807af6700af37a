"""What a trained encoder is worth on cells it never saw: a row a cell from one pass, and the numbers made of the rows.

Here: judging cells, and what a version was made from. Not here: pictures, MLflow, comparing versions.
"""

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
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.provenance import digest
from gradcamo_assets.scoring.scorer import ON_TARGET_THRESHOLD

METRICS = {
    "accuracy": "share of cells whose class was predicted",
    "balanced_accuracy": "mean over classes of the share of their cells whose class was predicted",
    "ece": "expected calibration error: mean distance of confidence and accuracy over ten bins of confidence",
    "median_gradcamo": "median share of the map inside the cell",
    "median_adjusted": "the same, 0 for chance and 1 for the best this map's resolution allows",
    "on_target_fraction": "share of cells with more than half of their map inside",
    "looks_at_target": "share of cells whose map looks at the cell; likewise _neighbour, _background and _none",
    "crops": "cells judged",
    "audited": "cells of a sample of test cells, each put into the surroundings of three cells of other treatments",
    "accuracy_audited": "balanced accuracy on this sample as it is",
    "accuracy_swapped": "balanced accuracy on the same cells in these surroundings",
    "survives_swap": "share of them whose class stays there, more probable than with another cell in their place",
    "trusted": "share of them that survive so and whose map looks at the cell",
}
"""The metrics of a version in MLflow, each behind the part it was measured on: ``val_``, ``test_`` (wells held out) and
``unseen_`` (plates that are not in the split; absent where there are none). Beside them ``seconds`` and
``seconds_per_crop`` of training, ``peak_memory_mb`` of the process, ``peak_gpu_memory_mb`` on a GPU."""

_BINS = 10
_FLOATS = ("probability", "gradcamo", "mask_fraction", "gradcamo_max", "gradcamo_adjusted")
_SCHEMA: dict[str, type[pl.DataType]] = {
    "true_class": pl.String,
    "predicted_class": pl.String,
    **dict.fromkeys(_FLOATS, pl.Float64),
    "looks_at": pl.String,
}


def judge(
    model: nn.Module, layers: Sequence[str], dataset: CropDataset, classes: Sequence[str], batch_size: int = 16
) -> dict[str, pl.DataFrame]:
    """Predict and score every cell of a dataset in one pass, on the GPU if there is one.

    Args:
        model: in eval mode. layers: dotted names of the layers to explain. classes: name of each logit.

    Returns:
        By layer, a row a cell in the dataset's order: ``Metadata_CellID``, plate, well, ``true_class``,
        ``predicted_class``, ``probability``, ``gradcamo``, ``mask_fraction``, ``gradcamo_max``, ``gradcamo_adjusted``,
        ``looks_at``, ``on_target``.
    """
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    columns: dict[str, dict[str, list]] = {layer: {name: [] for name in _SCHEMA} for layer in layers}
    for *crops, targets in DataLoader(dataset, batch_size):
        images, labels = as_taken(model, *crops)
        result = gradcamo(model, images, labels == TARGET, layer=layers, neighbour_masks=labels == NEIGHBOUR)
        for layer in layers:
            found = (result.layers[layer] if len(layers) > 1 else result).columns()
            found["true_class"] = [classes[index] for index in targets.tolist()]
            found["predicted_class"] = [classes[index] for index in found["predicted_class"]]
            for name, values in columns[layer].items():
                values += found[name]
    ids, path = dataset.cell_ids, pl.col("Metadata_CellID").str.split("/")
    return {
        layer: pl.DataFrame({"Metadata_CellID": ids, **values}, {"Metadata_CellID": pl.String, **_SCHEMA}).with_columns(
            Metadata_Plate=path.list.get(0),
            Metadata_Well=path.list.get(1),
            on_target=pl.col("gradcamo") > ON_TARGET_THRESHOLD,
        )
        for layer, values in columns.items()
    }


def as_taken(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Crops (B, C, 1, Y, X) and their labels without z, where the network takes planes; else as they are."""
    return (images.squeeze(2), labels.squeeze(1)) if is_2d(model) else (images, labels)


def measured(cells: pl.DataFrame, part: str) -> dict[str, float]:
    """``METRICS`` of judged cells, each name behind ``part`` and an underscore; what is unknown is left out."""
    if cells.is_empty():
        return {}
    hit = pl.col("predicted_class") == pl.col("true_class")
    looks = pl.col("looks_at").filter(pl.col("gradcamo").is_not_null())
    bins = calibration(cells)
    numbers = cells.select(
        accuracy=hit.mean(),
        median_gradcamo=pl.col("gradcamo").median(),
        median_adjusted=pl.col("gradcamo_adjusted").median(),
        on_target_fraction=pl.col("on_target").mean(),
        **{f"looks_at_{region}": (looks == region).mean() for region in ("target", "neighbour", "background", "none")},
        crops=pl.len(),
    ).row(0, named=True)
    numbers["balanced_accuracy"] = balanced_accuracy(cells)
    numbers["ece"] = (bins["cells"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(cells)
    return {f"{part}_{name}": float(value) for name, value in numbers.items() if value is not None}


def balanced_accuracy(cells: pl.DataFrame, predicted: str = "predicted_class") -> float:
    """Mean over the true classes of the share of their cells with that class in the column ``predicted``."""
    hit = pl.col(predicted) == pl.col("true_class")
    return float(cells.group_by("true_class").agg(hit.mean().alias("recall"))["recall"].to_numpy().mean())


def calibration(cells: pl.DataFrame) -> pl.DataFrame:
    """Confidence against accuracy in bins of equal width (Guo et al., ICML 2017, arXiv 1706.04599).

    Returns:
        A row a bin that holds cells: ``low`` < ``probability`` <= ``high``, ``cells``, mean ``confidence`` and
        ``accuracy``.
    """
    place = (pl.col("probability") * _BINS).ceil().clip(1, _BINS)
    return (
        cells.group_by(high=place / _BINS)
        .agg(
            cells=pl.len(),
            confidence=pl.col("probability").mean(),
            accuracy=(pl.col("predicted_class") == pl.col("true_class")).mean(),
        )
        .sort("high")
        .select((pl.col("high") - 1 / _BINS).alias("low"), "high", "cells", "confidence", "accuracy")
    )


def confusion(cells: pl.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(K, K) cells of each true class (row) by predicted class (column)."""
    from sklearn.metrics import confusion_matrix

    if cells.is_empty():
        return np.zeros((len(classes), len(classes)), np.int64)
    return confusion_matrix(cells["true_class"], cells["predicted_class"], labels=list(classes))


def best_median_worst(cells: pl.DataFrame, each: int = 2) -> list[int]:
    """Rows of the cells with the highest, the middle and the lowest ``gradcamo_adjusted``, in this order."""
    rows = cells.with_row_index().drop_nulls("gradcamo_adjusted").sort("gradcamo_adjusted", descending=True)["index"]
    middle = max(0, (len(rows) - each) // 2)
    return list(dict.fromkeys([*rows[:each], *rows[middle : middle + each], *rows[-each:]]))


def unseen_cells(cells: pl.DataFrame, split: pl.DataFrame, most: int = 5000) -> pl.DataFrame:
    """Cells of plates that are not in the split, of classes that are, the same ones every time.

    A plate that shares fewer than two classes with the split is left out: its accuracy would say little.

    Args:
        cells: kept cells of all plates with ``Metadata_CellID``, ``Metadata_Plate``, ``Metadata_Well``,
            ``treatment_class``.
        split: ``Metadata_Plate``, ``Metadata_Well``, ``split``. most: larger numbers are sampled down to it.
    """
    inside = cells.join(split, on=["Metadata_Plate", "Metadata_Well"], how="semi")
    classes = inside["treatment_class"].drop_nulls().unique().implode()
    others = cells.join(split, on="Metadata_Plate", how="anti").filter(pl.col("treatment_class").is_in(classes))
    return sampled(others.filter(pl.col("treatment_class").n_unique().over("Metadata_Plate") > 1), most)


def sampled(cells: pl.DataFrame, most: int) -> pl.DataFrame:
    """At most so many cells, the same ones every time."""
    cells = cells.sort("Metadata_CellID")
    return cells if len(cells) <= most else cells.sample(most, seed=0)


def made_with() -> dict[str, str]:
    """Versions of the code as MLflow tags: this package, torch, numpy, and the commit where the package is a clone."""
    tags = {"gradcamo-assets": version("gradcamo-assets"), "torch": str(torch.__version__), "numpy": np.__version__}
    git = ["git", "-C", str(Path(gradcamo_assets.__file__).parent)]
    try:
        # An installed package may lie in the working tree of another project, which does not track it.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        commit = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        tags["mlflow.source.git.commit"] = subprocess.run(
            commit, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return tags


def data_versions(parts: Mapping[str, CropDataset], cells: pl.DataFrame) -> dict[str, dict]:
    """By plate: digests of the crops and masks that were read, and how many crops of each part.

    Args:
        parts: what was read. cells: ``Metadata_Plate`` and, where known, ``mask_version``.
    """
    read: dict[str, set[str]] = {}
    counts: dict[str, dict[str, int]] = {}
    for part, dataset in parts.items():
        for field, row, _ in dataset.items:
            plate = dataset.fields[field].cell_ids[row].split("/")[0]
            read.setdefault(plate, set()).add(dataset.fields[field].version)
            counts.setdefault(plate, dict.fromkeys(parts, 0))[part] += 1
    versions = {plate: {"crop_version": digest(sorted(read[plate])), "crops": counts[plate]} for plate in sorted(read)}
    if "mask_version" in cells.columns:
        for plate in versions:
            masks = cells.filter(Metadata_Plate=plate)["mask_version"].drop_nulls().unique().sort()
            versions[plate]["mask_version"] = digest(masks.to_list())
    return versions


def peak_memory() -> Mapping[str, float]:
    """``peak_memory_mb``, the most this process ever held, and ``peak_gpu_memory_mb`` on a GPU; in MiB."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return peak
