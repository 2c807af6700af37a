"""Two small plates, all jobs on them in one process, and where two lakes with their results differ."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import PLATES, plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import run_job
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets.tables import LAKE_TABLES, Lake
from gradcamo_assets.training.model_registry import CHALLENGER
from gradcamo_assets.training.promotion import promote

NAMES = ("one", "two")
SITES = (1, 2)
_RUN_COLUMNS = {"run_id", "model_run", "from_run", "to_run", "promoted_by", "metrics"}
"""Columns with identifiers of runs, and the metrics of a training, among them its seconds."""
_MADE_FROM_RUN = {f"{stage}_versions" for stage in ("score", "audit", "profile", "umap", "confounder")}
"""Tables whose versions are digests of the MLflow run, among others."""
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


def run_in_one_process(home: Home) -> Platform:
    """Run every job as the demo does."""
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
    for plate in NAMES:
        for site in SITES:
            run_job(definitions, instance, "rescore", plate_site_key(plate, site))
    for plate in NAMES:
        run_job(definitions, instance, "audit_plates", plate)
    run_job(definitions, instance, "refresh_qc")
    run_job(definitions, instance, "refresh_qc")
    for plate in NAMES:
        run_job(definitions, instance, "report_plates", plate)
    return platform


def crown(platform: Platform) -> None:
    """Promote the challenger, unless the job has done so."""
    challenger = platform.registry.by_alias(CHALLENGER)
    assert challenger is not None
    if platform.registry.by_alias() is None:
        promote(platform.lake, platform.registry, challenger, by="test", reason="the first")


def differences(one: Lake, other: Lake) -> list[str]:
    """Where two lakes differ in more than times, runs and the last digits of numbers."""
    found = []
    for table in LAKE_TABLES.values():
        frames = [lake.read(table.name) for lake in (one, other)]
        schema = frames[0].schema
        left_out = _RUN_COLUMNS | ({"version", "made_from"} if table.name in _MADE_FROM_RUN else set())
        kept = [name for name, kind in schema.items() if not isinstance(kind, pl.Datetime) and name not in left_out]
        exact = [name for name in kept if not schema[name].is_float() and not schema[name].is_nested()]
        one_rows, other_rows = (frame.select(kept).sort(exact, nulls_last=True) for frame in frames)
        try:
            assert_frame_equal(one_rows, other_rows, check_exact=False, rel_tol=1e-5, abs_tol=1e-5)
        except AssertionError as error:
            found.append(f"{table.name}: {error}")
    return found


def main() -> None:
    """Run all jobs in the home given on the command line."""
    home = Home(Path(sys.argv[1]))
    fill_inbox(home)
    run_in_one_process(home)


if __name__ == "__main__":
    main()
