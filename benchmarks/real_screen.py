"""Do encoders of a real screen look at their cells? ``python -m benchmarks.real_screen ../shared/data [--quick]``

Five plates of A549 cells (LINCS Cell Painting, single planes, five stains; ``lincs_a549``) go through the platform:
inbox, ingestion, segmentation, crops, training, scores, audit, profiles and report. Encoders learn three plates and are
asked about two others, one of them of another batch. Accuracies are balanced over classes and averaged over plates, so
that a plate with many cells counts like one with few. Each encoder answers two questions:

- ``treatment``: DMSO, orantinib or lonafarnib?
- ``null``: well A01 or well J18? Both hold DMSO, so nothing in a cell can tell but its position.

Everything is kept in ``--folder``, and a run that was stopped continues there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.cells.crop_store import open_crops
from gradcamo_assets.defs.assets.model_assets import crop_paths, kept_cells
from gradcamo_assets.defs.automation.pending import partitions_to_process, scoring_state
from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import PLATES, plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import process_fields, run_job
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.plates import list_known_plates
from gradcamo_assets.profiles import replicate_map, well_profiles
from gradcamo_assets.profiles.well_profiles import stack_vectors
from gradcamo_assets.training.evaluation import balanced_accuracy, evaluate_cells
from gradcamo_assets.training.model_registry import ModelVersion
from gradcamo_assets.training.promotion import promote
from gradcamo_assets.training.self_supervised import compute_embeddings
from gradcamo_assets.training.swap_survival import run_swap_test
from gradcamo_assets.training.training_run import labelled_crops

LEARNT = ("SQ00015230", "SQ00015231", "SQ00015232")
ASKED = ("SQ00015233", "SQ00015198")
"""Plates to ask about; the second is of another batch."""
CHANNELS = {"ch1": "DNA", "ch2": "ER", "ch3": "RNA", "ch4": "AGP", "ch5": "Mito"}
"""Stains by their look; the images name only the channels."""
SETTINGS = """\
[crops]
shape = [1, 96, 96]
"""
"""All settings that differ from the defaults, beside those of the encoders."""
WELLS_OF_NULL = {"A01": "r01c01", "J18": "r10c18"}
PLAIN: dict[str, Any] = {"swap": 0.0, "epochs": 6}
RECIPE: dict[str, Any] = {
    "swap": 1.0, "swap_pool": 16, "swap_alone": 0.5, "gain": 0.3, "offset": 0.1, "epochs": 16
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "recipe": RECIPE,
    "swapped": PLAIN | {"swap": 0.5},
    "regularised": PLAIN | {"regulariser": "gradcamo"},
    "both": PLAIN | {"swap": 0.5, "regulariser": "gradcamo"},
    "self_supervised": PLAIN | {"objective": "vicreg"},
}
"""Training settings of each encoder, the same for both questions."""
QUESTIONS = ("treatment", "null")
_SWAPPED_CELLS = 1200
"""Cells of the asked plates in the swap test and in the profiles."""


@dataclass(frozen=True)
class Screen:
    """The home of one question.

    Attributes:
        data: folder ``lincs_a549``.
        sites: sites of each well to use.
    """

    data: Path
    root: Path
    question: str
    sites: tuple[int, ...] = (1, 2, 3)

    @cached_property
    def home(self) -> Home:
        """The folder of everything."""
        return Home(self.root / self.question).create()

    @cached_property
    def platform(self) -> Platform:
        """The platform on that home."""
        return Platform(root=str(self.home.root))

    @cached_property
    def _definitions(self) -> Any:
        return build_definitions(self.platform)

    @cached_property
    def _run(self) -> Any:
        return partial(run_job, self._definitions, self._instance)

    @cached_property
    def _instance(self) -> Any:
        return open_instance(self.home)

    def prepare(self) -> dict[str, float]:
        """Take in the plates and process their fields as far as crops: seconds by stage, of what was left to do."""
        self.home.settings_file.write_text(SETTINGS)
        seconds, start = {}, time.perf_counter()
        new = [plate for plate in (*LEARNT, *ASKED) if plate not in list_known_plates(self.home.plates)]
        for plate in new:
            self._deliver(plate)
            self._instance.add_dynamic_partitions(str(PLATES.name), [plate])
            self._run("ingest_plates", plate)
        seconds["ingest"], start = time.perf_counter() - start, time.perf_counter()
        waiting = [plate_site_key(*partition) for partition in partitions_to_process(self.platform.lake)]
        process_fields(self._definitions, self._instance, self.home, waiting)
        seconds["process"] = time.perf_counter() - start
        return seconds if new else {}

    def _deliver(self, plate: str) -> None:
        """Put the images of a plate, its map and the names of its stains into the inbox."""
        folder = self.home.inbox / plate
        folder.mkdir(exist_ok=True)
        for path in sorted((self.data / "images" / plate).iterdir()):
            is_asked = self.question == "treatment" or path.name[:6] in WELLS_OF_NULL.values()
            if is_asked and int(path.name[7:9]) in self.sites:
                shutil.copyfile(path, folder / path.name)
        stains = ", ".join(f'{key} = "{name}"' for key, name in CHANNELS.items())
        (self.home.inbox / f"{plate}.toml").write_text(f"channels = {{ {stains} }}\n")
        wells = pl.read_csv(self.data / "platemap_derived.csv")
        if self.question == "null":
            # The map calls them treatments, so that the encoder must tell one from the other.
            well = pl.col("Metadata_Well")
            wells = wells.filter(well.is_in(list(WELLS_OF_NULL))).with_columns(
                Metadata_Compound=pl.format("well {}", well), Metadata_pert_type=pl.lit("trt"),
                Metadata_Dose=1.0, Metadata_Dose_Unit=pl.lit("uM"),
            )  # fmt: skip
        wells.write_csv(self.home.inbox / f"{plate}.csv")

    def train(self, settings: Mapping[str, Any], seed: int, asked: Sequence[str] = ASKED) -> ModelVersion:
        """Train one encoder on the learnt plates less the asked ones, and register it."""
        learnt = [plate for plate in LEARNT if plate not in asked]
        split = {"plates": learnt, "test_plates": list(asked), "val_fraction": 0.0, "seed": seed}
        ops = {"data_split": {"config": split}, "trained_model": {"config": {**settings, "seed": seed}}}
        result = self._run("train_model", ops=ops)
        metadata = result.asset_materializations_for_node("trained_model")[0].metadata
        (version,) = [v for v in self.platform.registry.versions() if v.version == metadata["model_version"].value]
        return version

    def ask(self, version: ModelVersion, asked: Sequence[str] = ASKED) -> dict[str, float]:
        """Measure what an encoder knows of the asked plates and where it looks."""
        model, config = load_bundle(self.platform.registry.fetch(version))
        cells = kept_cells(self.platform, list(asked)).drop_nulls("treatment_class")
        fields = [open_crops(path) for path in crop_paths(self.platform, cells)]
        crops = labelled_crops(cells, fields, config.classes, config.channels)
        evaluated = evaluate_cells(model, [config.layer], crops, config.classes)[config.layer]
        swapped = run_swap_test(model, config.layer, crops, evaluated, config.classes, _SWAPPED_CELLS)
        looks_at_target = (pl.col("looks_at") == "target").fill_null(False)
        figures = {
            "looks_at_target": evaluated.select(looks_at_target.mean()).item(),
            "looks_at_neighbour": evaluated.select((pl.col("looks_at") == "neighbour").mean()).item(),
            "adjusted": evaluated["gradcamo_adjusted"].median(),
            "on_target": evaluated["on_target"].mean(),
            "survives": swapped["survives_swap"].mean(),
            "trusted": swapped.select((looks_at_target & pl.col("survives_swap")).mean()).item(),
        }
        for name, cells, predicted in (
            ("accuracy", evaluated, "predicted_class"), ("accuracy_swapped", swapped, "swapped_class")
        ):  # fmt: skip
            on_plates = [balanced_accuracy(cells.filter(Metadata_Plate=plate), predicted) for plate in asked]
            figures |= {name: np.mean(on_plates)}
            figures |= {f"{name}_{plate}": value for plate, value in zip(asked, on_plates, strict=True)}
        if self.question == "treatment":
            embeddings = compute_embeddings(model, config.layer, crops, 16).numpy()
            table = pl.DataFrame({"Metadata_CellID": crops.cell_ids, "embedding": embeddings.tolist()})
            trusted = swapped.select("Metadata_CellID", trusted=looks_at_target & pl.col("survives_swap"))
            figures |= self._replicability(table.join(trusted, on="Metadata_CellID"), version)
        return {name: round(float(value), 4) for name, value in figures.items() if value is not None}

    def _replicability(self, embeddings: pl.DataFrame, version: ModelVersion) -> dict[str, float]:
        """Replicate mAP of the asked plates' wells: all cells, trusted cells, and as many random ones a well.

        Profiles are medians over cells, less the mean of the plate's wells.
        """
        cells = cells_with_crops(self.platform.lake).collect().join(embeddings, on="Metadata_CellID")
        number = pl.int_range(pl.len()).shuffle(seed=0).over("Metadata_Plate", "Metadata_Well")
        count = pl.col("trusted").sum().over("Metadata_Plate", "Metadata_Well")
        cells = cells.sort("Metadata_CellID").with_columns(
            model_name=pl.lit(version.name), model_version=version.version, model_run=pl.lit(version.run_id)
        )
        populations = {"all": cells, "trusted": cells.filter("trusted"), "random": cells.filter(number < count)}
        named = [part.with_columns(population=pl.lit(name)) for name, part in populations.items()]
        profiles = well_profiles(pl.concat(named))
        # Two control wells a plate are too few to sphere: each would be the other's mirror image.
        centred = [
            plate.with_columns(profile=pl.Series((vectors - vectors.mean(0)).tolist(), dtype=pl.List(pl.Float32)))
            for plate in profiles.partition_by("population", "Metadata_Plate")
            for vectors in [stack_vectors(plate["profile"])]
        ]
        means = replicate_map(pl.concat(centred)).group_by("population").agg(pl.col("mean_average_precision").mean())
        return {f"map_{name}": value for name, value in means.iter_rows()}

    def publish(self, version: ModelVersion) -> None:
        """Promote an encoder, score and audit all plates, and publish database and reports, unless that is done."""
        platform = self.platform
        if (self.home.reports / ASKED[-1] / f"{version.name}-v{version.version}.html").exists():
            return
        promote(
            platform.lake, platform.registry, version, by="real_screen", reason="the recipe, first seed", modules=[]
        )
        for partition in scoring_state(platform.lake, platform.registry, version).todo:
            self._run("rescore", plate_site_key(*partition))
        for plate in (*LEARNT, *ASKED):
            self._run("audit_plates", plate)
        # The first run publishes the database before the profiles exist; the second adds them.
        self._run("refresh_qc")
        self._run("refresh_qc")
        for plate in ASKED:
            self._run("report_plates", plate)


class Record:
    """The figures of every encoder that was asked, one JSON line each; what stands there is not measured again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **keys: Any) -> Iterator[dict[str, Any]]:
        """Rows with these values."""
        return (row for row in self.rows if all(row[name] == value for name, value in keys.items()))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to the file."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def measure(
    screen: Screen, record: Record, name: str, settings: Mapping[str, Any], seed: int, asked: Sequence[str]
) -> None:
    """Train and ask one encoder, unless the record has it."""
    keys = {
        "question": screen.question,
        "encoder": name,
        "settings": dict(settings),
        "seed": seed,
        "asked": list(asked),
    }
    if any(record.find(**keys)):
        return
    start = time.perf_counter()
    version = screen.train(settings, seed, asked)
    trained = time.perf_counter()
    figures = screen.ask(version, asked)
    seconds = {"train_seconds": round(trained - start), "ask_seconds": round(time.perf_counter() - trained)}
    record.add(keys | {"model_version": version.version} | seconds | figures)
    text = "  ".join(f"{key} {value:.2f}" for key, value in figures.items() if "SQ" not in key)
    print(f"{screen.question:10}{name:16}seed {seed}  {text}", flush=True)


