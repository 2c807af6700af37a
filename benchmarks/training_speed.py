"""How much faster is a training step than at an older commit? ``python -m benchmarks.training_speed --baseline DIR``

``DIR`` is a checkout of that commit (``git worktree add --detach DIR COMMIT``). Each tree trains the built-in encoder
in a process of its own, on the same crops: surroundings swapped in half of them, default augmentation, forward and
backward pass, AdamW. The trees take turns, step by step; medians, by the clock and by the processor's time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES, CHANNELS = 8, 5
TREE = Path(__file__).resolve().parent.parent


def first_of(*names: tuple[str, str]) -> Any:
    """The first function whose file the tree has; older trees have other names."""
    import gradcamo_assets

    package = Path(gradcamo_assets.__file__).parent
    for module, name in names:
        if (package / f"{module.replace('.', '/')}.py").exists():
            return getattr(importlib.import_module(f"gradcamo_assets.{module}"), name)
    raise SystemExit(f"{package} has none of {names}; --baseline must be a checkout of this repository")


def make_step(crops: int, shape: tuple[int, int, int]) -> Callable[[], float]:
    """One step on noise with a cell in the middle of each crop and a neighbour at its edge; it returns the loss."""
    import torch
    from torch import nn

    network = first_of(("networks.efficientnet3d", "EfficientNet3D"))
    swap = first_of(("training.swap_surroundings", "swap_surroundings"), ("learning.swap", "swap"))
    augment = first_of(("training.augment", "augment"), ("learning.augment", "augment"))
    strengths = {"flip": 0.5, "rotate": 0.0, "shift_z": 0.0, "gain": 0.1, "offset": 0.05, "noise": 0.0}
    torch.manual_seed(0)
    images, classes = torch.randn(crops, CHANNELS, *shape), torch.arange(crops) % CLASSES
    z, y, x = (torch.linspace(-1, 1, n) for n in shape)
    labels = ((z[:, None, None] / 0.8) ** 2 + (y[:, None] / 0.45) ** 2 + (x / 0.45) ** 2 < 1).to(torch.uint8)
    labels[:, : shape[1] // 5] = 2
    labels = labels.repeat(crops, 1, 1, 1)
    model = network(CHANNELS, CLASSES)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> float:
        swapped, _ = swap(images, labels, share=0.5)
        loss = nn.functional.cross_entropy(model(augment(swapped, **strengths)), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def work(crops: int, shape: tuple[int, int, int], threads: int) -> None:
    """For each line of input, train one step and print its seconds by the clock and by the processor."""
    import torch

    torch.set_num_threads(threads)
    step = make_step(crops, shape)
    # An editable installation of this repository could lend modules that an older tree lacks.
    files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "gradcamo_assets"]
    foreign = [file for file in files if not Path(str(file)).resolve().is_relative_to(Path.cwd())]
    print(*foreign, "ready", flush=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        step()
        print(time.perf_counter() - start, time.process_time() - start_cpu, flush=True)


class Worker:
    """A process that trains with one tree."""

    def __init__(self, tree: Path, arguments: list[str], threads: int):
        # -P, because the folder of this script would come before the tree.
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--worker", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        if (found := self.read()) != "ready":
            raise SystemExit(f"the code of {tree} was asked for, but this answers: {found or 'nothing'}")

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def step(self) -> tuple[float, float]:
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        wall, cpu = self.read().split()
        return float(wall), float(cpu)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(baseline: Path, crops: int, shape: tuple[int, int, int], steps: int, threads: int) -> tuple[float, float]:
    """Train with both trees in turn; print seconds a step, return the gain by the clock and by the processor."""
    arguments = ["--crops", str(crops), "--shape", *map(str, shape), "--threads", str(threads)]
    workers = {"baseline": Worker(baseline, arguments, threads), "now": Worker(TREE, arguments, threads)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for number in range(steps + 2):
        for name in random.sample([*workers], len(workers)):
            taken = workers[name].step()
            if number >= 2:
                seconds[name].append(taken)
    medians = {}
    for name, worker in workers.items():
        worker.close()
        medians[name] = [statistics.median(column) for column in zip(*seconds[name], strict=True)]
        wall, cpu = medians[name]
        title = f"{crops} x {CHANNELS} x {' x '.join(map(str, shape))}"
        print(f"{title:26}{name:10}{1000 * wall:10.0f}{1000 * cpu:14.0f}", flush=True)
    return medians["baseline"][0] / medians["now"][0], medians["baseline"][1] / medians["now"][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, help="checkout of the older commit")
    parser.add_argument("--quick", action="store_true", help="small crops, few steps")
    parser.add_argument("--steps", type=int, default=15, help="of each tree and shape, after two that do not count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="by default those of demo and paper"
    )
    given = parser.parse_args()
    if given.worker:
        work(given.crops, tuple(given.shape), given.threads)
        return
    if given.baseline is None:
        parser.error("--baseline is missing")
    shapes = [(given.crops, tuple(given.shape))] if given.shape else [(16, (12, 64, 64)), (8, (21, 128, 128))]
    shapes = [(4, (6, 32, 32))] if given.quick else shapes
    print(f"{given.threads} threads; milliseconds a step")
    print(f"{'crops':26}{'tree':10}{'clock':>10}{'processor':>14}")
    steps = 3 if given.quick else given.steps
    gains = [compare(given.baseline.resolve(), crops, shape, steps, given.threads) for crops, shape in shapes]
    wall, cpu = (min(column) for column in zip(*gains, strict=True))
    print(json.dumps({"training_gain": round(wall, 3), "training_gain_processor": round(cpu, 3)}))


if __name__ == "__main__":
    main()
