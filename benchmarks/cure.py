"""Can training prevent an encoder from reading the background? ``python -m benchmarks.cure [--quick]``

On the first plate every cell shows its treatment, and so does the brightness of the medium around it. Four encoders are
trained on it: plain, with the Grad-CAMO penalty, with swapped surroundings, and with both. A fifth is trained on a
plate without the shortcut. All are tested on held-out wells and on a second plate without the shortcut, and audited.
True masks replace segmentation.

All plates are standardised by the statistics of the plate without the shortcut. A bright medium would shift a plate's
own statistics and so make the cells of other plates look brighter.

The truth about a cell is known by construction. Each cell has a twin on a plate whose pixels are equal, except that the
background shows another treatment. An encoder that predicts the same for both does not read the background.
``trusted``, and the number ``trust`` from which it is derived, are compared with that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import zarr

from benchmarks.pipeline import Prepared, prepare, train_and_score
from gradcamo_assets.cells import CropConfig, CropField, open_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.defs.demo import MITIGATIONS
from gradcamo_assets.report import to_png
from gradcamo_assets.report.style import COLOURS, GREY, new_figure
from gradcamo_assets.scoring.audit import audit_crops
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.thresholds import THRESHOLDS
from gradcamo_assets.training.training import TrainingConfig, train_encoder

TRAININGS = MITIGATIONS | {"honest": MITIGATIONS["plain"]}
if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCALES = ("center", "scale")
_AUDITED, _TIMED, _PRICED = 48, 200, 96


@dataclass(frozen=True)
class Scene:
    """The plates of one seed: with the shortcut, its twin, the second plate and an honest one to train on."""

    first: Prepared
    twin: Prepared
    second: Prepared
    honest: Prepared


def scene(seed: int, folder: Path, size: Mapping[str, Any]) -> Scene:
    """Synthesise the plates as far as their crops."""
    shortcut = {"shortcut": "background", "seed": seed, "name": "first"}
    plates = {
        "first": SyntheticPlate(**shortcut, background_shift=0, **size),
        "twin": SyntheticPlate(**shortcut, background_shift=1, **size),
        "second": SyntheticPlate(name="second", seed=1000 + seed, **{"wells": 12, **size}),
        "honest": SyntheticPlate(name="honest", seed=seed, **size),
    }
    crop = CropConfig((12, 64, 64))
    made = {name: prepare(plate, folder / name, crop, true_masks=True) for name, plate in plates.items()}
    center, scale = (
        [float(value) for value in zarr.open_group(made["honest"].crops[0]).attrs[name]] for name in _SCALES
    )
    for path in (path for plate in made.values() for path in plate.crops):
        zarr.open_group(path, mode="r+").attrs.update(center=center, scale=scale)
    return Scene(**made)


def asked(scorer: Scorer, plate: Prepared, sample: pl.DataFrame | None = None) -> pl.DataFrame:
    """Every cell of a plate, or of the fields of a sample, with what the encoder makes of it."""
    cells = plate.cells if sample is None else plate.cells.join(sample.select("Metadata_CellID"), on="Metadata_CellID")
    wanted = {f"{well}_{site}" for well, site in cells.select("Metadata_Well", "Metadata_Site").iter_rows()}
    scores = pl.concat(scorer.score(open_crops(path)).scores for path in plate.crops if path.stem in wanted)
    return cells.join(scores, on="Metadata_CellID")


def fields_of(plate: Prepared) -> dict[str, CropField]:
    """Stored crops by the ``<plate>/<well>/<site>`` of their cells."""
    found = (open_crops(path) for path in plate.crops)
    return {field.cell_ids[0].rsplit("/", 1)[0]: field for field in found if field.cell_ids}


def audited(scorer: Scorer, plate: Prepared, cells: pl.DataFrame) -> tuple[pl.DataFrame, float]:
    """Cells with ``trusted``, and the seconds it took."""
    start = time.perf_counter()
    table = audit_crops(
        scorer, fields_of(plate), cells["Metadata_CellID"].to_list(), cells["treatment_class"].to_list()
    )
    seconds = time.perf_counter() - start
    looks = (pl.col("looks_at") == "target").fill_null(False)
    margin = pl.col("swap_margin")
    return cells.join(table, on="Metadata_CellID").with_columns(
        trusted=looks & pl.col("survives_swap"), trust=pl.when(looks).then(margin).otherwise(margin.clip(upper_bound=0))
    ), seconds


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def accuracy(cells: pl.DataFrame) -> float:
    """Share of cells whose treatment was predicted."""
    return _number((cells["predicted_class"] == cells["treatment_class"]).mean())


def measure(name: str, plates: Scene, training: TrainingConfig, folder: Path) -> tuple[dict[str, float], pl.DataFrame]:
    """Train one encoder: its figures, and its audited cells with ``trusted`` and the ``truth``."""
    taught = plates.honest if name == "honest" else plates.first
    folder.mkdir()
    cells, _ = train_and_score(taught, replace(training, **TRAININGS[name]), folder)
    scorer = Scorer(folder / "bundle")
    held_out = cells.filter(split="test")
    second = asked(scorer, plates.second)
    # The honest plate has the same wells and cells; its encoder has seen none of their crops on the first.
    first = asked(scorer, plates.first) if name == "honest" else held_out
    sample = first.sample(min(_AUDITED, len(first)), seed=0)
    found, _ = audited(scorer, plates.first, sample)
    twin = asked(scorer, plates.twin, sample).select("Metadata_CellID", answer="predicted_class")
    found = found.join(twin, on="Metadata_CellID")
    found = found.with_columns(truth=pl.col("answer") == pl.col("predicted_class"))
    return {
        "same": accuracy(held_out),
        "shifted": accuracy(second),
        "adjusted": _number(first["gradcamo_adjusted"].median()),
        "adjusted_shifted": _number(second["gradcamo_adjusted"].median()),
        "looks_at_target": _number((first["looks_at"] == "target").mean()),
        "survives": _number(found["survives_swap"].mean()),
        "trusted": _number(found["trusted"].mean()),
        "truth": _number(found["truth"].mean()),
    }, found.select("trusted", "trust", "truth")


def price(plate: Prepared, training: TrainingConfig, folder: Path, rounds: int = 3) -> float:
    """How many times longer a step of both takes than a plain one: in turns, the quickest of each."""
    classes = plate.cells["treatment_class"].unique().sort().to_list()
    fields = [open_crops(path) for path in plate.crops]
    some = plate.cells.sample(min(_PRICED, len(plate.cells)), seed=0)
    index = {row["Metadata_CellID"]: classes.index(row["treatment_class"]) for row in some.iter_rows(named=True)}
    crops = CropDataset(fields, index, fields[0].channels)
    none = CropDataset(fields, {}, fields[0].channels)
    taken: dict[str, list[float]] = {"plain": [], "both": []}
    for turn in range(rounds + 1):
        for name, found in taken.items():
            config = replace(training, **TRAININGS[name], epochs=1, regulariser_after=0, seed=turn)
            result = train_encoder(crops, none, classes, config, work=folder / f"{name}{turn}", progress=False)
            found.append(result.metrics["seconds"])
    return min(taken["both"][1:]) / min(taken["plain"][1:])


def area(cells: pl.DataFrame, of: str) -> float:
    """Area under the curve of a column against the planted truth, over the cells of several encoders."""
    from sklearn.metrics import roc_auc_score

    known = cells.drop_nulls()
    return float(roc_auc_score(known["truth"], known[of])) if known["truth"].n_unique() == 2 else math.nan


def verdict(figures: Mapping[str, float], needed: float) -> str:
    """What the audit says of an encoder of whose cells the share ``needed`` must be trusted."""
    if figures["trusted"] >= needed:
        return "passes"
    return "flagged: fails the swap" if figures["survives"] < needed else "flagged: looks elsewhere"


def figure(summary: Mapping[str, Sequence[float]], chance: float) -> Figure:
    """Accuracy and adjusted score of the four encoders, on the plate with the shortcut and on the one without."""
    drawn = new_figure(8, 3.4)
    axes = drawn.subplots(1, 2)
    for panel, title, ends in (
        (axes[0], "Accuracy on held-out cells", ("same", "shifted")),
        (axes[1], "Adjusted Grad-CAMO, median", ("adjusted", "adjusted_shifted")),
    ):
        for place, (end, plate) in enumerate(zip(ends, ("shortcut there", "shortcut gone"), strict=True)):
            values = [np.array(summary[f"{name}_{end}"]) for name in MITIGATIONS]
            middle = np.array([np.median(found) for found in values])
            reach = np.abs([[found.min() for found in values], [found.max() for found in values]] - middle)
            panel.bar(np.arange(len(MITIGATIONS)) + 0.4 * place - 0.2, middle, 0.38, yerr=reach, label=plate,
                      color=COLOURS[place], error_kw={"ecolor": GREY, "capsize": 3})  # fmt: skip
        panel.set_xticks(range(len(MITIGATIONS)), list(MITIGATIONS))
        panel.set_title(title)
        panel.set_ylim(min(0, panel.get_ylim()[0]), 1.05)
        panel.spines[["top", "right"]].set_visible(False)
    lines = {"trained on an honest plate": float(np.median(summary["honest_shifted"])), "chance": chance}
    for (label, height), style in zip(lines.items(), ("--", ":"), strict=True):
        axes[0].axhline(height, color="black", linestyle=style, linewidth=1, label=label)
    axes[1].axhline(0, color="black", linewidth=0.8)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small plates, a few epochs")
    parser.add_argument("--seeds", type=int, default=5, help="of plates and weights")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--figure", type=Path, help="PNG file to draw it into")
    parser.add_argument("--labels", choices=["cell", "well"], default="cell", help="one treatment a cell, or a well")
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    size: dict[str, Any] = {"labels": arguments.labels}
    if arguments.quick:
        size |= {"wells": 12, "sites": 1, "doses": 1}
    epochs = 8 if arguments.quick else arguments.epochs
    seeds = range(arguments.first_seed, arguments.first_seed + (1 if arguments.quick else arguments.seeds))
    summary: dict[str, list[float]] = {}
    needed = THRESHOLDS.swap_share(arguments.labels == "well")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder, training = Path(scratch), TrainingConfig(epochs=epochs, seed=seed)
            plates = scene(seed, folder, size)
            judged = []
            for name in TRAININGS:
                figures, cells = measure(name, plates, training, folder / f"encoder-{name}")
                if name != "honest":  # A bright medium is strange to it, whatever its light tells.
                    judged.append(cells)
                if not summary:
                    print(f"{'seed':>4} {'encoder':12}" + "".join(f"{key:>17}" for key in figures) + "  audit")
                line = "".join(f"{value:>17.2f}" for value in figures.values())
                print(f"{seed:>4} {name:12}{line}  {verdict(figures, needed)}", flush=True)
                for key, value in figures.items():
                    summary.setdefault(f"{name}_{key}", []).append(value)
                summary.setdefault(f"{name}_passes", []).append(float(verdict(figures, needed) == "passes"))
            for of in ("trust", "trusted"):
                summary.setdefault(f"{of}_auc", []).append(area(pl.concat(judged), of))
            if seed == seeds[0]:
                summary["step_ratio"] = [price(plates.first, training, folder)]
                scorer = Scorer(folder / "encoder-both" / "bundle")
                every = asked(scorer, plates.first).head(_TIMED)
                summary["audit_seconds"] = [audited(scorer, plates.first, every)[1] * _TIMED / len(every)]
    lowest = np.minimum(summary["both_adjusted"], summary["both_adjusted_shifted"])
    figures = {name: float(np.median(values)) for name, values in summary.items()}
    figures |= {"honest_accuracy": figures["honest_shifted"], "both_adjusted": float(np.median(lowest))}
    spread = {
        f"{name}_range": [round(min(values), 3), round(max(values), 3)]
        for name, values in summary.items()
        if len(seeds) > 1 and name.endswith(("_shifted", "auc"))
    }
    known = {name: None if math.isnan(value) else round(value, 3) for name, value in figures.items()}
    if arguments.figure:
        arguments.figure.write_bytes(to_png(figure(summary, 1 / (size.get("doses", 3) + 1)), 1400))
    print(json.dumps(known | spread | {"seeds": len(seeds)}))


if __name__ == "__main__":
    main()
