"""Does the platform stay quick with a thousand plates? ``python -m benchmarks.scale [--quick]``

A made-up home of 1,000 plates x 9 sites (``scale_home``), and one of 100, on which all work is done: every sensor and
the automation conditions are asked what is to do, then a partition is scored anew and published, and then another
encoder becomes champion. The views are asked before and after the lake's small files are merged. What a tick asks for
is not run. Each first tick has a process of its own that has loaded the definitions, as Dagster's code server has.
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
from dagster_shared.serdes import deserialize_value, serialize_value

from benchmarks.scale_home import SITES, WELLS, add_runs, make_home, plate_names, rescore
from gradcamo_assets.defs.automation.run_requests import MAX_REQUESTS
from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import QUIET
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
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
"""Views with a row a cell, well or field are asked for one plate and dose, or for one plate; all others whole."""


@dataclass(frozen=True)
class Tick:
    """One evaluation: seconds, those of the processor, and what was asked for, by job."""

    state: str
    sensor: str
    seconds: float
    processor: float
    requests: int


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def ticks(root: Path, state: str, sensor: str, times: int = 2) -> list[Tick]:
    """So many ticks of a sensor, one after the other; the first is cold. Cursors are kept in the home."""
    home, kept = Home(root), root / f"{sensor}.cursor"
    definitions = build_definitions(Platform(root=str(root)))
    definitions.get_repository_def()
    found = []
    with open_instance(home) as instance:
        for _ in range(times):
            cursor = kept.read_text() if kept.exists() else None
            began = time.perf_counter(), time.process_time()
            requests, cursor = _tick(definitions, instance, sensor, cursor)
            seconds = time.perf_counter() - began[0], time.process_time() - began[1]
            if cursor is not None:
                kept.write_text(cursor)
            found.append(Tick(state, sensor, *seconds, requests))
    return found


def _tick(
    definitions: dg.Definitions, instance: dg.DagsterInstance, sensor: str, cursor: str | None
) -> tuple[int, str | None]:
    """What Dagster's code server does in a tick, run requests resolved: how many there are, and the next cursor."""
    if sensor == "automation":
        from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

        before = deserialize_value(cursor, AssetDaemonCursor) if cursor else None
        found = dg.evaluate_automation_conditions(definitions, instance, cursor=before)
        return found.total_requested, serialize_value(found.cursor)
    with dg.build_sensor_context(
        instance=instance,
        instance_ref=instance.get_ref(),
        cursor=cursor,
        definitions=definitions,
        resources=definitions.resources,
    ) as context:
        answer = definitions.resolve_sensor_def(sensor).evaluate_tick(context)
    return len(answer.run_requests or []), answer.cursor


def publication(root: Path) -> dict[str, float]:
    """Materialise ``qc_database``: seconds of the run and of the publication in it, and plates that it changed."""
    home = Home(root)
    definitions = build_definitions(Platform(root=str(root)))
    job = definitions.resolve_job_def("refresh_qc")
    with open_instance(home) as instance:
        began = time.perf_counter()
        asset = dg.AssetKey("qc_database")
        result = job.execute_in_process(instance=instance, asset_selection=[asset], run_config=QUIET)
        seconds = time.perf_counter() - began
        (event,) = result.asset_materializations_for_node("qc_database")
        (check,) = result.get_asset_check_evaluations()
    assert check.passed, check.metadata
    told = {name: value.value for name, value in event.metadata.items()}
    return {
        "run": seconds,
        "publish": told["seconds"],
        "plates": len(told["plates_touched"]),
        "megabytes": told["megabytes"],
    }


def views(root: Path, plate: str, times: int) -> dict[str, tuple[float, int]]:
    """Milliseconds (median) and rows of every view, opening the database included as ``gradcamo sql`` does it."""
    compound, dose, _ = WELLS.select(DOSE_NAMES).row(100)
    of_plate = f"WHERE Metadata_Plate = '{plate}'"
    asked = dict.fromkeys(_BY_PLATE, of_plate)
    asked |= dict.fromkeys(_BY_DOSE, f"{of_plate} AND Metadata_Compound = '{compound}' AND Metadata_Dose = {dose}")
    found = {}
    for name in (view.name for view in VIEWS if "." not in view.name):
        taken, rows = [], 0
        for _ in range(times):
            began = time.perf_counter()
            rows = len(run_sql(Home(root).database, f"SELECT * FROM {name} {asked.get(name, '')}"))
            taken.append(1000 * (time.perf_counter() - began))
        found[name] = statistics.median(taken), rows
    return found


def tidy(root: Path) -> float:
    """Seconds of the job that merges the lake's small files."""
    job = build_definitions(Platform(root=str(root))).resolve_job_def("tidy_lake")
    with open_instance(Home(root)) as instance:
        began = time.perf_counter()
        assert job.execute_in_process(instance=instance, run_config=QUIET).success
        return time.perf_counter() - began


def change(root: Path, plate: str) -> float:
    """Score one partition anew; seconds of its commits."""
    platform = Platform(root=str(root))
    began = time.perf_counter()
    rescore(platform.lake, plate, 1, platform.champion())
    seconds = time.perf_counter() - began
    with open_instance(platform.home) as instance:
        for asset in ("embeddings", "gradcamo_scores"):
            made = dg.AssetMaterialization(asset, partition=plate_site_key(plate, 1))
            instance.report_runless_asset_event(made)
    return seconds


