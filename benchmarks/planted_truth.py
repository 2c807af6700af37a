"""Does the score name the place where the truth was planted? ``python -m benchmarks.planted_truth [--quick]``

Four synthetic plates: the signature of the treatment in the target alone (``--labels cell``), in every cell of a well,
in the background, in neighbours. The shipped encoder is trained on each, and asked on cells of wells it has not seen.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.pipeline import prepare, train_and_score
from gradcamo_assets.crops import CropConfig, open_crops
from gradcamo_assets.figures import crops_with_maps
from gradcamo_assets.learning.train import TrainingConfig
from gradcamo_assets.plates import SyntheticPlate

PLACES = {
    # (labels, shortcut): where the truth is
    ("cell", "none"): "target",
    ("well", "background"): "background",
    ("well", "neighbour"): "neighbour",
    ("well", "none"): "target or neighbour",
}


def measure(labels: str, shortcut: str, seed: int, quick: bool, folder: Path) -> dict:
    """Train and score one plate; figures of its held-out cells."""
    size = {"wells": 8, "sites": 1, "cells": 8, "doses": 1} if quick else {}
    plate = SyntheticPlate(name="truth", labels=labels, shortcut=shortcut, seed=seed, **size)  # type: ignore[arg-type]
    prepared = prepare(plate, folder, CropConfig((12, 64, 64)))
    training = TrainingConfig(epochs=8, seed=seed) if quick else TrainingConfig(seed=seed)
    start = time.perf_counter()
    cells, _ = train_and_score(prepared, training, folder)
    seconds = time.perf_counter() - start
    held_out = cells.filter(pl.col("split") != "train")
    right = held_out.filter(pl.col("predicted_class") == pl.col("treatment_class"))
    looks = right["looks_at"]
    return {
        "cells": len(held_out),
        "accuracy": len(right) / len(held_out),
        "looks_at": {
            place: float((looks == place).mean() or 0) for place in ("target", "neighbour", "background", "none")
        },
        "median_gradcamo": held_out["gradcamo"].median(),
        "median_adjusted": held_out["gradcamo_adjusted"].median(),
        "null": held_out["gradcamo"].null_count(),
        "seconds": seconds,
        "cells_frame": cells,
        "adjusted": held_out["gradcamo_adjusted"].drop_nulls().to_numpy(),
    }


def examples(cells: pl.DataFrame, place: str, folder: Path, n: int = 2) -> list[tuple[np.ndarray, ...]]:
    """Crop, labels, map and title of ``n`` correctly classified held-out cells that look at ``place``, a well each."""
    from gradcamo_assets.scoring.score import Scorer

    right = cells.filter(
        (pl.col("split") != "train") & (pl.col("predicted_class") == pl.col("treatment_class")), looks_at=place
    )
    scorer = Scorer(folder / "bundle")
    found = []
    for row in right.unique("Metadata_Well", maintain_order=True).head(n).iter_rows(named=True):
        field = open_crops(folder / "crops" / f"{row['Metadata_Well']}_{row['Metadata_Site']}.zarr")
        index = field.cell_ids.index(row["Metadata_CellID"])
        image, labels = field.read(index)
        cam = scorer.score(field, keep_maps=len(field)).maps[index]
        found.append((image, labels, cam, f"planted in the {place}: Grad-CAMO {row['gradcamo']:.2f}"))
    return found


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a cell of the first encoder scores above one of the second."""
    from sklearn.metrics import roc_auc_score

    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return float(roc_auc_score(truth, np.r_[positive, negative]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small plates, two of the four settings")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="write a PNG of cells with their maps, two a planted place")
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    settings = list(PLACES)[:2] if arguments.quick else list(PLACES)
    print(f"{'truth in':20}{'seed':>5}{'cells':>7}{'accuracy':>10}{'target':>8}{'neighb.':>8}{'backgr.':>8}{'none':>6}"
          f"{'score':>7}{'adjusted':>9}{'seconds':>9}")  # fmt: skip
    results: dict[str, list] = {}
    separations = []
    shown: list[tuple[np.ndarray, ...]] = []
    for seed in range(arguments.seeds):
        for labels, shortcut in settings:
            with tempfile.TemporaryDirectory() as folder:
                figures = measure(labels, shortcut, seed, arguments.quick, Path(folder))
                if arguments.picture and PLACES[labels, shortcut] in ("target", "neighbour", "background") and not seed:
                    shown += examples(figures["cells_frame"], PLACES[labels, shortcut], Path(folder))
            looks = figures["looks_at"]
            print(
                f"{PLACES[labels, shortcut]:20}{seed:5}{figures['cells']:7}{figures['accuracy']:10.2f}"
                f"{looks['target']:8.2f}{looks['neighbour']:8.2f}{looks['background']:8.2f}{looks['none']:6.2f}"
                f"{figures['median_gradcamo']:7.2f}{figures['median_adjusted']:9.2f}{figures['seconds']:9.0f}",
                flush=True,
            )
            results.setdefault(f"{labels}_{shortcut}", []).append(figures)
        separations.append(auroc(results["cell_none"][-1]["adjusted"], results["well_background"][-1]["adjusted"]))
    if shown:
        images, crop_labels, maps, titles = zip(*shown, strict=True)
        figure = crops_with_maps(np.stack(images), np.stack(crop_labels), np.stack(maps), list(titles))
        figure.savefig(arguments.picture, dpi=110)
    named = {"cell_none": "target", "well_background": "background", "well_neighbour": "neighbour"}
    summary = {place: round(float(np.median([f["looks_at"][place] for f in results[key]])), 4)
               for key, place in named.items() if key in results}  # fmt: skip
    summary |= {
        f"accuracy_{key}": round(float(np.median([f["accuracy"] for f in rows])), 4) for key, rows in results.items()
    }
    print(json.dumps({**summary, "auroc": round(float(np.median(separations)), 4), "seeds": arguments.seeds}))


if __name__ == "__main__":
    main()