def summarise(record: Record) -> dict[str, Any]:
    """Medians over seeds, and their ranges: the recipe's under plain names, the others' with the encoder's name."""
    summary: dict[str, Any] = {}
    for name in ENCODERS:
        prefix = "" if name == "recipe" else f"{name}_"
        for question in QUESTIONS:
            rows = list(record.find(question=question, encoder=name, asked=list(ASKED)))
            figures = [key for key, value in (rows[0] if rows else {}).items() if isinstance(value, float)]
            for figure in figures:
                values = [row[figure] for row in rows if figure in row]
                key = prefix + ("null_" if question == "null" else "") + figure
                summary[key] = round(float(np.median(values)), 3)
                if len(values) > 1:
                    summary[f"{key}_range"] = [round(min(values), 3), round(max(values), 3)]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder that holds lincs_a549")
    parser.add_argument("--quick", action="store_true", help="one site a well, two epochs, plain and recipe, one seed")
    parser.add_argument("--folder", type=Path, default=Path("data/real_screen"), help="where everything is kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--question", choices=QUESTIONS, help="only this one, for example in a process of its own")
    parser.add_argument("--leave-one-out", action="store_true", help="only the learnt plates: each asked in turn")
    parser.add_argument(
        "--set", metavar="JSON", help="with --leave-one-out: training settings to try, beside the recipe's"
    )
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    arguments = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    folder = arguments.folder / "quick" if arguments.quick else arguments.folder
    seeds, encoders = (1, ["plain", "recipe"]) if arguments.quick else (arguments.seeds, arguments.encoders)
    sites = (1,) if arguments.quick else (1, 2, 3)
    start = time.perf_counter()
    for question in [arguments.question] if arguments.question else QUESTIONS:
        screen = Screen(arguments.data / "lincs_a549", folder, question, sites)
        record = Record(screen.home.root / "figures.jsonl")
        for stage, seconds in screen.prepare().items():
            print(f"{question}: {stage} {seconds / (len(LEARNT) + len(ASKED)):.0f} s a plate", flush=True)
        if arguments.leave_one_out:
            tried = RECIPE | json.loads(arguments.set or "{}")
            for plate in LEARNT:
                measure(screen, record, "tried", tried, 0, [plate])
            continue
        for seed in range(seeds):
            for name in encoders:
                settings = ENCODERS[name] | ({"epochs": 2} if arguments.quick else {})
                measure(screen, record, name, settings, seed, ASKED)
        recipe = next(record.find(encoder="recipe", seed=0, asked=list(ASKED)), None)
        if question == "treatment" and recipe and encoders == list(ENCODERS):
            versions = {version.version: version for version in screen.platform.registry.versions()}
            screen.publish(versions[recipe["model_version"]])
    records = [Record(folder / question / "figures.jsonl") for question in QUESTIONS]
    records[0].rows += records[1].rows
    print(json.dumps(summarise(records[0]) | {"seconds": round(time.perf_counter() - start)}))


if __name__ == "__main__":
    main()
