"""From which numbers on can a dose be trusted? ``python -m benchmarks.verdicts [--quick]``

Encoders that read the cell, the medium or other cells, or some of each, are trained and then judged on a plate that
they have not seen, with the audit's sample of cells. True masks replace segmentation.

The truth about a cell is known by construction. It has a twin in which every pixel inside its mask is the same, and
everything around it shows another treatment: the medium and all other cells. On plates with a bright medium it has a
second twin, in which only the light of the medium differs, also where it spills over the edge of the cell. The profile
describes the cell if the prediction is the same for all twins. A dose or a plate is honest if this holds for more than
half of its cells.

Thresholds are chosen on the first half of the seeds, so that at most 5% of the plates (doses) that are not honest are
trusted. Errors are reported for the other seeds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr

from benchmarks.cure import TRAININGS, asked
from benchmarks.pipeline import Prepared, prepare, train_and_score
from gradcamo_assets.cells import TARGET, CropConfig, open_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.synthetic.design import Treatment
from gradcamo_assets.training.swap_survival import run_swap_test
from gradcamo_assets.training.training import TrainingConfig

_SIZE: dict[str, Any] = {"sites": 1, "doses": 2}
_AUDITED = 32
"""Cells of a plate that the platform audits (``defs.assets.audit_assets``)."""
_ENCODERS = TRAININGS | {"weakly swapped": {"swap": 0.1}, "neighbours": TRAININGS["plain"]}
_TAUGHT = {"honest": "honest", "neighbours": "neighbour"}
"""Kind of the plates that an encoder is trained and judged on; by default ``background``."""


class ShiftedPlate(SyntheticPlate):
    """A plate on which every cell shows the next treatment. Everything else is equal, to the pixel."""

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """The classes, each in the place of the one before it."""
        own = super().treatments
        return own[1:] + own[:1]


@dataclass(frozen=True)
class Judged:
    """A plate, and its twins: same cells, other surroundings."""

    plate: Prepared
    twins: list[Prepared]


def plates(kind: str, labels: str, seed: int, wells: tuple[int, int], folder: Path) -> tuple[Prepared, Judged]:
    """Synthesise a plate to train on and one to judge, ``wells`` large, as far as their crops."""
    design: dict[str, Any] = {"labels": labels, **_SIZE}
    if kind == "background":
        design |= {"shortcut": "background", "background_shift": 0}
    elif kind == "neighbour":
        design |= {"shortcut": "neighbour"}
    made = {
        "taught": SyntheticPlate(name="taught", seed=seed, wells=wells[0], **design),
        "judged": SyntheticPlate(name="judged", seed=1000 + seed, wells=wells[1], **design),
        "shifted": ShiftedPlate(name="judged", seed=1000 + seed, wells=wells[1], **design),
    }
    if kind == "background":
        made["medium"] = replace(made["judged"], background_shift=1)
    found = {
        name: prepare(plate, folder / kind / name, CropConfig((12, 64, 64)), true_masks=True)
        for name, plate in made.items()
    }
    twins = [_with_pixels(found["judged"], found["shifted"], folder / kind / "around", only_around=True)]
    if "medium" in found:
        twins.append(_with_pixels(found["judged"], found["medium"], folder / kind / "light", only_around=False))
    return found["taught"], Judged(found["judged"], twins)


def _with_pixels(plate: Prepared, other: Prepared, folder: Path, only_around: bool) -> Prepared:
    """Copy a plate's crops, with its statistics, and take the pixels from the other (around the cell, or all)."""
    paths = []
    for own, twin in zip(plate.crops, other.crops, strict=True):
        path = Path(shutil.copytree(own, folder / own.name))
        group, source = zarr.open_group(path, mode="r+"), zarr.open_group(twin, mode="r")
        if group.attrs["cell_ids"] != source.attrs["cell_ids"]:
            raise ValueError(f"expected the cells of {own} in {twin}, found others: the plates are no twins")
        is_cell = only_around & (np.asarray(group["labels"]) == TARGET)[:, None]
        group["images"][:] = np.where(is_cell, group["images"][:], source["images"][:])
        paths.append(path)
    return Prepared(plate.cells, paths)


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
                made[kind] = plates(kind, labels, seed, wells, Path(scratch))
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
