"""Two small plates, and all jobs on them in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import dagster as dg

from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import PLATES, plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import run_job
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets.training.model_registry import CHALLENGER
from gradcamo_assets.training.promotion import promote

NAMES = ("one", "two")
SITES = (1, 2)
SETTINGS = """\
[inbox]
settle_seconds = 0.0
[segmentation]
mode = "stitch"
[crops]
shape = [6, 48, 48]
keep_border = true
[training]
epochs = 4
batch_size = 4
"""


def fill_inbox(home: Home, settings: str = "") -> None:
    """Write the plates and the settings, with further ones."""
    home.create()
    write_bytes(home.settings_file, f"{SETTINGS}{settings}".encode())
    for seed, name in enumerate(NAMES):
        plate = SyntheticPlate(name=name, wells=6, sites=2, shape=(6, 96, 96), cells=4, doses=1, seed=seed)
        write_synthetic_plate(home.inbox, plate)


def train_in_one_process(home: Home) -> tuple[Platform, dg.Definitions, dg.DagsterInstance]:
    """Run the jobs that make a champion, as the demo does."""
    platform, instance = Platform(root=home.address), open_instance(home)
    definitions = build_definitions(platform)
    instance.add_dynamic_partitions(str(PLATES.name), list(NAMES))
    for plate in NAMES:
        run_job(definitions, instance, "ingest_plates", plate)
        for site in SITES:
            run_job(definitions, instance, "process_fields", plate_site_key(plate, site))
    run_job(definitions, instance, "train_model")
    run_job(definitions, instance, "promote_challenger")
    crown(platform)
    return platform, definitions, instance


def run_in_one_process(home: Home) -> None:
    """Run every job as the demo does."""
    _, definitions, instance = train_in_one_process(home)
    for plate in NAMES:
        for site in SITES:
            run_job(definitions, instance, "rescore", plate_site_key(plate, site))
    for plate in NAMES:
        run_job(definitions, instance, "audit_plates", plate)
    run_job(definitions, instance, "refresh_qc")
    run_job(definitions, instance, "refresh_qc")
    for plate in NAMES:
        run_job(definitions, instance, "report_plates", plate)


def crown(platform: Platform) -> None:
    """Promote the challenger, unless the job has done so."""
    challenger = platform.registry.by_alias(CHALLENGER)
    assert challenger is not None
    if platform.registry.by_alias() is None:
        promote(platform.lake, platform.registry, challenger, by="test", reason="the first")


def main() -> None:
    """Run all jobs in the home given on the command line."""
    home = Home(Path(sys.argv[1]))
    fill_inbox(home)
    run_in_one_process(home)


if __name__ == "__main__":
    main()
