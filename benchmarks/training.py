"""Does the encoder learn, how fast, and what does a shortcut do to it? ``python -m benchmarks.training [--quick]``

The demo's encoder is trained on a synthetic plate without a shortcut and asked about wells it has not seen. With
``--shortcut``: trained on a plate with that shortcut, then asked about another plate, where the shortcut is gone.
True masks stand in for segmentation, so that only training is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.pipeline import Prepared, prepare, train_and_score
from gradcamo_assets.cells import CropConfig, open_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.defs.demo import DEMO_SETTINGS
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.training.training import TrainingConfig

CROP = CropConfig((12, 64, 64))


def prepared(plate: SyntheticPlate, folder: Path) -> Prepared:
    """A plate as far as its crops."""
    return prepare(plate, folder / plate.name, CROP, true_masks=True)


@torch.inference_mode()
def accuracies(found: Prepared, cells: pl.DataFrame, bundle: Path) -> tuple[float, float]:
    """On cells of held-out wells: over all classes, and of control and highest dose told from each other."""
    model, config = load_bundle(bundle)
    held_out = cells.filter(split="test")
    labels = dict(held_out.select("Metadata_CellID", "treatment_class").iter_rows())
    dataset = CropDataset(
        [open_crops(path) for path in found.crops],
        {cell: config.classes.index(name) for cell, name in labels.items()},
        config.channels,
    )
    logits = torch.cat([model(images) for images, _, _ in DataLoader(dataset, 16)]).numpy()
    doses = held_out.sort("Metadata_Dose")["treatment_class"]
    ends = [config.classes.index(doses[0]), config.classes.index(doses[-1])]
    two = np.isin(dataset.targets, ends)
    told = np.array(ends)[logits[two][:, ends].argmax(1)] == dataset.targets[two]
    return float((logits.argmax(1) == dataset.targets).mean()), float(told.mean())


def learn(plates: list[SyntheticPlate], training: TrainingConfig) -> dict[str, float]:
    """Train on one plate after the other, afresh; the worst accuracies, the longest time."""
    rows = []
    print(f"{'plate':>8}{'crops':>8}{'accuracy':>10}{'control/top':>13}{'seconds':>9}{'ms a crop':>11}")
    for plate in plates:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            found = prepared(plate, folder)
            cells, metrics = train_and_score(found, replace(training, seed=plate.seed), folder)
            accuracy, told = accuracies(found, cells, folder / "bundle")
        crops = len(cells.filter(split="train"))
        rows.append((accuracy, told, metrics["seconds"], metrics["seconds_per_crop"]))
        print(
            f"{plate.seed:>8}{crops:>8}{accuracy:>10.3f}{told:>13.3f}{metrics['seconds']:>9.1f}"
            f"{1000 * metrics['seconds_per_crop']:>11.1f}",
            flush=True,
        )
    worst = (min, min, max, max)
    values = [round(choose(column), 4) for choose, column in zip(worst, zip(*rows, strict=True), strict=True)]
    return dict(zip(("accuracy", "control_against_top", "seconds", "seconds_per_crop"), values, strict=True))


def cheat(first: SyntheticPlate, second: SyntheticPlate, training: TrainingConfig) -> dict[str, float]:
    """Train on the first plate; accuracy and score on its held-out wells and on the second plate."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cells, _ = train_and_score(prepared(first, folder), training, folder)
        unseen = prepared(second, folder)
        scorer = Scorer(folder / "bundle")
        scores = pl.concat(scorer.score(open_crops(path)).scores for path in unseen.crops)
    figures: dict[str, float] = {}
    print(f"trained with shortcut: {first.shortcut}")
    print(f"{'asked about':32}{'cells':>7}{'accuracy':>10}{'on target':>11}{'adjusted':>10}")
    for name, asked, title in (
        ("first", cells.filter(split="test"), "its held-out wells"),
        ("second", unseen.cells.join(scores, on="Metadata_CellID"), "a plate without the shortcut"),
    ):
        accuracy = float((asked["predicted_class"] == asked["treatment_class"]).mean())  # type: ignore[arg-type]
        on_target = float(asked["on_target"].mean())  # type: ignore[arg-type]
        adjusted = float(asked["gradcamo_adjusted"].median())  # type: ignore[arg-type]
        figures |= {f"accuracy_{name}": round(accuracy, 4), f"on_target_{name}": round(on_target, 4)}
        figures[f"adjusted_{name}"] = round(adjusted, 4)
        print(f"{title:32}{len(asked):>7}{accuracy:>10.3f}{on_target:>11.3f}{adjusted:>10.3f}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small plates, a few epochs")
    parser.add_argument("--shortcut", choices=["none", "background", "neighbour"], help="of the plate trained on")
    parser.add_argument("--seeds", type=int, default=1, help="of plates and weights")
    settings = asdict(TrainingConfig())
    for name, value in settings.items():
        if name not in ("seed", "weights", "layer"):
            parser.add_argument(f"--{name}", type=type(value), default=None)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    chosen = {name: getattr(arguments, name, None) for name in settings}
    training = replace(
        TrainingConfig(epochs=6) if arguments.quick else TrainingConfig(**tomllib.loads(DEMO_SETTINGS)["training"]),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    small = {"wells": 8, "sites": 1, "cells": 8, "doses": 1} if arguments.quick else {}
    if arguments.shortcut:
        if arguments.swap is None and arguments.shortcut != "none":  # Nothing but the shortcut could be learned.
            training = replace(training, swap=0.0)
        first = SyntheticPlate(name="first", shortcut=arguments.shortcut, **small)  # type: ignore[arg-type]
        print(json.dumps(cheat(first, SyntheticPlate(name="second", seed=1, **small), training)))  # type: ignore[arg-type]
        return
    size = small or {"wells": 42, "doses": 6}
    plates = [SyntheticPlate(seed=seed, **size) for seed in range(arguments.seeds)]  # type: ignore[arg-type]
    print(json.dumps(learn(plates, training)))


if __name__ == "__main__":
    main()
