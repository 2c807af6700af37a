"""What does a home in a bucket cost? ``python -m benchmarks.bucket [--quick] [--wells 24]``

A synthetic plate is ingested, segmented, scored and published in one process, once with the home in a folder and once
in a bucket of an S3 server on this machine (SeaweedFS; ``make test-cluster`` installs it). The server counts the
requests of each stage and of each sensor's tick. A run has one field of each well. ``slowdown``: seconds of all stages,
bucket over folder. A server on another machine answers later, but takes no processor time from the platform. Linux
only.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import dagster as dg

from benchmarks.night import SETTINGS, add_champion
from benchmarks.scale import SENSORS, _tick
from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import PLATES, plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import run_job
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.storage import file_sizes, list_files, write_bytes
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets_tests.cluster.object_store import ObjectStore
from gradcamo_assets_tests.defs.mlflow_server import MlflowServer

KINDS = ("PUT", "GET", "LIST", "DELETE")
PARTS = ("plates", "masks", "crops", "lake")


def process(
    home: Home, plate: SyntheticPlate, uri: str, requests: Callable[[], Counter[str]]
) -> dict[str, tuple[float, Counter[str]]]:
    """Process a plate. Returns the seconds and requests of each stage and tick."""
    measured: dict[str, tuple[float, Counter[str]]] = {}

    def measure(stage: str, work: Callable[[], object]) -> None:
        before, start = requests(), time.perf_counter()
        work()
        measured[stage] = time.perf_counter() - start, requests() - before

    write_bytes(home.settings_file, f'{SETTINGS}[registry]\nuri = "{uri}"\n'.encode())
    measure("inbox", lambda: write_synthetic_plate(home.create().inbox, plate))
    platform = Platform(root=home.address)
    definitions = build_definitions(platform)
    keys = [plate_site_key(plate.name, site) for site in range(1, plate.sites + 1)]
    with open_instance(home) as instance:
        instance.add_dynamic_partitions(str(PLATES.name), [plate.name])
        if platform.registry.by_alias() is None:
            add_champion(platform, plate)
        measure("ingestion", lambda: run_job(definitions, instance, "ingest_plates", plate.name))
        for asset in ("masks", "cells", "crops"):
            measure(asset, partial(run_jobs, definitions, instance, "process_fields", keys, [asset]))
        measure("scores", partial(run_jobs, definitions, instance, "rescore", keys))
        measure("publication", lambda: run_job(definitions, instance, "refresh_qc", only=["qc_database"]))
        for sensor in (name for name in SENSORS if name != "automation"):
            cursor = _tick(definitions, instance, sensor, None)[1]
            measure(f"tick of {sensor}", partial(_tick, definitions, instance, sensor, cursor))
    return measured


def run_jobs(
    definitions: dg.Definitions, instance: dg.DagsterInstance, job: str, keys: list[str], only: list[str] | None = None
) -> None:
    """Run a job for each partition."""
    for key in keys:
        run_job(definitions, instance, job, key, only=only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 wells x 2 sites instead of 4 sites")
    parser.add_argument("--wells", type=int, default=6)
    arguments = parser.parse_args()
    wells, sites = (2, 2) if arguments.quick else (arguments.wells, 4)
    fields = wells * sites
    plate = SyntheticPlate("plate", wells=wells, sites=sites, doses=1)
    os.environ |= {"TQDM_DISABLE": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        objects = ObjectStore()
        running.callback(objects.remove)
        os.environ |= objects.environment
        mlflow = MlflowServer(folder)
        mlflow.start()
        running.callback(mlflow.stop)
        os.environ["DAGSTER_HOME"] = str(folder / "dagster")
        (folder / "dagster").mkdir()
        in_folder = process(Home(folder / "home"), plate, mlflow.uri, Counter)
        os.environ["DAGSTER_HOME"] = str(folder / "dagster")
        home = Home.at("s3://lab/home")
        in_bucket = process(home, plate, mlflow.uri, objects.requests)
        print(f"{fields} fields\n\n| stage | s, folder | s, bucket | {' | '.join(KINDS)} | requests a field |")
        print("|" + " --- |" * (len(KINDS) + 4))
        for stage, (seconds, counts) in in_bucket.items():
            numbers = " | ".join(str(counts[kind]) for kind in KINDS)
            of_field = "" if stage.startswith("tick") else f"{counts.total() / fields:.0f}"
            print(f"| {stage} | {in_folder[stage][0]:.1f} | {seconds:.1f} | {numbers} | {of_field} |")
        print(f"\n| part | objects | objects a field | MB |\n|{' --- |' * 4}")
        for part in PARTS:
            sizes = file_sizes(getattr(home, part))
            print(f"| {part} | {len(sizes)} | {len(sizes) / fields:.1f} | {sum(sizes) / 1e6:.1f} |")
        stages = [stage for stage in in_folder if not stage.startswith("tick") and stage != "inbox"]
        commits = [name for name in list_files(home.lake) if "_delta_log/" in name and name.endswith(".json")]
    result = {
        "slowdown": round(
            sum(in_bucket[stage][0] for stage in stages) / sum(in_folder[stage][0] for stage in stages), 2
        ),
        "requests_a_field": round(sum(in_bucket[stage][1].total() for stage in stages) / fields, 1),
        "commits": len(commits),
        "requests_a_tick": sum(counts.total() for name, (_, counts) in in_bucket.items() if name.startswith("tick")),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
