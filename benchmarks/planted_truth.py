"""Does the score name the place where the truth was planted? ``python -m benchmarks.planted_truth [--quick]``

Synthetic plates with the signature of the treatment in the target alone (``--labels cell``), in neighbours, or in the
background. The shipped encoder is trained on each, and asked on cells of wells it has not seen. ``--design`` does the
same for encoders with one choice of the design undone (``benchmarks.variants``).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.pipeline import Prepared, prepare, train_and_score
from gradcamo_assets.cells import NEIGHBOUR, TARGET, CropConfig, open_crops
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.explain.faithfulness import compute_chance_level, randomise_weights
from gradcamo_assets.report import crops_with_maps
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.training.training import TrainingConfig

PLACES = {"target": ("cell", "none"), "neighbour": ("well", "neighbour"), "background": ("well", "background")}
DESIGNS = {
    "shipped: stride 8, intensities by plate": "efficientnet3d-small",
    "last stride 16": "benchmarks.variants:stride16",
    "squeeze-and-excitation gates": "benchmarks.variants:gates",
    "three blocks more after the last stride": "benchmarks.variants:deep",
    "no distance channel": "benchmarks.variants:no_radius",
    "intensities by crop": "benchmarks.variants:per_crop",
}
METHODS = ("gradcam++", "layercam", "eigencam")
REGIONS = ("target", "neighbour", "background")


def right_cells(cells: pl.DataFrame) -> pl.DataFrame:
    """Correctly classified held-out cells: those whose explanation has a truth to be held against."""
    return cells.filter(pl.col("split") != "train", pl.col("predicted_class") == pl.col("treatment_class"))


def named(cells: pl.DataFrame, column: str = "looks_at") -> dict[str, float]:
    """Share of cells that ``column`` says look at each region, or at none."""
    return {place: float((cells[column] == place).mean() or 0) for place in (*REGIONS, "none")}


def by_evidence(cells: pl.DataFrame) -> pl.DataFrame:
    """The region with the most signed evidence, as ``evidence_at``."""
    parts = np.nan_to_num(cells.select(f"evidence_{name}" for name in REGIONS).to_numpy(), nan=-np.inf)
    return cells.with_columns(evidence_at=pl.Series([REGIONS[i] for i in parts.argmax(1)], dtype=pl.String))


def other_maps(cells: pl.DataFrame, prepared: Prepared, bundle: Path, place: str) -> dict[str, float]:
    """Share of cells that other CAM methods lay in ``place``, and the score of shuffled weights beside chance."""
    scorer = Scorer(bundle)
    shuffled = randomise_weights(scorer.model)
    hits: dict[str, list[bool]] = {method: [] for method in METHODS}
    own, maps, masks = [], [], []
    for path in prepared.crops:
        field = open_crops(path)
        rows = [index for index, name in enumerate(field.cell_ids) if name in set(cells["Metadata_CellID"])]
        for images, labels in scorer.batches(field, [slice(row, row + 1) for row in rows]):
            call = {"images": images, "target_masks": labels == TARGET, "layer": scorer.config.layer,
                    "neighbour_masks": labels == NEIGHBOUR}  # fmt: skip
            for method in METHODS:
                hits[method] += [name == place for name in gradcamo(scorer.model, method=method, **call).looks_at]
            result = gradcamo(shuffled, **call)
            own.append(result.gradcamo_adjusted)
            maps.append(result.cam)
            masks.append(labels == TARGET)
    chance = compute_chance_level(torch.cat(maps), torch.cat(masks), others=8)
    return {
        **{method: float(np.mean(found)) for method, found in hits.items()},
        "randomised": float(np.nanmedian(np.concatenate(own))),
        "chance": float(np.nanmedian(chance)),
    }


def examples(cells: pl.DataFrame, place: str, prepared: Prepared, bundle: Path, n: int = 2) -> list[tuple]:
    """Crop, labels, map and title of ``n`` cells that look at ``place``, of a well each."""
    scorer = Scorer(bundle)
    fields = {path.stem: path for path in prepared.crops}
    found = []
    looking = cells.filter(looks_at=place).unique("Metadata_Well", maintain_order=True)
    for row in looking.head(n).iter_rows(named=True):
        field = open_crops(fields[f"{row['Metadata_Well']}_{row['Metadata_Site']}"])
        index = field.cell_ids.index(row["Metadata_CellID"])
        image, labels = field.read(index)
        cam = scorer.score(field, keep_maps=len(field)).maps[index]
        found.append((image, labels, cam, f"planted in the {place}: Grad-CAMO {row['gradcamo']:.2f}"))
    return found


def line(name: str, figures: dict[str, float | str]) -> str:
    """One row of the printed table."""
    return f"{name:42}" + "".join(f"{v:>11.2f}" if isinstance(v, float) else f"{v:>11}" for v in figures.values())


@dataclass(frozen=True)
class Measured:
    """One encoder trained on one plate: its figures, its correctly classified held-out cells, and where it lies."""

    figures: dict[str, float | str]
    right: pl.DataFrame
    bundle: Path
    seconds: float


def measure(prepared: Prepared, place: str, training: TrainingConfig, folder: Path) -> Measured:
    """Train an encoder on a plate with the truth planted in ``place``, and ask it about wells it has not seen."""
    folder.mkdir()
    start = time.perf_counter()
    cells, _ = train_and_score(prepared, training, folder)
    seconds = time.perf_counter() - start
    held_out, right = cells.filter(pl.col("split") != "train"), right_cells(cells)
    figures: dict[str, float | str] = {
        "seed": str(training.seed), "cells": str(len(held_out)), "accuracy": len(right) / len(held_out), **named(right),
        "gradcamo": float(np.nanmedian(held_out["gradcamo"].cast(float).to_numpy())),
        "adjusted": float(np.nanmedian(held_out["gradcamo_adjusted"].cast(float).to_numpy())),
        "evidence": named(by_evidence(right), "evidence_at")[place],
    }  # fmt: skip
    return Measured(figures, right, folder / "bundle", seconds)


def plates(seeds: int, quick: bool) -> Iterator[tuple[int, str, Prepared, Path]]:
    """Seed, planted place, the plate as far as its crops, and a folder that goes with it."""
    size = {"wells": 8, "sites": 1, "cells": 8, "doses": 1} if quick else {}
    for seed in range(1 if quick else seeds):
        for place, (labels, shortcut) in list(PLACES.items())[: 1 if quick else None]:
            with tempfile.TemporaryDirectory() as scratch:
                plate = SyntheticPlate(name="truth", labels=labels, shortcut=shortcut, seed=seed, **size)  # type: ignore[arg-type]
                yield seed, place, prepare(plate, Path(scratch), CropConfig((12, 64, 64))), Path(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small plate, a few epochs")
    parser.add_argument("--design", action="store_true", help="encoders with one choice undone too, on the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="of plates and weights")
    parser.add_argument("--picture", type=Path, help="write a PNG of cells with their maps, two a planted place")
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    epochs = {"epochs": 6} if arguments.quick else {}
    shipped = list(DESIGNS.items())[:1]
    designs = list(DESIGNS.items()) if arguments.design else shipped
    summary: dict[str, list[float]] = {}
    shown: list[tuple] = []
    for seed, place, prepared, folder in plates(arguments.seeds, arguments.quick):
        for number, (design, encoder) in enumerate(shipped if seed else designs):
            # What is planted beside the cell must be learned there: nothing is swapped.
            training = TrainingConfig(encoder=encoder, seed=seed, swap=0.0, **epochs)
            found = measure(prepared, place, training, folder / f"design{number}")
            figures = found.figures
            if number == 0:
                figures |= other_maps(found.right, prepared, found.bundle, place)
                if not summary:
                    print(f"{'truth in, encoder':42}" + "".join(f"{n:>11}" for n in [*figures, "seconds"]))
                summary.setdefault(place, []).append(float(figures[place]))
                for key in ("accuracy", "randomised", "chance"):
                    summary.setdefault(f"{key}_{place}", []).append(float(figures[key]))
                if arguments.picture and not seed:
                    shown += examples(found.right, place, prepared, found.bundle)
            print(line(f"{place}, {design}"[:42], figures) + f"{found.seconds:>11.0f}", flush=True)
    if shown:
        images, crop_labels, maps, titles = zip(*shown, strict=True)
        figure = crops_with_maps(np.stack(images), np.stack(crop_labels), np.stack(maps), list(titles))
        figure.savefig(arguments.picture, dpi=110)
    places = [place for place in PLACES if place in summary]
    worst = min(value for place in places for value in summary[place])
    means = {name: round(float(np.mean(values)), 4) for name, values in summary.items()}
    for what in ("randomised", "chance"):
        means[f"{what}_adjusted"] = round(float(np.mean([means.pop(f"{what}_{place}") for place in places])), 4)
    print(json.dumps({**means, "worst": round(worst, 4), "seeds": len(summary[places[0]])}))


if __name__ == "__main__":
    main()
