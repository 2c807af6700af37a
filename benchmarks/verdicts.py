"""From which numbers on can a dose be trusted? ``python -m benchmarks.verdicts [--quick]``

Encoders that read the cell, the medium or other cells, or some of each, are trained and then judged on a plate that
they have not seen, with the audit's sample of cells. True masks replace segmentation.

The truth about a cell is known by construction. It has a twin in which every pixel inside its mask is the same, and
everything around it shows another treatment: the medium and all other cells. On plates with a bright medium it has a
second twin, in which only the light of the medium differs, also where it spills over the edge of the cell. The profile
describes the cell if the prediction is the same for all twins. A dose or a plate is honest if this holds for more than
half of its cells, not honest if for at most a quarter, else mixed: neither verdict on it is an error.

Thresholds are chosen on the first half of the seeds, so that at most 5% of the plates (doses) that are not honest are
trusted. Errors of the thresholds in ``gradcamo_assets.thresholds`` are reported for both halves. ``doses`` is the view
``trusted_doses`` itself, on a database that is made from the measured cells.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.cure import TRAININGS, asked
from benchmarks.pipeline import Prepared, train_and_score
from benchmarks.verdict_plates import Judged, make_plates
from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.tables import Lake, lake_table, publish, run_sql
from gradcamo_assets.training.swap_survival import run_swap_test
from gradcamo_assets.training.training import TrainingConfig

_AUDITED = 32
"""Cells of a plate that the platform audits (``defs.assets.audit_assets``)."""
_ENCODERS = TRAININGS | {"weakly swapped": {"swap": 0.1}, "neighbours": TRAININGS["plain"]}
_FALSE_TRUST, _HONEST, _NOT_HONEST = 0.05, 0.5, 0.25
_TAUGHT = {"honest": "honest", "neighbours": "neighbour"}
"""Kind of the plates that an encoder is trained and judged on; by default ``background``."""


def judge(scorer: Scorer, judged: Judged) -> pl.DataFrame:
    """The cells of a plate with their scores and the truth, and for a sample the swap test."""
    cells = asked(scorer, judged.plate)
    for number, twin in enumerate(judged.twins):
        answer = asked(scorer, twin).select("Metadata_CellID", pl.col("predicted_class").alias(f"answer_{number}"))
        cells = cells.join(answer, on="Metadata_CellID")
    same = [pl.col(f"answer_{number}") == pl.col("predicted_class") for number in range(len(judged.twins))]
    cells = cells.with_columns(truth=pl.all_horizontal(same))
    return cells.join(_swap_test(scorer, judged.plate, cells), on="Metadata_CellID", how="left")


def _swap_test(scorer: Scorer, plate: Prepared, cells: pl.DataFrame) -> pl.DataFrame:
    """``survives_swap`` of a sample, as the platform's audit draws it."""
    classes, treatments = scorer.config.classes, cells.select("Metadata_CellID", true_class="treatment_class")
    index = {cell: classes.index(name) for cell, name in treatments.iter_rows()}
    crops = CropDataset([open_crops(path) for path in plate.crops], index, scorer.config.channels, memory=0)
    in_order = pl.DataFrame({"Metadata_CellID": crops.cell_ids}).join(
        treatments, on="Metadata_CellID", how="left", maintain_order="left"
    )
    tested = run_swap_test(scorer.model, scorer.config.layer, crops, in_order, classes, _AUDITED)
    return tested.select("Metadata_CellID", "survives_swap")


