"""Does the platform stay fast with a thousand plates? ``python -m benchmarks.scale [--quick]``

Two synthetic homes (``scale_home``), of 1,000 and of 100 plates x 9 sites, with nothing left to do. Every sensor and
the automation conditions are evaluated: with nothing to do, after one partition was rescored and published, and after
another encoder was promoted. The views are queried before and after the lake's small files are merged. Requested runs
are not executed. Each first tick runs in a new process that has loaded the definitions, as Dagster's code server has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from dagster_shared.serdes import deserialize_value, serialize_value

from benchmarks.scale_home import SITES, WELLS, add_runs, make_home, plate_names, rescore
from gradcamo_assets.defs.automation.run_requests import MAX_REQUESTS
from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import QUIET
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.storage import file_sizes
from gradcamo_assets.tables import run_sql
from gradcamo_assets.tables.columns import DOSE_NAMES
from gradcamo_assets.tables.views import VIEWS

SENSORS = (
    "inbox_sensor", "champion_model_sensor", "publication_sensor", "report_sensor", "retraining_sensor", "automation",
)  # fmt: skip
_HEAD = (
    "\n| plates | state | sensor | process | s | processor s | requests |\n| --- | --- | --- | --- | --- | --- | --- |"
)
_BY_DOSE = ("scores", "current_scores", "embeddings", "umap", "profiles", "cells")
_BY_PLATE = ("fields",)
"""Views with a row per cell, well or field are queried for one plate and dose, or one plate; all others whole."""


@dataclass(frozen=True)
class Tick:
    """One evaluation of a sensor: wall-clock seconds, processor seconds, and the number of run requests."""

    state: str
    sensor: str
    seconds: float
    processor: float
    requests: int


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` in a new process and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def ticks(root: Path, state: str, sensor: str, times: int = 2) -> list[Tick]:
    """Evaluate a sensor several times; the first tick is cold. The cursor is kept in a file of the home."""
    home, cursor_file = Home(root), root / f"{sensor}.cursor"
    definitions = build_definitions(Platform(root=str(root)))
    definitions.get_repository_def()
    evaluated = []
    with open_instance(home) as instance:
        for _ in range(times):
            cursor = cursor_file.read_text() if cursor_file.exists() else None
            start, processor_start = time.perf_counter(), time.process_time()
            requests, cursor = _tick(definitions, instance, sensor, cursor)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
            if cursor is not None:
                cursor_file.write_text(cursor)
            evaluated.append(Tick(state, sensor, seconds, processor, requests))
    return evaluated


def _tick(
    definitions: dg.Definitions, instance: dg.DagsterInstance, sensor: str, cursor: str | None
) -> tuple[int, str | None]:
    """Evaluate a sensor as Dagster's code server does. Returns the number of run requests and the next cursor."""
    if sensor == "automation":
        from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

        before = deserialize_value(cursor, AssetDaemonCursor) if cursor else None
        evaluation = dg.evaluate_automation_conditions(definitions, instance, cursor=before)
        return evaluation.total_requested, serialize_value(evaluation.cursor)
    with dg.build_sensor_context(
        instance=instance,
        instance_ref=instance.get_ref(),
        cursor=cursor,
        definitions=definitions,
        resources=definitions.resources,
    ) as context:
        evaluated = definitions.resolve_sensor_def(sensor).evaluate_tick(context)
    return len(evaluated.run_requests or []), evaluated.cursor


def publication(root: Path) -> dict[str, float]:
    """Materialise ``qc_database``. Returns the seconds of the run and of its publication, and the changed plates."""
    home = Home(root)
    definitions = build_definitions(Platform(root=str(root)))
    job = definitions.resolve_job_def("refresh_qc")
    with open_instance(home) as instance:
        start = time.perf_counter()
        asset = dg.AssetKey("qc_database")
        result = job.execute_in_process(instance=instance, asset_selection=[asset], run_config=QUIET)
        seconds = time.perf_counter() - start
        (event,) = result.asset_materializations_for_node("qc_database")
        (check,) = result.get_asset_check_evaluations()
    assert check.passed, check.metadata
    metadata = {name: value.value for name, value in event.metadata.items()}
    return {
        "run": seconds,
        "publish": metadata["seconds"],
        "plates": len(metadata["plates_touched"]),
        "megabytes": metadata["megabytes"],
    }


