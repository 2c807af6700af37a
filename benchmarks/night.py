"""How fast does a new plate become published scores? ``python -m benchmarks.night [--quick] [--folder DIR]``

TIFFs of a synthetic plate lie in the inbox of a new home that has a champion: a small encoder, untrained, since only
speed is measured. Dagster's daemon then does everything, as in a night: sensors ask for ingestion, masks, cells, crops,
scores, the publication and the report. The clock stops when the report of the first publication with all scores is
written. Profiles, maps and audits that the daemon started meanwhile count as ``other``. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import torch

from benchmarks.home_processes import HomeProcesses
from benchmarks.ingest import VOXEL_SIZE, write_description, write_field
from gradcamo_assets.defs.automation.pending import partitions_to_process, partitions_to_score
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.serve import code_servers, daemon_command, open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.networks.bundle import BundleConfig
from gradcamo_assets.networks.efficientnet3d import EfficientNet3D
from gradcamo_assets.plates.treatments import treatment_class
from gradcamo_assets.synthetic import SyntheticPlate, render_field
from gradcamo_assets.synthetic.design import make_plate_map
from gradcamo_assets.training.promotion import promote

STAGES = {
    "plate_images": "ingest",
    "masks": "masks",
    "cells": "cells",
    "crops": "crops",
    "scores_and_embeddings": "scores",
    "qc_database": "publish",
    "qc_report": "report",
}
"""Stages by the step that does them."""
CROP = (12, 64, 64)
SETTINGS = f"""\
[inbox]
settle_seconds = 0.0

[crops]
shape = {list(CROP)}
"""
"""The plate counts as complete at once; crops suit its small fields."""
_EVENT = dg.DagsterEventType
_WATCHED = {
    _EVENT.ENGINE_EVENT, _EVENT.STEP_WORKER_STARTED, _EVENT.STEP_START, _EVENT.STEP_SUCCESS, _EVENT.STEP_FAILURE
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A step that has ended: its stage, its process, and its start and end in seconds since 1970."""

    stage: str
    process: int
    start: float
    end: float


def deliver(inbox: Path, plate: SyntheticPlate) -> int:
    """Write the TIFFs of a plate, its map and its description into the inbox. Returns the bytes of pixels."""
    folder, size = inbox / plate.name, 0
    folder.mkdir()
    for index, well in enumerate(plate.well_names):
        for site in range(1, plate.sites + 1):
            image = render_field(plate, index, site).image
            write_field(folder, well, site, plate.stains, image)
            size += image.nbytes
    make_plate_map(plate).write_csv(inbox / f"{plate.name}.csv")
    write_description(folder)
    return size


def add_champion(platform: Platform, plate: SyntheticPlate) -> None:
    """Register and promote an untrained encoder for the crops of a plate."""
    classes = make_plate_map(plate).select(treatment_class()).to_series().unique().sort().to_list()
    torch.manual_seed(0)
    config = BundleConfig(
        "efficientnet3d-small", "activation", classes, list(plate.stains), list(CROP), list(VOXEL_SIZE)
    )
    version = platform.registry.register(EfficientNet3D(len(plate.stains), len(classes)).eval(), config)
    promote(platform.lake, platform.registry, version, by="benchmark", reason="its speed is measured")


def read_steps(instance: dg.DagsterInstance) -> tuple[list[Step], set[int]]:
    """The steps that have ended, and the processes of all runs and steps."""
    steps, processes = [], set()
    for record in instance.get_run_records():
        process, started = 0, dict[str, tuple[int, float]]()
        own = dict[str, int]()
        for entry in instance.all_logs(record.dagster_run.run_id, of_type=_WATCHED):
            event = entry.get_dagster_event()
            name, kind = event.step_key or "", event.event_type
            if kind in (_EVENT.ENGINE_EVENT, _EVENT.STEP_WORKER_STARTED):
                number = event.engine_event_data.metadata.get("pid")
                if number is not None:
                    processes.add(int(str(number.value)))
                    if name:
                        own[name] = int(str(number.value))
                    else:
                        process = int(str(number.value))
            elif kind == _EVENT.STEP_START:
                started[name] = own.get(name, process), entry.timestamp
            elif kind == _EVENT.STEP_SUCCESS or name not in STAGES:
                # The night ends with the report, and interrupts profiles and audits that are still running.
                steps.append(Step(STAGES.get(name, "other"), *started[name], entry.timestamp))
            else:
                raise RuntimeError(f"{name} failed: {event.message}")
    return steps, processes


