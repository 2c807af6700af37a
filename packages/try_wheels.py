"""Build both wheels, install each into a fresh environment, and use it there: ``make test-install``.

With --small the platform's wheel is built, and neither installed nor run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = ("-m", "pip", "--disable-pip-version-check", "-q")

SCORE = """
import sys, time
start = time.perf_counter()
import torch
torch_seconds = time.perf_counter() - start
before, start = set(sys.modules), time.perf_counter()
import gradcamo_assets.explain
from gradcamo_assets.explain import gradcamo
seconds = time.perf_counter() - start
assert {name.partition(".")[0] for name in set(sys.modules) - before} == {"gradcamo_assets"}
assert seconds < 2, seconds
assert gradcamo_assets.__file__.startswith(sys.prefix), gradcamo_assets.__file__
from torchvision.models import resnet18

torch.manual_seed(0)
masks = torch.zeros(2, 96, 96, dtype=torch.bool)
masks[:, 24:72, 24:72] = True
result = gradcamo(resnet18().eval(), torch.randn(2, 3, 96, 96), masks, layer="layer4")
assert ((0 < result.gradcamo) & (result.gradcamo < 1)).all(), result.gradcamo
print(f"    import torch {torch_seconds:.1f} s, gradcamo_assets.explain {seconds:.2f} s more; "
      f"gradcamo of resnet18: {result.gradcamo.round(3).tolist()}")
"""


@contextmanager
def timed(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def fresh(folder: Path) -> Path:
    """The Python of a new environment."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main(arguments: Sequence[str]) -> None:
    """Everything below one temporary folder, which is removed; the first failure ends it."""
    with tempfile.TemporaryDirectory(prefix="gradcamo-wheels-") as name:
        folder = Path(name)
        # Nothing of the clone is on the path, and the demo's data stay in the folder.
        values = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DAGSTER_HOME")}
        values["GRADCAMO_HOME"] = str(folder / "data")

        def run(*command: str | Path) -> None:
            subprocess.run(command, check=True, cwd=folder, env=values)

        with timed("building both wheels"):
            small, platform = (
                build(folder / wheel, source)
                for wheel, source in (("small", ROOT / "packages" / "gradcamo-explain"), ("platform", ROOT))
            )
        constraints = ("-c", ROOT / "constraints.txt")
        with timed(f"installing {small.name} with torchvision"):
            python = fresh(folder / "small-environment")
            run(python, *PIP, "install", *constraints, small, "torchvision")
        with timed("scoring a network of torchvision in 2D"):
            run(python, "-c", SCORE)
        if "--small" in arguments:
            return
        with timed(f"installing {platform.name}"):
            python = fresh(folder / "platform-environment")
            run(python, *PIP, "install", *constraints, platform)
        with timed("gradcamo demo --quick, away from the clone"):
            run(python.with_name("gradcamo"), "demo", "--quick")
        with timed(f"{small.name} beside the platform"):
            run(python, *PIP, "install", *constraints, small)
            run(python, *PIP, "check")
            run(python, "-c", SCORE)
            run(python.with_name("gradcamo"), "qc", "--by", "dose")


def build(folder: Path, source: Path) -> Path:
    """The wheel of a project, without what it depends on."""
    subprocess.run([sys.executable, *PIP, "wheel", "--no-deps", "-w", folder, source], check=True)
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    main(sys.argv[1:])
