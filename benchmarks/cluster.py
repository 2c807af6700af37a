"""How much faster do two nodes work than one? ``python -m benchmarks.cluster [--quick]``

A synthetic plate with a champion is ingested, segmented and scored twice by Dagster's daemon: on a Ray cluster of one
node, and of two. A node is pinned to a core of this machine. Dagster's state is in Postgres (Debian's package
``postgresql``; ``make test-cluster`` installs the rest). ``speedup``: the time from the first step of masks, cells,
crops or scores to the last, with the start of processes in between, one node over two. ``step_ratio``: seconds of all
steps, two nodes over one. The machine needs two cores, and more for Dagster, Ray and Postgres. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.night import SETTINGS, Step, add_champion, length, output_to, read_steps
from gradcamo_assets.defs.automation.pending import partitions_to_process, partitions_to_score
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.serve import code_servers, daemon_command, open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets_tests.cluster.cluster import cluster_environment, configure_instance
from gradcamo_assets_tests.cluster.services import Postgres, RayCluster

STAGES = ("masks", "cells", "crops", "scores")


def run_plate(folder: Path, plate: SyntheticPlate, nodes: int) -> list[Step]:
    """Process a plate in a new home on one or two nodes. Returns the steps of masks, cells, crops and scores."""
    home = Home(folder / "home").create()
    home.settings_file.write_text(SETTINGS)
    platform = Platform(root=str(home.root))
    write_synthetic_plate(home.inbox, plate)
    add_champion(platform, plate)
    configure_instance(home, runs=nodes)
    with ExitStack() as running:
        postgres = Postgres()
        running.callback(postgres.remove)
        environment = {**cluster_environment(home, postgres), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        ray = RayCluster(folder, environment, pinned=True)
        running.callback(ray.remove)
        os.environ |= {**environment, "GRADCAMO_RAY_ADDRESS": ray.address}
        ray.start_head()
        if nodes == 2:
            ray.start_node()
        instance = running.enter_context(open_instance(home))
        running.enter_context(output_to(home.dagster / "output.log"))
        workspace = running.enter_context(code_servers(home, instance))
        daemon = subprocess.Popen(daemon_command(workspace), start_new_session=True)
        running.callback(daemon.wait)
        running.callback(daemon.terminate)
        while not is_scored(platform):
            assert daemon.poll() is None, f"the daemon stopped: see output.log in {home.dagster}"
            time.sleep(2)
        time.sleep(5)  # The last step writes its event.
        return [step for step in read_steps(instance)[0] if step.stage in STAGES]


def is_scored(platform: Platform) -> bool:
    """Whether the champion has scored all fields."""
    lake = platform.lake
    has_crops = lake.read("crop_versions").height > 0
    return has_crops and not partitions_to_process(lake) and not partitions_to_score(lake, platform.champion())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 wells x 2 sites instead of 6 x 8")
    arguments = parser.parse_args()
    wells, sites = (2, 2) if arguments.quick else (6, 8)
    os.environ |= {"TQDM_DISABLE": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    plate = SyntheticPlate("plate", wells=wells, sites=sites, doses=1)
    in_steps: dict[int, float] = {}
    total: dict[int, float] = {}
    print("| nodes | steps | s of all steps | s from first to last step |")
    print("|" + " --- |" * 4)
    for nodes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            steps = run_plate(Path(folder), plate, nodes)
        spans = [(step.start, step.end) for step in steps]
        in_steps[nodes] = length(spans)
        total[nodes] = max(end for _, end in spans) - min(start for start, _ in spans)
        print(f"| {nodes} | {len(steps)} | {in_steps[nodes]:.1f} | {total[nodes]:.1f} |", flush=True)
    ratios = {"speedup": total[1] / total[2], "step_ratio": in_steps[2] / in_steps[1]}
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