def views(root: Path, plate: str, times: int) -> dict[str, tuple[float, int]]:
    """Query every view as ``gradcamo sql`` does, which opens the database. Returns median milliseconds and rows."""
    compound, dose, _ = WELLS.select(DOSE_NAMES).row(100)
    of_plate = f"WHERE Metadata_Plate = '{plate}'"
    filters = dict.fromkeys(_BY_PLATE, of_plate)
    filters |= dict.fromkeys(_BY_DOSE, f"{of_plate} AND Metadata_Compound = '{compound}' AND Metadata_Dose = {dose}")
    measured = {}
    for name in (view.name for view in VIEWS if "." not in view.name):
        milliseconds, rows = [], 0
        for _ in range(times):
            start = time.perf_counter()
            rows = len(run_sql(Home(root).database, f"SELECT * FROM {name} {filters.get(name, '')}"))
            milliseconds.append(1000 * (time.perf_counter() - start))
        measured[name] = statistics.median(milliseconds), rows
    return measured


def tidy(root: Path) -> float:
    """Merge the lake's small files with the job for it. Returns seconds."""
    job = build_definitions(Platform(root=str(root))).resolve_job_def("tidy_lake")
    with open_instance(Home(root)) as instance:
        start = time.perf_counter()
        assert job.execute_in_process(instance=instance, run_config=QUIET).success
        return time.perf_counter() - start


def sizes(root: Path) -> str:
    """Return the size of the lake, also by cell, and of Dagster's databases, in words."""
    home = Home(root)
    files, dagster = file_sizes(home.lake), sum(file_sizes(home.dagster))
    (cells,) = Platform(root=str(root)).lake.scan("cells").select(pl.len()).collect().row(0)
    lake = f"the lake has {len(files)} files and {sum(files) / 1e6:.0f} MB, {sum(files) / cells:.0f} bytes a cell"
    return f"{lake}; Dagster's databases have {dagster / 1e6:.0f} MB"


def change(root: Path, plate: str) -> None:
    """Rescore one partition and record its materialisations."""
    platform = Platform(root=str(root))
    rescore(platform.lake, plate, 1, platform.champion())
    with open_instance(platform.home) as instance:
        for asset in ("embeddings", "gradcamo_scores"):
            made = dg.AssetMaterialization(asset, partition=plate_site_key(plate, 1))
            instance.report_runless_asset_event(made)


def queue(root: Path, plates: list[str]) -> None:
    """Add the runs that a tick after a promotion requests, as in progress."""
    with open_instance(Home(root)) as instance:
        keys = [plate_site_key(plate, site) for plate in plates for site in range(1, SITES + 1)]
        add_runs(instance, "rescore", keys[:MAX_REQUESTS], dg.DagsterRunStatus.STARTED)


def promote(root: Path, version: int) -> None:
    """Move the alias, as a user does in MLflow's UI."""
    Platform(root=str(root)).registry.promote(version)