def measure(labels: str, seed: int, wells: tuple[int, int], training: TrainingConfig) -> Iterator[pl.DataFrame]:
    """Train every encoder of a seed, and yield the cells of the plate that it is judged on."""
    made: dict[str, tuple[Prepared, Judged]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, settings in _ENCODERS.items():
            kind = _TAUGHT.get(name, "background")
            if kind == "neighbour" and labels == "cell":  # A pooled plate has no such shortcut.
                continue
            if kind not in made:
                made[kind] = make_plates(kind, labels, seed, wells, Path(scratch))
            taught, judged = made[kind]
            folder = Path(scratch) / f"encoder-{name}"
            folder.mkdir()
            train_and_score(taught, replace(training, seed=seed, **settings), folder)
            cells = judge(Scorer(folder / "bundle"), judged)
            yield cells.select(
                pl.lit(labels).alias("labels"), pl.lit(seed).alias("seed"), pl.lit(name).alias("encoder"),
                pl.lit("regulariser" in settings).alias("trained_for_score"),
                "Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_CellID", "Metadata_Compound",
                "Metadata_Dose", "Metadata_Dose_Unit", "treatment_class", "predicted_class", "gradcamo",
                "gradcamo_adjusted", "on_target", "looks_at", "truth", "survives_swap",
            )  # fmt: skip


def ask_the_platform(cells: pl.DataFrame) -> pl.DataFrame:
    """Publish the cells as scores and audits of champions, one per encoder, and return the rows of ``trusted_doses``.

    ``truth`` and ``plate_truth`` are added: the share of cells whose profile describes the cell.
    """
    run = pl.concat_str("labels", "seed", "encoder", separator="-").str.replace_all(" ", "-")
    cells = cells.with_columns(
        model_name=pl.concat_str("labels", "seed", "encoder", separator=" "), model_version=pl.lit(1),
        model_run=run, to_run=run,
        true_class="treatment_class", split=pl.lit("unseen"), mask_version=pl.lit("1"), crop_version=pl.lit("1"),
        regulariser=pl.when("trained_for_score").then(pl.lit("gradcamo")).otherwise(pl.lit("none")),
        alias=pl.lit("champion"), to_version=pl.lit(1), promoted_at=pl.lit(datetime(2026, 1, 1)),
    )  # fmt: skip
    models = cells.unique("model_run", maintain_order=True)
    with tempfile.TemporaryDirectory() as scratch:
        lake = Lake(Path(scratch) / "lake")
        for table in ("models", "promotions"):
            lake.append(table, _rows_of(table, models))
        for (name,), scored in cells.group_by("model_run", maintain_order=True):
            keys = {"plate": scored["Metadata_Plate"][0], "model_run": name}
            lake.write("scores", _rows_of("scores", scored), site=1, **keys)
            lake.write("audit", _rows_of("audit", scored.drop_nulls("survives_swap")), **keys)
        publish(lake, Path(scratch) / "qc.duckdb")
        found = run_sql(Path(scratch) / "qc.duckdb", "SELECT * FROM trusted_doses")
    dose, share = ["model_name", "Metadata_Compound", "Metadata_Dose"], pl.col("truth").mean()
    found = found.join(cells.group_by(dose).agg(share), on=dose)
    found = found.join(cells.group_by("model_name").agg(plate_truth=share), on="model_name")
    return found.join(models.select("model_name", "labels", "seed", "encoder"), on="model_name")


def _rows_of(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of a lake table; those that the frame lacks are NULL."""
    return pl.concat([lake_table(table).empty(), frame], how="diagonal_relaxed").select(*lake_table(table).schema)


def choose(values: pl.Series, truth: pl.Series) -> float | None:
    """The threshold above which at most 5% of what is not honest lies, and as much as possible of what is.

    Of equally good thresholds the middle one. None if nothing is honest, or nothing is not.
    """
    honest, wrong = values.filter(truth > _HONEST).to_numpy(), values.filter(truth <= _NOT_HONEST).to_numpy()
    if not len(honest) or not len(wrong):
        return None
    ends = np.unique(np.concatenate([[-1.0], honest, wrong, [1.0]]))
    between = (ends[:-1] + ends[1:]) / 2
    missed = np.array([(honest <= threshold).mean() for threshold in between])
    allowed = np.array([(wrong > threshold).mean() <= _FALSE_TRUST for threshold in between])
    best = np.flatnonzero(allowed & (missed == missed[allowed].min()))
    return round(float((ends[best[0]] + ends[best[-1] + 1]) / 2), 3)


def _errors(trusted: pl.Series, truth: pl.Series) -> dict[str, float | None]:
    """Number of units of each kind, and the share that is trusted, for honest ones that is not; None for no unit."""
    trusted = trusted.fill_null(False)
    kinds = {
        ("not honest", "false trust"): trusted.filter(truth <= _NOT_HONEST),
        ("mixed", "mixed trusted"): trusted.filter((truth > _NOT_HONEST) & (truth <= _HONEST)),
        ("honest", "missed trust"): ~trusted.filter(truth > _HONEST),
    }
    found: dict[str, float | None] = {}
    for (count, share), kind in kinds.items():
        found |= {count: len(kind), share: round(float(kind.sum() / len(kind)), 3) if len(kind) else None}
    return found


def report(cells: pl.DataFrame) -> dict[str, float | None]:
    """Print the errors of all rules; return the chosen thresholds and the errors on the other seeds."""
    doses, half = ask_the_platform(cells), -(-cells["seed"].n_unique() // 2)
    cells = cells.drop_nulls("survives_swap").with_columns(pl.col("truth").cast(pl.Float64))
    figures: dict[str, float | None] = {}
    for labels in cells["labels"].unique().sort():
        for part, is_here in {"first": pl.col("seed") < half, "others": pl.col("seed") >= half}.items():
            found, tested = (table.filter(is_here, labels=labels) for table in (doses, cells))
            plates = found.unique("model_name", maintain_order=True)
            scored = found.filter(~pl.col("trained_for_score")).drop_nulls("adjusted_low")
            rules = {
                "plates: swap test": (plates["survives_swap"] >= plates["swap_threshold"], plates["plate_truth"]),
                "doses: adjusted score": (scored["adjusted_low"] > scored["adjusted_threshold"], scored["truth"]),
                "doses: verdict": (found["verdict"] == "trusted", found["truth"]),
                "doses: paper_verdict": (found["paper_verdict"] == "trusted", found["truth"]),
                "cells: trusted": ((tested["looks_at"] == "target") & tested["survives_swap"], tested["truth"]),
            }
            if part == "first":
                figures[f"{labels}_swap"] = choose(plates["survives_swap"], plates["plate_truth"])
                figures[f"{labels}_adjusted"] = choose(scored["adjusted_low"], scored["truth"])
            for rule, (trusted, truth) in rules.items():
                errors = _errors(trusted, truth)
                print(
                    f"{labels:6}{part:8}{rule:24}"
                    + "".join(f"{name:>14}: {value!s:<5}" for name, value in errors.items())
                )
                if part == "others":
                    name = f"{labels}_{rule.replace(': ', '_').replace(' ', '_')}"
                    figures |= {f"{name}_false": errors["false trust"], f"{name}_missed": errors["missed trust"]}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, smaller plates")
    parser.add_argument("--seeds", type=int, default=6, help="of plates and weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cells", type=Path, help="Parquet file to write the measured cells into")
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    wells = (12, 9) if arguments.quick else (18, 12)
    training = TrainingConfig(epochs=arguments.epochs, batch_size=8)
    found: list[pl.DataFrame] = []
    for seed in range(2 if arguments.quick else arguments.seeds):
        for labels in ("well", "cell"):
            for cells in measure(labels, seed, wells, training):
                found.append(cells)
                _print_plate(cells)
                if arguments.cells:
                    pl.concat(found).write_parquet(arguments.cells)
    print(json.dumps(report(pl.concat(found)) | {"plates": len(found)}))


def _print_plate(cells: pl.DataFrame) -> None:
    row = cells.select(
        pl.col("labels", "seed", "encoder").first(),
        accuracy=(pl.col("treatment_class") == pl.col("predicted_class")).mean(),
        adjusted=pl.col("gradcamo_adjusted").mean(), truth=pl.col("truth").mean(),
        survives=pl.col("survives_swap").mean(), n=pl.len(),
    ).row(0)  # fmt: skip
    print(*(f"{value:.2f}" if isinstance(value, float) else value for value in row), flush=True)


if __name__ == "__main__":
    main()
