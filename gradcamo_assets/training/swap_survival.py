"""The swap test as evidence of a version: what is left of its accuracy when test cells stand in other surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from torch import nn
from torch.utils.data import default_collate

from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.explain.swap_test import compute_swap_columns, run_network
from gradcamo_assets.scoring.audit import split_into_parts
from gradcamo_assets.training.evaluation import as_taken, balanced_accuracy, sampled

_MOST = 200


def audited(
    model: nn.Module, layer: str, dataset: CropDataset, judged: pl.DataFrame, classes: Sequence[str], most: int = _MOST
) -> pl.DataFrame:
    """A sample of the cells that ``judge`` found in a dataset, with ``swapped_class`` and ``survives_swap``.

    ``explain.swap_test`` describes the columns. Cells change places with up to 63 others; groups without another
    class are left out.

    Args:
        most: cells of the sample, which is the same every time.
    """
    rows = sampled(judged.with_row_index(), most)
    empty = rows.clear().with_columns(swapped_class=pl.lit("").cast(pl.String), survives_swap=pl.lit(True))
    tables, device = [empty], next(model.parameters()).device
    for part in split_into_parts(len(rows)):
        cells = rows[part]
        if cells["true_class"].n_unique() < 2:
            continue
        crops, regions, _ = default_collate([dataset[row] for row in cells["index"]])
        images, labels = as_taken(model, crops.to(device), regions.to(device))
        intact, treatments = run_network(model, images, layer), cells["true_class"].to_list()
        found = compute_swap_columns(model, images, labels == TARGET, labels == NEIGHBOUR, layer, intact, treatments)
        tables.append(
            cells.with_columns(
                pl.Series("swapped_class", [classes[int(index)] for index in found["swapped_class"]]),
                pl.Series("survives_swap", found["survives_swap"] > 0),
            )
        )
    return pl.concat(tables).drop("index")


def survived(cells: pl.DataFrame, part: str) -> dict[str, float]:
    """``METRICS`` of ``audited`` cells, each name behind ``part`` and an underscore; none of no cell."""
    if cells.is_empty():
        return {}
    survives = cells["survives_swap"].to_numpy()
    looks = (cells["looks_at"] == "target").fill_null(False).to_numpy()
    numbers = {
        "audited": len(cells),
        "accuracy_audited": balanced_accuracy(cells),
        "accuracy_swapped": balanced_accuracy(cells, "swapped_class"),
        "survives_swap": survives.mean(),
        "trusted": (looks & survives).mean(),
    }
    return {f"{part}_{name}": float(value) for name, value in numbers.items()}