class MeasuredHome:
    """One home and its measurements, which are printed as they are made."""

    def __init__(self, root: Path, plates: int, cells: int):
        self.root, self.names, self.ticks = root, plate_names(plates), list[Tick]()
        self.challenger = self.step(f"a home of {plates} plates was written", make_home, plates, cells)

    def step(self, what: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``work`` in a new process and print its time."""
        start = time.perf_counter()
        result = in_new_process(work, self.root, *arguments)
        print(f"{what}: {time.perf_counter() - start:.0f} s with the start of a process", flush=True)
        return result

    def tick(self, state: str, *sensors: str, times: int = 2) -> int:
        """Evaluate sensors. Returns the number of runs that the last one requested in all of its ticks."""
        requested = 0
        for sensor in sensors:
            new = in_new_process(ticks, self.root, state, sensor, times)
            self.ticks += new
            requested = sum(tick.requests for tick in new)
            for number, tick in enumerate(new):
                temperature = "warm" if number else "cold"
                row = f"{tick.seconds:.2f} | {tick.processor:.2f} | {tick.requests}"
                print(f"| {len(self.names)} | {state} | {sensor} | {temperature} | {row} |", flush=True)
        return requested

    def publish(self, what: str) -> dict[str, float]:
        """Publish and print the time."""
        figures = in_new_process(publication, self.root)
        print(
            f"{what}: published in {figures['publish']:.2f} s, the whole run {figures['run']:.2f} s, "
            f"{figures['plates']:.0f} plates changed, {figures['megabytes']:.0f} MB",
            flush=True,
        )
        return figures

    def slowest(self, sensor: str) -> float:
        """Return the seconds of the slowest tick of a sensor."""
        return max(tick.seconds for tick in self.ticks if tick.sensor == sensor)

    def measure_one_change(self) -> dict[str, float]:
        """Publish for the first time and after one partition was rescored. Returns figures of both."""
        first = self.publish("nothing had been published")
        print(_HEAD)
        plates, changed = len(self.names), self.names[len(self.names) // 2]
        self.tick("published first", "report_sensor", times=-(-plates // MAX_REQUESTS) + 1)
        self.tick("nothing to do", *SENSORS)
        self.step("one partition was rescored", change, changed)
        self.tick("one partition rescored", "publication_sensor", "automation")
        second = self.publish("one partition was rescored")
        reports = self.tick("published", "report_sensor")
        return {
            "first_publish_seconds": first["publish"],
            "publish_seconds": second["publish"],
            "publication_run_seconds": second["run"],
            "megabytes": second["megabytes"],
            "reports_per_publication": reports / second["plates"],
        }

    def measure_promotion(self) -> None:
        """Promote the challenger and evaluate the sensors, again with the requested runs in progress."""
        in_new_process(promote, self.root, self.challenger.version)
        self.tick("promoted", *SENSORS)
        in_new_process(queue, self.root, self.names)
        self.tick("promoted, runs in progress", *SENSORS[:2])

    def measure_views(self) -> float:
        """Print the times of all views before and after small files are merged. Returns the slowest after it, ms."""
        plate = self.names[len(self.names) // 2]
        before = in_new_process(views, self.root, plate, 1)
        print(f"before small files are merged, {in_new_process(sizes, self.root)}")
        print(f"small files merged in {in_new_process(tidy, self.root):.0f} s", flush=True)
        print(f"after that, {in_new_process(sizes, self.root)}")
        merged = self.publish("small files were merged")
        assert not merged["plates"], "a merge changes no plate"
        after = in_new_process(views, self.root, plate, 3)
        print("\n| view | ms before small files are merged | ms after | rows |\n| --- | --- | --- | --- |")
        for name, (milliseconds, rows) in after.items():
            part = ", one plate and dose" * (name in _BY_DOSE) + ", one plate" * (name in _BY_PLATE)
            print(f"| {name}{part} | {before[name][0]:.0f} | {milliseconds:.0f} | {rows} |")
        return max(milliseconds for milliseconds, _ in after.values())


def measure(folder: Path, plates: int, cells: int) -> dict[str, float]:
    """Measure a home of ``plates`` plates against one of a tenth of them. Returns the figures."""
    few, many = MeasuredHome(folder / "few", plates // 10, cells), MeasuredHome(folder / "many", plates, cells)
    few.measure_one_change()
    figures = many.measure_one_change()
    slowest_view = many.measure_views()
    few.measure_promotion()
    many.measure_promotion()
    print("\n| sensor | slowest tick, s | with a tenth of the plates, s | growth |\n| --- | --- | --- | --- |")
    growth = {}
    for sensor in SENSORS:
        growth[sensor] = many.slowest(sensor) / few.slowest(sensor)
        print(f"| {sensor} | {many.slowest(sensor):.2f} | {few.slowest(sensor):.2f} | {growth[sensor]:.2f} |")
    return {
        "worst_tick_seconds": max(tick.seconds for tick in many.ticks),
        "view_ms": slowest_view,
        "requests_per_tick": max(tick.requests for tick in many.ticks),
        "growth": max(growth.values()),
        **figures,
    }


def main() -> None:
    """Print the tables and the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 cells a plate x site instead of 1,111")
    parser.add_argument("--plates", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.plates, 10 if arguments.quick else 1111)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
