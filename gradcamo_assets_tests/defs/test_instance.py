"""The Dagster settings of an installation, and the files of the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import dagster as dg
import pytest

from gradcamo_assets.defs.serve import environment, open_instance
from gradcamo_assets.home import Home

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("DAGSTER_HOME", "GRADCAMO_HOME", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
        monkeypatch.setenv(name, "")  # An instance sets them; monkeypatch restores them.
    return Home(tmp_path / "home")


def test_instance_settings_are_written_once_and_user_changes_remain(home: Home) -> None:
    environment(home)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        assert not instance.telemetry_enabled and instance.run_monitoring_enabled
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None and queue.max_concurrent_runs == 2
        assert queue.tag_concurrency_limits == [{"key": "dagster/from_automation_condition", "limit": 1}]
    changed = "concurrency:\n  runs:\n    max_concurrent_runs: 7\n"
    (home.dagster / "dagster.yaml").write_text(changed)
    with open_instance(home) as instance:
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 7  # type: ignore[union-attr]
    assert (home.dagster / "dagster.yaml").read_text() == changed


def test_pools_have_slots_unless_the_user_has_set_a_limit(home: Home) -> None:
    def slots() -> dict[str, int | None]:
        with open_instance(home) as instance:
            instance.event_log_storage.initialize_concurrency_limit_to_default("scoring")
            return {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}

    environment(home)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:  # As in homes that older versions made.
        instance.event_log_storage.initialize_concurrency_limit_to_default("segmentation")
    assert slots() == {"segmentation": os.cpu_count(), "scoring": 1, "publication": 1, "training": 1}
    with open_instance(home) as instance:
        instance.event_log_storage.set_concurrency_slots("segmentation", 5)
        instance.event_log_storage.set_concurrency_slots("training", 2)
    assert slots() == {"segmentation": 5, "scoring": 1, "publication": 1, "training": 2}


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_repository_and_package_have_the_same_settings(home: Home, name: str) -> None:
    environment(home)
    assert (home.dagster / name).read_text() == (REPOSITORY / name).read_text()


@pytest.mark.slow
def test_the_wheel_has_all_files(home: Home, tmp_path: Path) -> None:
    source, wheels, there = tmp_path / "source", tmp_path / "wheels", tmp_path / "there"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "gradcamo_assets", source / "gradcamo_assets", ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "-w", wheels, source], check=True, timeout=120)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(there)
    needed = {path.relative_to(source) for path in (source / "gradcamo_assets").rglob("*") if path.is_file()}
    needed = {path for path in needed if path.suffix != ".md"}
    assert {path.suffix for path in needed} >= {".py", ".html", ".js", ".safetensors", ".json"}
    assert not {str(path) for path in needed if not (there / path).exists()}
    code = f"""
import gradcamo_assets
assert gradcamo_assets.__file__.startswith({str(there)!r})
from gradcamo_assets.home import Home
from gradcamo_assets.defs.serve import environment
environment(Home.from_environment())
"""
    values = os.environ | {"PYTHONPATH": str(there), "GRADCAMO_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster)}
    validate = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(home.dagster / "workspace.yaml")]
    for command, place in (([sys.executable, "-c", code], tmp_path), (validate, home.dagster)):
        ran = subprocess.run(command, env=values, cwd=place, capture_output=True, text=True, timeout=180)
        assert ran.returncode == 0, ran.stderr
