"""The demo: a synthetic plate is written into the inbox and processed by every asset in a persistent instance."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl

from gradcamo_assets.defs.automation.pending import scoring_state
from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import PLATES, plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import process_fields, run_job
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import load_plate
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets.tables import qc_table, render
from gradcamo_assets.training.compare import held_out_cells
from gradcamo_assets.training.model_registry import CHALLENGER, CHAMPION, ModelVersion
from gradcamo_assets.training.promotion import promote

DEMO_SETTINGS = """\
# Settings of this installation, as the demo wrote them. What is left out has its default: the paper's crops are
# 21 x 128 x 128. Set them for plates of your own.
[segmentation]
mode = "stitch"  # Enough for the demo's cells, in a quarter of the time; without it, stacks are segmented as one.

[crops]
shape = [12, 64, 64]

[training]
encoder = "efficientnet3d-small"
epochs = 16
"""


QUICK_TRAINING = {"epochs": 4, "batch_size": 4}
"""Training settings of a quick demo. Small batches give more steps per epoch, since there are few crops."""
MITIGATIONS: dict[str, dict[str, Any]] = {
    "plain": {"swap": 0.0},
    "regularised": {"swap": 0.0, "regulariser": "gradcamo"},
    "swapped": {},
    "both": {"regulariser": "gradcamo"},
}
"""Training settings of the encoders that ``--cure`` compares, by name. The first takes no measure against shortcuts,
the last takes both and becomes champion."""


@contextmanager
def _stage(title: str) -> Iterator[None]:
    print(f"  {title} ...", end="", flush=True)
    start = time.perf_counter()
    yield
    print(f" {time.perf_counter() - start:.0f} s", flush=True)


def run_demo(
    home: Home,
    config: SyntheticPlate,
    second: SyntheticPlate | None = None,
    *,
    quick: bool = False,
    processes: int | None = None,
) -> None:
    """Synthesise a plate, run every asset on it, and print the QC table and commands to try next.

    Args:
        second: a plate without the shortcut. If given, the encoders of ``MITIGATIONS`` are trained on the first plate
            and compared on both; otherwise one encoder is trained.
        quick: train with ``QUICK_TRAINING``, and skip what changes no score: the audit, profiles, the map of cells
            and the report.
        processes: number of sites to segment at the same time; default: one per processor core.

    Raises:
        GradcamoError: if a run fails; the UI shows where.
    """
    instance = open_instance(home)
    platform = Platform(root=str(home.root))
    definitions = build_definitions(platform)
    run = partial(run_job, definitions, instance)
    if not home.settings_file.exists():
        write_bytes(home.settings_file, DEMO_SETTINGS.encode())

    plates = [config] if second is None else [config, second]
    for plate in plates:
        print(
            f"{plate.name}: {plate.wells} wells x {plate.sites} sites, "
            f"shortcut {plate.shortcut}, labels by {plate.labels}"
        )
        with _stage("synthesising the plate into the inbox"):
            write_synthetic_plate(home.inbox, plate)
        with _stage("ingesting it"):
            instance.add_dynamic_partitions(str(PLATES.name), [plate.name])
            run("ingest_plates", plate.name)
        sites = sorted({field.site for field in load_plate(home.plates, plate.name).fields})
        partitions = [plate_site_key(plate.name, site) for site in sites]
        with _stage(f"segmenting and cropping {len(sites)} sites"):
            process_fields(definitions, instance, home, partitions, processes)
    registry = platform.registry
    # If cells do not show the dose, an encoder that cannot use the shortcut has nothing to learn.
    trainings = MITIGATIONS if second else {"": {"swap": 0.0} if config.shortcut != "none" else {}}
    trained: dict[str, ModelVersion] = {}
    for name, settings in trainings.items():
        with _stage(f"training the encoder{name and f' ({name})'}"):
            ops = {
                "data_split": {"plates": [config.name]},
                "trained_model": settings | (QUICK_TRAINING if quick else {}),
            }
            run("train_model", ops={op: {"config": given} for op, given in ops.items()})
        version = registry.by_alias(CHALLENGER)
        if version is None:
            raise GradcamoError("training registered no model", "Look at the run of train_model with make ui.")
        trained[name] = version
    champion = trained[name]
    if champion != registry.by_alias(CHAMPION):
        modules = platform.settings.encoders.modules
        reason = f"trained on {config.name}"
        promote(platform.lake, registry, champion, by="gradcamo demo", reason=reason, modules=modules)
    for partition in scoring_state(platform.lake, registry, champion).todo:
        with _stage("embedding and scoring {}, site {}".format(*partition)):
            run("rescore", plate_site_key(*partition))
    if quick:
        with _stage("QC database"):
            run("refresh_qc", only=["qc_database"])
    else:
        with _stage("auditing the encoder"):
            for plate in plates:
                run("audit_plates", plate.name)
        with _stage("profiles, map and QC database"):
            run("refresh_qc")
            # The first publication does not wait for the profiles; the second adds them.
            run("refresh_qc", only=["qc_database"])
        with _stage("the report"):
            for plate in plates:
                run("report_plates", plate.name)
    print(f"\nWhere does {champion} look? Cells it was trained on are left out.\n")
    render(qc_table(home.database, by="dose,site").filter(Metadata_Plate=config.name))
    if second:
        print(f"\nEncoders trained on {config.name}: its held-out wells, and {second.name}, without the shortcut.\n")
        render(_compare_encoders(platform, trained, [plate.name for plate in plates]))
    report = home.reports / config.name / f"{champion.name}-v{champion.version}.html"
    print(NEXT.format(last=QUICK_LEFT_OUT if quick else report))


def _compare_encoders(platform: Platform, trained: Mapping[str, ModelVersion], plates: Sequence[str]) -> pl.DataFrame:
    """Return one row per version: its accuracy and median adjusted score on held-out cells of each plate."""
    rows = []
    for name, version in trained.items():
        cells = held_out_cells(platform.lake, platform.registry, version)
        row: dict[str, Any] = {"encoder": name, "model_version": version.version}
        for place, plate in zip(("", "_second"), plates, strict=True):
            there = cells.filter(Metadata_Plate=plate)
            row[f"accuracy{place}"] = (there["predicted_class"] == there["true_class"]).mean()
            row[f"adjusted{place}"] = there["gradcamo_adjusted"].median()
        rows.append(row)
    return pl.DataFrame(rows)


NEXT = """
Next:
  make ui                                   the Dagster and MLflow pages on this very data
  .venv/bin/gradcamo qc --by dose           the ready-made tables: dose, site, dose,site, well, plate, model
  .venv/bin/gradcamo sql "SELECT looks_at, count(*) FROM current_scores GROUP BY ALL"
  .venv/bin/gradcamo demo --shortcut background     an encoder that cheats, and its score; with --cure: countermeasures
  {last}
"""
QUICK_LEFT_OUT = """\
.venv/bin/gradcamo demo                   24 wells, 3 doses, 16 epochs, and what --quick leaves out: audit, profiles,
                                            map of cells, report"""


def demo_plates(shortcut: str, labels: str, seed: int, cure: bool = False, quick: bool = False) -> list[SyntheticPlate]:
    """Return the plate of the demo, and with ``cure`` a second plate without the shortcut; names tell the settings."""
    name = f"demo-{'quick-' * quick}{'cure' if cure else shortcut}-{labels}-{seed}"
    first = SyntheticPlate(name=name, shortcut=shortcut, labels=labels, seed=seed)  # type: ignore[arg-type]
    if quick:
        # Two classes of four wells each, so that there are wells to train on, to validate and to test.
        return [replace(first, wells=8, sites=1, doses=1, cells=8)]
    if not cure:
        return [first]
    second = replace(first, name=f"{name}-second", shortcut="none", seed=seed + 1000, wells=12)
    return [replace(first, background_shift=0), second]
