"""Measure, with the swap test, how much of a version's test accuracy remains in other cells' surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from torch import nn
from torch.utils.data import default_collate

from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.cells.cell_rows import sample_cells
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.explain.swap_test import compute_swap_columns, run_network
from gradcamo_assets.scoring.audit import split_into_parts
from gradcamo_assets.training.evaluation import balanced_accuracy, to_model_input

_SAMPLE_SIZE = 200


def run_swap_test(
    model: nn.Module,
    layer: str,
    dataset: CropDataset,
    evaluated: pl.DataFrame,
    classes: Sequence[str],
    max_cells: int = _SAMPLE_SIZE,
) -> pl.DataFrame:
    """Run the swap test on a sample of evaluated cells, and add ``swapped_class`` and ``survives_swap``.

    ``explain.swap_test`` describes these columns. Cells swap surroundings within groups of up to 64; groups with a
    single class are left out.

    Args:
        dataset: the dataset that was evaluated.
        evaluated: result of ``evaluate_cells`` on it, with all its rows.
        classes: name of each logit.
        max_cells: size of the sample, which is reproducible.
    """
    sample = sample_cells(evaluated.with_row_index(), max_cells)
    empty = sample.clear().with_columns(swapped_class=pl.lit("").cast(pl.String), survives_swap=pl.lit(True))
    tables, device = [empty], next(model.parameters()).device
    for rows in split_into_parts(len(sample)):
        cells = sample[rows]
        if cells["true_class"].n_unique() < 2:
            continue
        crops, regions, _ = default_collate([dataset[row] for row in cells["index"]])
        images, labels = to_model_input(model, crops.to(device), regions.to(device))
        result = compute_swap_columns(
            model,
            images,
            target=labels == TARGET,
            neighbours=labels == NEIGHBOUR,
            layer=layer,
            intact=run_network(model, images, layer),
            treatments=cells["true_class"].to_list(),
        )
        tables.append(
            cells.with_columns(
                pl.Series("swapped_class", [classes[int(index)] for index in result["swapped_class"]]),
                pl.Series("survives_swap", result["survives_swap"] > 0),
            )
        )
    return pl.concat(tables).drop("index")


def swap_metrics(cells: pl.DataFrame, part: str) -> dict[str, float]:
    """Compute the swap test's ``METRICS``, each name prefixed with ``part`` and an underscore; none for no cells.

    Args:
        cells: result of ``run_swap_test``.
    """
    if cells.is_empty():
        return {}
    survives = cells["survives_swap"].to_numpy()
    looks_at_target = (cells["looks_at"] == "target").fill_null(False).to_numpy()
    treatments = cells.group_by("Metadata_Plate", "Metadata_Well").agg(pl.col("true_class").n_unique())
    metrics = {
        "audited": len(cells),
        "accuracy_audited": balanced_accuracy(cells),
        "accuracy_swapped": balanced_accuracy(cells, "swapped_class"),
        "survives_swap": survives.mean(),
        "trusted": (looks_at_target & survives).mean(),
        "one_treatment_per_well": float(treatments["true_class"].max() == 1),
    }
    return {f"{part}_{name}": float(value) for name, value in metrics.items()}