def is_reported(platform: Platform, instance: dg.DagsterInstance) -> bool:
    """Whether the report of a publication with all scores is written."""
    lake = platform.lake
    if not any(platform.home.reports.rglob("*.html")) or partitions_to_process(lake):
        return False
    if partitions_to_score(lake, platform.champion()):
        return False
    steps, _ = read_steps(instance)
    scored = max(step.end for step in steps if step.stage == "scores")
    published = [step.end for step in steps if step.stage == "publish" and step.start > scored]
    return any(step.stage == "report" and step.start > min(published) for step in steps) if published else False


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Let this process and those that it starts write into a file: code servers print every event of every run."""
    kept = [os.dup(number) for number in (1, 2)]
    sys.stdout.flush()
    with path.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def run_night(home: Home, platform: Platform, instance: dg.DagsterInstance) -> HomeProcesses:
    """Let the daemon work until the report is written."""
    watch = HomeProcesses(home.root)
    watch.start()
    try:
        with output_to(home.dagster / "output.log"), code_servers(home, instance) as workspace:
            daemon = subprocess.Popen(daemon_command(workspace), start_new_session=True)
            try:
                while not is_reported(platform, instance):
                    assert daemon.poll() is None, f"the daemon stopped: see output.log in {home.dagster}"
                    time.sleep(5)
            finally:
                watch.stop()
                daemon.terminate()
                daemon.wait()
    finally:
        watch.terminate()  # Runs that the report did not need, for example audits.
    return watch


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time as disjoint spans in order."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def length(spans: list[tuple[float, float]]) -> float:
    """Seconds of disjoint spans."""
    return sum(end - start for start, end in spans)


class Cores:
    """How busy the cores were, from the samples of the processes."""

    def __init__(self, watch: HomeProcesses):
        self.times, self.processor, self.runnable = (np.array(column) for column in zip(*watch.samples, strict=True))
        self.count = os.cpu_count() or 1

    def busy(self, spans: list[tuple[float, float]]) -> float:
        """Share of the cores' time that our processes used."""
        used = sum(np.diff(np.interp(span, self.times, self.processor))[0] for span in spans)
        return float(used) / length(spans) / self.count

    def wanted(self, spans: list[tuple[float, float]]) -> float:
        """Share of the cores for which a thread of ours was running or waiting: busy, if no other program was there."""
        inside = np.any([(start <= self.times) & (self.times <= end) for start, end in spans], axis=0)
        return float(np.minimum(self.runnable[inside], self.count).mean() / self.count) if inside.any() else 0.0


def measure(root: Path, plate: SyntheticPlate) -> dict[str, float]:
    """Print the table of stages; the figures of the last line."""
    home = Home(root).create()
    home.settings_file.write_text(SETTINGS)
    platform = Platform(root=str(root))
    size = deliver(home.inbox, plate)
    add_champion(platform, plate)
    with open_instance(home) as instance:
        watch = run_night(home, platform, instance)
        steps, processes = read_steps(instance)
        runs = instance.get_runs_count()
    cores, cells = Cores(watch), len(platform.lake.read("scores", plate=plate.name))
    print(f"{plate.wells} wells x {plate.sites} sites, {cells} cells scored, {size / 1e6:.0f} MB of pixels\n")
    print("| stage | steps | s | processor s | cores busy | cores wanted | cells/s | cells/processor s | MB/s |")
    print("|" + " --- |" * 9)
    in_steps = 0.0
    for stage in dict.fromkeys([*STAGES.values(), "other"]):
        own = [step for step in steps if step.stage == stage]
        if not own:
            continue
        spans = union([(step.start, step.end) for step in own])
        used = sum(watch.processor_seconds(step.process, step.start, step.end) for step in own)
        in_steps += used
        print(
            f"| {stage} | {len(own)} | {length(spans):.1f} | {used:.1f} | {cores.busy(spans):.2f} | "
            f"{cores.wanted(spans):.2f} | {cells / length(spans):.1f} | {cells / used:.1f} | "
            f"{size / 1e6 / length(spans):.1f} |",
            flush=True,
        )
    night = [(float(cores.times[0]), float(cores.times[-1]))]
    seconds, total, of_runs = length(night), float(cores.processor[-1]), watch.totals(processes)
    working = union([(step.start, step.end) for step in steps])
    print(f"\nprocesses of runs outside of their steps: {of_runs - in_steps:.1f} processor s, of {runs} runs")
    print(f"daemon, code servers and the rest: {total - of_runs:.1f} processor s")
    print(f"no step at work: {seconds - length(working):.1f} of {seconds:.1f} s")
    return {
        "cells_a_second": cells / seconds,
        "cells_a_processor_second": cells / total,
        "seconds": seconds,
        "processor_seconds": total,
        "start_up_share": (of_runs - in_steps) / of_runs,
        "daemon_share": (total - of_runs) / total,
        "waiting_share": 1 - length(working) / seconds,
        "busy_share": cores.busy(night),
        "wanted_share": cores.wanted(night),
        "processes": watch.count,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 wells x 1 site in place of 96 x 2")
    parser.add_argument("--folder", type=Path, help="keep the home here; it must not exist")
    given = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    wells, sites = (8, 1) if given.quick else (96, 2)
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.folder or Path(scratch) / "home").absolute()
        root.mkdir(parents=True)
        found = measure(root, SyntheticPlate("night", wells=wells, sites=sites))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
