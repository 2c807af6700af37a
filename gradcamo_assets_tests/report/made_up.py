"""Draw one of each figure from synthetic data of the size of a plate."""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from gradcamo_assets import report as figures


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: tuple[float, float, float]):
    grids = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radius, strict=True)) <= 1


def crops(count: int = 8, depth: int = 12, side: int = 64):
    """Return images (N,3,Z,Y,X), labels (N,Z,Y,X), cams (N,z,y,x) and titles."""
    rng = np.random.default_rng(0)
    shape = (depth, side, side)
    images = rng.poisson(40, (count, 3, *shape)).astype(np.uint16)
    labels, cams = np.zeros((count, *shape), np.uint8), np.zeros((count, max(1, depth // 4), 8, 8))
    for n in range(count):
        target = ball(shape, (depth / 2, 32, 32), (depth / 3 + 0.5, 14, 11))
        other = ball(shape, (depth / 2, 12 + 2 * n, 10), (depth / 3 + 0.5, 12, 9)) & ~target
        labels[n][target], labels[n][other] = 1, 2
        for channel in range(3):
            images[n, channel][target | other] += np.uint16(60 + 60 * channel)
        images[n, 0][ball(shape, (depth / 2, 32, 32), (depth / 4 + 0.5, 6, 5))] += np.uint16(400)
        if n != 3:
            cams[n, :, 3:5, (3 if n % 2 else 0) :][..., :2] = rng.uniform(0.5, 1, (cams.shape[1], 2, 2))
    titles = [f"cmpd 3 uM  {'target' if n % 2 else 'neighbour'}\nGrad-CAMO {0.1 * n:.2f}" for n in range(count)]
    return images, labels, cams, titles


def scores(wells: int = 12, sites: int = 4, cells: int = 30) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for well in range(wells):
        dose = [0.0, 0.3, 3.0, 30.0][well % 4]
        for site in range(1, sites + 1):
            for _ in range(cells):
                rows.append(
                    {
                        "Metadata_Well": f"{'ABC'[well // 4]}{well % 4 + 1:02d}",
                        "Metadata_Site": site,
                        "Metadata_Compound": "nocodazole" if dose else "DMSO",
                        "Metadata_Dose": dose,
                        "Metadata_Dose_Unit": "uM" if dose else None,
                        "gradcamo": float(np.clip(rng.normal(0.7 - 0.15 * (well % 4) - 0.04 * site, 0.12), 0, 1)),
                        "gradcamo_max": rng.uniform(0.8, 1),
                        "mask_fraction": rng.uniform(0.05, 0.15),
                        "looks_at": "target" if well % 4 < 2 else "none",
                        "umap_x": rng.normal() + 3 * (well % 4),
                        "umap_y": rng.normal() + (well % 4) ** 2,
                    }
                )
    return pl.DataFrame(rows, infer_schema_length=None)


def treatments(compounds: int, doses: int) -> list[dict[str, object]]:
    """Return a control and every dose of every compound."""
    control = {"Metadata_Compound": "DMSO", "Metadata_Dose": 0.0, "Metadata_Dose_Unit": None}
    treated = [
        {"Metadata_Compound": f"compound {number:02d}", "Metadata_Dose": float(dose), "Metadata_Dose_Unit": "uM"}
        for number in range(1, compounds + 1)
        for dose in range(1, doses + 1)
    ]
    return [control, *treated]


ONE_SCORE = {
    "gradcamo": 0.62, "neighbour_share": None, "background_share": 0.38, "mask_fraction": 0.1, "gradcamo_max": 0.9,
}  # fmt: skip


def every_figure() -> dict[str, Figure]:
    table = scores()
    by = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
    intervals = (
        table.group_by([*by, "Metadata_Site"])
        .agg(n_cells=pl.len(), on_target_fraction=(pl.col("gradcamo") > 0.5).mean())
        .sort("Metadata_Dose", "Metadata_Site")
        .with_columns(ci_low=pl.col("on_target_fraction") - 0.1, ci_high=pl.col("on_target_fraction") + 0.1)
        .with_columns(pl.when(pl.col("Metadata_Site") == 4).then(None).otherwise(pl.col("ci_low")).alias("ci_low"))
    )
    rng = np.random.default_rng(0)
    cells = np.zeros((10, 200, 220), np.uint16)
    nuclei = np.zeros_like(cells)
    for label in range(1, 13):
        centre = (5, 25 + 50 * ((label - 1) // 4), 30 + 52 * ((label - 1) % 4))
        cells[ball(cells.shape, centre, (4, 18, 20))] = label
        nuclei[ball(cells.shape, centre, (2.5, 8, 8))] = label
    field = np.stack([300 * (nuclei > 0), 120 * (cells > 0), 60 * (cells > 0)]) + rng.poisson(30, (3, *cells.shape))
    wells = table.group_by("Metadata_Well").agg(pl.col("gradcamo").median())
    history = pl.DataFrame(
        {
            "epoch": range(20),
            "train_loss": [2 * 0.85**k for k in range(20)],
            "val_loss": [2 * 0.9**k + 0.1 if k % 2 else None for k in range(20)],
            "val_accuracy": [1 - 0.7 * 0.85**k for k in range(20)],
        }
    )
    counts = rng.integers(0, 4, (6, 6)) + np.diag(rng.integers(10, 30, 6))
    bins = pl.DataFrame(
        {"confidence": [0.35, 0.55, 0.75, 0.95], "accuracy": [0.4, 0.5, 0.6, 0.9], "cells": [3, 9, 20, 80]}
    )
    points = pl.DataFrame(
        {
            "name": ["version 1, activation"] * 2 + ["version 2, activation"] * 2,
            "part": ["test", "unseen"] * 2,
            "on_target_fraction": [0.2, 0.1, 0.7, None],
            "on_target_fraction_low": [0.1, None, 0.6, None],
            "on_target_fraction_high": [0.3, None, 0.8, None],
            "accuracy": [0.9, 0.4, 0.85, 0.8],
            "accuracy_low": [0.85, None, 0.8, None],
            "accuracy_high": [0.95, None, 0.9, None],
        }
    )
    pairs = pl.DataFrame(
        {
            "name": ["version 2"] * 2 + ["version 3"] * 2,
            "measure": ["accuracy", "gradcamo_adjusted"] * 2,
            "difference": [-0.05, 0.3, 0.02, 0.1],
            "low": [-0.1, 0.2, None, None],
            "high": [0.01, 0.4, None, None],
        }
    )
    layers = pl.DataFrame(
        {
            "layer": ["body.3", "body.5", "activation"],
            "median_gradcamo": [0.3, 0.5, 0.6],
            "median_chance": [0.1, 0.1, 0.1],
            "median_ceiling": [1.0, 1.0, 0.9],
            "median_adjusted": [0.2, 0.4, 0.6],
            "on_target_fraction": [0.2, 0.5, 0.8],
            "on_target_fraction_low": [0.1, None, 0.7],
            "on_target_fraction_high": [0.3, None, 0.9],
        }
    )
    return {
        "confusion": figures.confusion_matrix(counts, [f"cmpd {k} uM" for k in range(6)]),
        "reliability": figures.reliability(bins),
        "versions": figures.accuracy_against_score(points),
        "pairs": figures.paired_differences(pairs),
        "layers": figures.layer_scores(layers),
        "crops": figures.crops_with_maps(*crops()),
        "crops_2d": figures.crops_with_maps(*crops(3, depth=1)),
        "by_stain": figures.crops_by_treatment(*crops(4)[:2], ["DNA", "ER", "Mito"], treatments(1, 3)),
        "by_treatment": figures.crops_by_treatment(*crops(13)[:2], ["DNA", "ER", "Mito"], treatments(4, 3)),
        "pipeline": figures.pipeline_on_one_cell(*(array[0] for array in crops(1)[:3]), ONE_SCORE),
        "ceiling": figures.score_against_ceiling(table),
        "overlay": figures.segmentation_overlay(field, cells, nuclei, (1.0, 0.3, 0.3), "P1, B02, site 1"),
        "umap": figures.umap_scatter(table),
        "distributions": figures.score_distributions(table),
        "intervals": figures.score_intervals(intervals),
        "curves": figures.training_curves(history),
        "plate": figures.plate_heat_map(wells, "gradcamo", "Median Grad-CAMO"),
        "plate_384": figures.plate_heat_map(
            pl.DataFrame({"Metadata_Well": ["A01", "P24"], "n": [3, None]}), "n", "Cells", limits=None
        ),
    }


def wells() -> pl.DataFrame:
    """Return a 384-well plate: every fourth well is a training well, the last has no score, one is to drop."""
    names = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    dose_ranks = [n % 4 for n in range(len(names))]
    return pl.DataFrame(
        {
            "Metadata_Well": names,
            "Metadata_Compound": ["cpd-A" if rank else "DMSO" for rank in dose_ranks],
            "Metadata_Dose": [[0.0, 0.3, 3.0, 30.0][rank] for rank in dose_ranks],
            "Metadata_Dose_Unit": "uM",
            "on_target_fraction": [
                None if rank == 1 or n == 383 else n % 101 / 100 for n, rank in enumerate(dose_ranks)
            ],
            "n_cells": 40,
            "has_cells": [name != "P24" for name in names],
            "trained": [rank == 1 for rank in dose_ranks],
            "reason": ["far below its plate" if name == "B03" else None for name in names],
        }
    )


@cache
def report_page() -> str:
    """Return a report of the size of a 384-well plate."""
    drawn = {"crops": figures.crops_with_maps(*crops(2)), "scores": figures.score_distributions(scores())}
    doses = pl.DataFrame(
        {
            "Metadata_Compound": ["DMSO", "cpd-A", "cpd-A", "cpd-A", None],
            "Metadata_Dose": [0.0, 3.0, 0.3, 30.0, None],
            "verdict": ["trusted", "undecided", "trusted", "not trusted", "too few wells"],
        }
    )
    return figures.qc_report_html(
        "P1",
        "encoder version 2",
        figures.Verdict("Most profiles look at their cell", "60% do.", [("Which doses?", "Most.")]),
        [figures.Picture(name, f"This is {name}.", f"A picture of {name}", figure) for name, figure in drawn.items()],
        [
            figures.Listing("Doses", "One row a dose", doses, {"verdict": "What to think of it"}),
            figures.Listing("Wells", "One row a well", wells()),
        ],
        wells(),
        made="today",
    )
