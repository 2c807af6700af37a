"""The files of the distribution ``gradcamo-explain`` by themselves: they import nothing that it does not depend on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SMALL = Path(__file__).parents[2] / "packages" / "gradcamo-explain"
CODE = """
import json, sys, time, torch, numpy
before, start = set(sys.modules), time.process_time()
import gradcamo_assets.explain, gradcamo_assets.explain.faithfulness
seconds = time.process_time() - start
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps([gradcamo_assets.__file__, seconds, sorted(packages)]))
"""


@pytest.mark.slow
def test_its_files_are_complete_light_and_import_nothing_else(tmp_path: Path) -> None:
    with (SMALL / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    for source, there in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        source, there = SMALL / source, tmp_path / there
        there.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, there)
    ran = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    file, seconds, packages = json.loads(ran.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert packages == ["gradcamo_assets"]
    assert seconds < 2


def test_it_is_built_from_the_code_of_this_repository_and_bears_its_version() -> None:
    with (SMALL / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert project["tool"]["hatch"]["version"]["path"] == "../../gradcamo_assets/__init__.py"
    assert [path for path in SMALL.rglob("*.py") if "build" not in path.parts] == []
    names = {requirement.partition(">")[0] for requirement in project["project"]["dependencies"]}
    assert names == {"numpy", "torch"}
