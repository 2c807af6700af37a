"""A copied or moved home uses its own files only, and nothing in it is out of date."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.defs.automation.inbox_automation import inbox_sensor
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets_tests.defs.conftest import Bench
from gradcamo_assets_tests.defs.sensor_ticks import another_version, requested, tick


@pytest.fixture
def original(scored_bench: Bench, tmp_path: Path) -> Bench:
    return scored_bench.copy(tmp_path / "original home")


def copy_home(original: Bench, folder: Path) -> Bench:
    """A copy like that of ``cp -r``: all files have the time of the copy, in whole seconds."""
    shutil.copytree(original.home.root, folder, copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        os.utime(path, (2_000_000_000, 2_000_000_000))
    (folder / "qc.duckdb").chmod(0o444)
    bench = Bench(Platform(root=str(folder)), dg.DagsterInstance.local_temp(str(folder / "dagster")))
    for dimension in ("plates", "sites"):
        bench.instance.add_dynamic_partitions(dimension, original.instance.get_dynamic_partitions(dimension))
    return bench


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def ask(home: Path, sql: str) -> str:
    result = CliRunner().invoke(main, ["sql", sql, "--format", "csv"], env={"GRADCAMO_HOME": str(home)})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_copy_is_up_to_date_and_does_not_change_the_original(
    scored_bench: Bench, original: Bench, tmp_path: Path
) -> None:
    homes = [scored_bench.home.mlflow, original.home.root]
    before = [files(home) for home in homes]
    copy = copy_home(original, tmp_path / "copy")
    assert requested(tick(copy, inbox_sensor)) == [] and requested(tick(copy, champion_model_sensor)) == []
    another_version(copy)
    assert copy.run("process_fields", dg.MultiPartitionKey({"plate": "tiny", "site": "1"})).success
    assert copy.run("rescore", dg.MultiPartitionKey({"plate": "tiny", "site": "1"})).success
    assert copy.run("refresh_qc").success
    assert "\n2\n" in ask(copy.home.root, "SELECT count(DISTINCT model_version) FROM scores")
    assert [files(home) for home in homes] == before


@pytest.mark.slow
def test_a_moved_home_works_in_its_new_place(original: Bench, tmp_path: Path) -> None:
    count = "SELECT count(*) FROM embeddings"
    before = ask(original.home.root, count)
    copy = copy_home(original, tmp_path / "copy")
    shutil.rmtree(original.home.root)
    assert ask(copy.home.root, count) == before
    assert copy.run("report_plates", "tiny").success
    assert "changed" not in CliRunner().invoke(main, ["inbox"], env={"GRADCAMO_HOME": str(copy.home.root)}).output


def test_only_the_database_contains_the_path_of_the_home(original: Bench) -> None:
    place = os.fsencode(original.home.root)
    found = {name for name, content in files(original.home.root).items() if place in content}
    assert found <= {"qc.duckdb"}
    with sqlite3.connect(original.home.mlflow / "mlflow.db") as store:
        text = "\n".join(store.iterdump())
    assert str(original.home.root) not in text and "/scored/" not in text