def queue(root: Path, plates: list[str]) -> None:
    """Let what a tick after a promotion asked for be on its way."""
    with open_instance(Home(root)) as instance:
        keys = [plate_site_key(plate, site) for plate in plates for site in range(1, SITES + 1)]
        add_runs(instance, "rescore", keys[:MAX_REQUESTS], dg.DagsterRunStatus.STARTED)


def promote(root: Path, version: int) -> None:
    """Move the alias, as MLflow's pages do."""
    Platform(root=str(root)).registry.promote(version)


class Measured:
    """One home, and what was measured in it; rows are printed as they come."""

    def __init__(self, root: Path, plates: int, cells: int):
        self.root, self.names, self.ticks = root, plate_names(plates), list[Tick]()
        self.waiting = self.step(f"a home of {plates} plates made", make_home, plates, cells)

    def step(self, what: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Work in a process of its own, timed for the reader."""
        began = time.perf_counter()
        answer = in_new_process(work, self.root, *arguments)
        print(f"{what}: {time.perf_counter() - began:.0f} s with the start of a process", flush=True)
        return answer

    def ask(self, state: str, *sensors: str, times: int = 2) -> int:
        """Let sensors tick. How many runs the last one asked for in all of its ticks."""
        asked = 0
        for sensor in sensors:
            new = in_new_process(ticks, self.root, state, sensor, times)
            self.ticks += new
            asked = sum(tick.requests for tick in new)
            for number, tick in enumerate(new):
                temperature = "warm" if number else "cold"
                row = f"{tick.seconds:.2f} | {tick.processor:.2f} | {tick.requests}"
                print(f"| {len(self.names)} | {state} | {sensor} | {temperature} | {row} |", flush=True)
        return asked

    def publish(self, what: str) -> dict[str, float]:
        """Publish, and say what it took."""
        found = in_new_process(publication, self.root)
        print(
            f"{what}: published in {found['publish']:.2f} s, the whole run {found['run']:.2f} s, "
            f"{found['plates']:.0f} plates changed, {found['megabytes']:.0f} MB",
            flush=True,
        )
        return found

    def slowest(self, sensor: str) -> float:
        """Seconds of the slowest tick of a sensor."""
        return max(tick.seconds for tick in self.ticks if tick.sensor == sensor)

    def up_to_one_change(self) -> dict[str, float]:
        """From the first publication to that of one partition scored anew; figures of both."""
        first = self.publish("nothing was published before")
        print(_HEAD)
        plates, changed = len(self.names), self.names[len(self.names) // 2]
        self.ask("published first", "report_sensor", times=-(-plates // MAX_REQUESTS) + 1)
        self.ask("all is done", *SENSORS)
        self.step("one partition scored anew", change, changed)
        self.ask("one partition scored", "publication_sensor", "automation")
        second = self.publish("one partition was scored")
        reports = self.ask("published", "report_sensor")
        return {
            "first_publish_seconds": first["publish"],
            "publish_seconds": second["publish"],
            "publication_run_seconds": second["run"],
            "megabytes": second["megabytes"],
            "reports_per_publication": reports / second["plates"],
        }

    def promoted(self) -> None:
        """Another encoder is made champion; then what was asked for waits in the queue."""
        in_new_process(promote, self.root, self.waiting.version)
        self.ask("promoted", *SENSORS)
        in_new_process(queue, self.root, self.names)
        self.ask("promoted, runs wait", *SENSORS[:2])

    def views(self) -> float:
        """Milliseconds of the slowest view once small files are merged; prints all, before and after."""
        plate = self.names[len(self.names) // 2]
        before = in_new_process(views, self.root, plate, 1)
        print(f"small files merged in {in_new_process(tidy, self.root):.0f} s", flush=True)
        merged = self.publish("small files were merged")
        assert not merged["plates"], "a merge changes no plate"
        after = in_new_process(views, self.root, plate, 3)
        print("\n| view | ms before small files are merged | ms after | rows |\n| --- | --- | --- | --- |")
        for name, (milliseconds, rows) in after.items():
            asked = ", one plate and dose" * (name in _BY_DOSE) + ", one plate" * (name in _BY_PLATE)
            print(f"| {name}{asked} | {before[name][0]:.0f} | {milliseconds:.0f} | {rows} |")
        return max(milliseconds for milliseconds, _ in after.values())


def measure(folder: Path, plates: int, cells: int) -> dict[str, float]:
    """The figures, of a home of so many plates, and of one of a tenth."""
    few, many = Measured(folder / "few", plates // 10, cells), Measured(folder / "many", plates, cells)
    few.up_to_one_change()
    figures = many.up_to_one_change()
    view = many.views()
    few.promoted()
    many.promoted()
    print("\n| sensor | slowest tick, s | with a tenth of the plates, s | growth |\n| --- | --- | --- | --- |")
    growth = {}
    for sensor in SENSORS:
        growth[sensor] = many.slowest(sensor) / few.slowest(sensor)
        print(f"| {sensor} | {many.slowest(sensor):.2f} | {few.slowest(sensor):.2f} | {growth[sensor]:.2f} |")
    return {
        "worst_tick_seconds": max(tick.seconds for tick in many.ticks),
        "view_ms": view,
        "requests_per_tick": max(tick.requests for tick in many.ticks),
        "growth": max(growth.values()),
        **figures,
    }


def main() -> None:
    """Print the tables and the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 cells a plate x site in place of 1,111")
    parser.add_argument("--plates", type=int, default=1000)
    given = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.plates, 10 if given.quick else 1111)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
