"""Check that MLflow runs identify versions, concurrent fetches, and a registry that is copied or moved."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import polars as pl
import pytest

import gradcamo_assets
from gradcamo_assets.errors import BundleError, GradcamoError
from gradcamo_assets.networks.bundle import BundleConfig, ShortcutMitigation, read_verified_config
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.thresholds import THRESHOLDS
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion
from gradcamo_assets.training.promotion import champion_moves, record_champion, record_versions

ODD = "a b [c] d? 50%20 #e+f&g"
"""A folder name with the special characters of URIs and glob patterns."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an empty registry, created once because its creation is slow."""
    registry = ModelRegistry(tmp_path_factory.mktemp("registry") / "mlflow")
    assert registry.versions() == []
    return registry.folder


@pytest.fixture
def registry(empty: Path, tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(shutil.copytree(empty, tmp_path / "mlflow"))


def _register(
    registry: ModelRegistry, value: float, size: int = 1, config: dict | None = None, **options: object
) -> ModelVersion:
    """Register a network whose (size, size) weights all equal ``value``, which identifies the version."""
    from torch import nn

    network = nn.Linear(size, size)
    nn.init.constant_(network.weight, value)
    bundle = BundleConfig("efficientnet3d-small", "activation", ["a", "b"], ["DNA"], [1, 8, 8], [1.0, 1.0, 1.0])
    return registry.register(network, replace(bundle, **(config or {})), **options)  # type: ignore[arg-type]


def _weight(folder: Path) -> float:
    from safetensors.numpy import load_file

    return float(load_file(str(folder / "model.safetensors"))["weight"][0, 0])


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """Yield every text of a SQLite file with its table and column."""
    with closing(sqlite3.connect(file.as_uri() + "?mode=ro", uri=True)) as store:
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = store.execute(f'SELECT * FROM "{table}"')
            for row in rows.fetchall():
                for (column, *_), value in zip(rows.description, row, strict=True):
                    if isinstance(value, str):
                        yield f"{table}.{column}", value


def test_a_deleted_and_reregistered_model_gives_the_new_weights(registry: ModelRegistry) -> None:
    old = _register(registry, 1)
    assert _weight(registry.fetch(old)) == 1
    registry.client.delete_registered_model(registry.name)
    assert registry.versions() == []
    new = _register(registry, 2)
    assert new.version == old.version == 1
    assert _weight(registry.fetch(new)) == 2
    assert _weight(registry.fetch(old)) == 1, "a fetched version does not change"


def test_the_page_of_a_version_shows_its_evidence(registry: ModelRegistry) -> None:
    measured = {
        "unseen_balanced_accuracy": 0.51234, "test_balanced_accuracy": 0.9, "test_accuracy_swapped": 0.4,
        "test_median_adjusted": -0.02, "test_survives_swap": 0.22, "test_one_treatment_per_well": 1.0,
        "test_looks_at_target": math.nan,
    }  # fmt: skip
    split = {"train": ["P/A01"], "test": ["P/A02", "P/A03"]}
    trained = {"split": split, "cure": ShortcutMitigation(0.5, "gradcamo", 3.0), "objective": "treatment"}
    _register(registry, 1, metrics=measured, config=trained)
    _register(registry, 2, config={"encoder": "lab|net:build"})
    first, second = (registry.client.get_model_version(registry.name, str(number)) for number in (1, 2))
    assert first.tags == {
        "unseen_balanced_accuracy": "0.512", "test_balanced_accuracy": "0.900", "test_accuracy_swapped": "0.400",
        "test_median_adjusted": "-0.020", "test_survives_swap": "0.220", "encoder": "efficientnet3d-small",
        "test_wells": "2", "objective": "treatment", "trained_for_score": "true",
    }  # fmt: skip
    for row in (
        "| Accuracy on unseen plates | 0.512 | mean over classes",
        "| Cells that survive the swap | 0.220 | share of these cells",
        f"a plate needs {THRESHOLDS.swap_one_treatment:g} |",
        "| Maps that look at the target | not measured |",
        "| Trained for the score | yes |",
        "the score is no evidence",
    ):
        assert row in first.description
    assert second.tags == {"encoder": "lab|net:build", "test_wells": "0"}
    for row in ("| Accuracy on test wells | not measured |", "lab\\|net:build", "| Trained for the score | unknown |"):
        assert row in second.description
    assert "not tested on unseen plates" in second.description and "unseen plates |" not in second.description
    _register(registry, 3, config={"split": {"train": ["P/A01"], "test": ["Q/A02", "R/A03"]}})
    on_plates = registry.client.get_model_version(registry.name, "3").description
    assert "on plates that were not trained on: Q, R." in on_plates and "not tested on unseen" not in on_plates
    columns = {line.replace("\\|", "").count("|") for line in second.description.splitlines() if line.startswith("|")}
    assert columns == {3, 4}, "both tables are intact"


def test_a_run_can_have_several_versions(registry: ModelRegistry) -> None:
    with registry.start_run() as run_id:
        sources = [_register(registry, value, run_id=run_id).source for value in (1, 2)]
    registry.client.create_model_version(registry.name, source=sources[0], run_id=run_id)
    assert [version.run_id for version in registry.versions()] == [run_id] * 3
    folders = [registry.fetch(version) for version in registry.versions()]
    assert [_weight(folder) for folder in folders] == [1, 2, 1]
    assert folders[0] == folders[2]
    assert {folder.relative_to(registry.folder).parts[:2] for folder in folders} == {("bundles", run_id)}


def test_the_lake_holds_the_versions_now_in_the_registry(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path / "lake")
    other = ModelRegistry(registry.folder, "another")
    kept = _register(other, 0)
    versions = [_register(registry, value) for value in (1, 2, 3)]
    assert (record_versions(lake, other), record_versions(lake, registry)) == (1, 3)
    registry.client.delete_model_version(registry.name, "2")
    assert record_versions(lake, registry) == 2
    columns = ("model_name", "model_version", "model_run", "run_id")
    rows = [(version.name, version.version, version.run_id, version.run_id) for version in (versions[0], versions[2])]
    assert lake.read("models").select(columns).sort(columns).rows() == sorted(
        [*rows, (kept.name, 1, kept.run_id, kept.run_id)]
    )

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = lake.read("models")
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        record_versions(lake, ModelRegistry(registry.folder, uri="http://127.0.0.1:9"))
    assert lake.read("models").equals(before)

    registry.client.delete_registered_model(registry.name)
    assert record_versions(lake, registry) == 0
    assert lake.read("models")["model_name"].to_list() == ["another"]


def test_a_reregistered_champion_counts_as_a_move(registry: ModelRegistry, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    runs = []
    for value in (1, 2):
        version = _register(registry, value)
        registry.promote(1)
        assert record_champion(lake, registry, by="sensor")
        assert not record_champion(lake, registry, by="sensor")
        runs.append(version.run_id)
        registry.client.delete_registered_model(registry.name)
    assert record_champion(lake, registry, by="sensor")
    moves = champion_moves(lake, registry.name).select("from_run", "from_version", "to_run", "to_version")
    assert moves.rows() == [(None, None, runs[0], 1), (runs[0], 1, runs[1], 1), (runs[1], 1, None, None)]


def test_moves_stay_in_order_when_the_clock_is_set_back(registry: ModelRegistry, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    first, second = (_register(registry, value) for value in (1, 2))
    tomorrow = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    row = {"model_name": registry.name, "alias": "champion", "to_version": 1, "to_run": first.run_id}
    row |= {"promoted_at": tomorrow}
    lake.append("promotions", pl.DataFrame([row], schema=lake_table("promotions").schema))
    registry.promote(1)
    assert not record_champion(lake, registry, by="sensor")
    registry.promote(2)
    assert record_champion(lake, registry, by="sensor")
    assert not record_champion(lake, registry, by="sensor")
    assert champion_moves(lake, registry.name)["to_run"].to_list() == [first.run_id, second.run_id]


def test_a_version_without_a_run_is_listed_but_cannot_be_fetched(registry: ModelRegistry, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    source = _register(registry, 1).source
    registry.client.create_model_version(registry.name, source=source)
    second = registry.versions()[1]
    with pytest.raises(BundleError, match=r"version 2 cannot be fetched .*MLflow run"):
        registry.fetch(second)
    assert record_versions(lake, registry) == 2
    assert lake.read("models").sort("model_version")["architecture"].to_list() == ["efficientnet3d-small", None]


def test_weights_that_do_not_match_the_configuration_are_refused(registry: ModelRegistry) -> None:
    version = _register(registry, 1)
    weights = next((registry.folder / "artifacts").rglob("model.safetensors"))
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\1")
    for _ in range(2):
        with pytest.raises(BundleError, match="do not match the digest in the configuration"):
            registry.fetch(version)
    assert not list((registry.folder / "bundles").rglob("*.json"))
    weights.write_bytes(good)
    assert _weight(registry.fetch(version)) == 1


def test_a_bundle_fetched_by_another_process_meanwhile_is_kept(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be reading it."""
    import mlflow.artifacts

    seen: list[int] = []
    version = _register(registry, 1)

    def slow(*arguments: object, **named: object) -> str:
        monkeypatch.undo()
        seen.append(registry.fetch(version).stat().st_ino)
        return mlflow.artifacts.download_artifacts(*arguments, **named)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", slow)
    assert [registry.fetch(version).stat().st_ino] == seen


class _ConcurrentProcesses:
    """Twelve processes that run the same function at the same moment, once per round."""

    def __init__(self, work: Callable[..., object], *arguments: object):
        context = multiprocessing.get_context("forkserver")
        modules = ["mlflow.artifacts", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry"]
        context.set_forkserver_preload([__name__, *modules])
        self.gate, self.errors = context.Barrier(13, timeout=240), context.Queue()
        self.processes = [
            context.Process(target=_run_rounds, args=(self.gate, self.errors, work, arguments), daemon=True)
            for _ in range(12)
        ]
        for process in self.processes:
            process.start()

    def round(self) -> list[str]:
        """Run one round and return its errors."""
        self.gate.wait()
        return [error for error in [self.errors.get(timeout=240) for _ in self.processes] if error]

    def close(self) -> None:
        self.gate.abort()
        for process in self.processes:
            process.join(60)


def _run_rounds(gate: Barrier, errors: multiprocessing.Queue, work: Callable[..., object], arguments: tuple) -> None:
    with suppress(BrokenBarrierError):
        while True:
            gate.wait()
            try:
                work(*arguments)
                errors.put("")
            except Exception as error:
                errors.put(repr(error))


def _fetch_and_read(folder: Path, version: ModelVersion) -> None:
    """Make all downloads end at the same moment, so that the processes collide."""
    import mlflow.artifacts

    def slow(*arguments: object, **named: object) -> str:
        folder = download(*arguments, **named)
        time.sleep(0.3 - time.time() % 0.3)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        download = mlflow.artifacts.download_artifacts
        patch.setattr(mlflow.artifacts, "download_artifacts", slow)
        bundle = ModelRegistry(folder).fetch(version)
    read_verified_config(bundle)


def _open_registry(folder: Path) -> None:
    assert ModelRegistry(folder).versions() == []


@pytest.mark.slow
def test_twelve_processes_fetch_one_bundle(registry: ModelRegistry) -> None:
    version, bundles = _register(registry, 1, size=300), registry.folder / "bundles"
    with closing(_ConcurrentProcesses(_fetch_and_read, registry.folder, version)) as crowd:
        for _ in range(5):
            assert crowd.round() == []
            assert [path.name for path in bundles.rglob("config.json")] == ["config.json"]
            assert not list(bundles.rglob("*.tmp"))
            shutil.rmtree(bundles)


@pytest.mark.slow
def test_twelve_processes_create_one_registry(tmp_path: Path) -> None:
    with closing(_ConcurrentProcesses(_open_registry, tmp_path / "mlflow")) as crowd:
        assert crowd.round() == []


def test_a_copied_registry_is_independent_of_the_original(registry: ModelRegistry, tmp_path: Path) -> None:
    original, copy, moved = registry.folder, tmp_path / "copy", tmp_path / "moved"
    first = _register(registry, 1, files={"notes.txt": b"first"})
    shutil.copytree(original, copy)
    before = _content(original)

    other = ModelRegistry(copy)
    second = _register(other, 2, files={"notes.txt": b"second"})
    assert _content(original) == before
    original.rename(moved)
    assert [_weight(other.fetch(version)) for version in other.versions()] == [1, 2]
    assert other.read_artifact(first, "notes.txt") == b"first"
    assert other.read_artifact(second, "notes.txt") == b"second"

    again = ModelRegistry(moved)
    assert [version.run_id for version in again.versions()] == [first.run_id]
    assert _weight(again.fetch(first)) == 1 and again.read_artifact(first, "notes.txt") == b"first"
    _register(again, 3)
    assert not original.exists()
    for home in (copy, moved):
        texts = list(_texts(home / "mlflow.db"))
        assert any(second.name in text for _, text in texts)
        absolute = (str(tmp_path), str(Path.cwd()), "file:")
        assert [(where, text) for where, text in texts if any(path in text for path in absolute)] == []


def test_a_folder_name_can_have_special_characters(tmp_path: Path) -> None:
    lake, registry = Lake(tmp_path / "lake"), ModelRegistry(tmp_path / ODD / "mlflow")
    version = _register(registry, 1, files={"notes.txt": b"here"})
    assert _weight(registry.fetch(version)) == 1
    assert registry.read_artifact(version, "notes.txt") == b"here"
    assert record_versions(lake, registry) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [ODD, "lake"], "no folder with an encoded name"
    assert [path.name for path in (tmp_path / ODD).iterdir()] == ["mlflow"]
    assert {path.name for path in registry.folder.iterdir() if path.name[0] != "."} == {
        "artifacts", "bundles", "mlflow.db"
    }  # fmt: skip
    assert ModelRegistry(tmp_path / ODD / "mlflow").versions() == [version]


def test_addresses_outside_the_folder_are_refused(registry: ModelRegistry) -> None:
    from gradcamo_assets.training.mlflow_store import artifact_repository

    good = _register(registry, 1)
    outside = ["../out", "a/../../out", "a/%2e%2e/%2e%2e/out", "..%2fout", "a\\..\\out", ".hidden", "/host/a", "a?b"]
    for number, address in enumerate(outside, start=2):
        with pytest.raises(GradcamoError):
            artifact_repository(f"mlflow-artifacts:/{address}", registry.uri)
        registry.client.create_model_version(registry.name, f"mlflow-artifacts:/{address}", good.run_id)
        with pytest.raises(BundleError, match=f"version {number} cannot be fetched"):
            registry.fetch(registry.versions()[-1])


@pytest.mark.slow
def test_mlflow_finds_the_artifacts_when_the_package_is_installed(registry: ModelRegistry, tmp_path: Path) -> None:
    """Install the entry points only, and run MLflow in a process that does not import the package."""
    version = _register(registry, 1)
    root = Path(gradcamo_assets.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    entry_points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    installed = tmp_path / "site" / "declared-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: declared\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(entry_points)
    program = (
        "import mlflow, sys; from pathlib import Path\n"
        "folder = mlflow.artifacts.download_artifacts(sys.argv[1])\n"
        "print(sorted(path.name for path in Path(folder).iterdir()))"
    )
    path = os.pathsep.join([str(installed.parent), str(root)])
    process = subprocess.run(
        [sys.executable, "-c", program, f"models:/{registry.name}/{version.version}"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": registry.uri}, capture_output=True, text=True,
    )  # fmt: skip
    assert "'config.json', 'model.safetensors'" in process.stdout, process.stderr


@pytest.mark.slow
def test_an_mlflow_server_serves_the_local_store(empty: Path, tmp_path: Path) -> None:
    from gradcamo_assets_tests.defs.mlflow_server import MlflowServer

    local = ModelRegistry(shutil.copytree(empty, tmp_path / ODD))
    first = _register(local, 1, files={"figures/one.png": b"a picture"})
    server = MlflowServer(local.folder)
    try:
        server.start()

        def get(path: str) -> bytes:
            with urllib.request.urlopen(f"{server.uri}/{path}", timeout=60) as response:
                return response.read()

        listed = json.loads(get(f"ajax-api/2.0/mlflow/artifacts/list?run_id={first.run_id}"))
        assert {file["path"] for file in listed["files"]} == {"figures", "split.json"}
        assert get(f"get-artifact?run_uuid={first.run_id}&path=figures/one.png") == b"a picture"
        model = first.source.split("/models/")[1].split("/")[0]
        listed = json.loads(get(f"ajax-api/2.0/mlflow/logged-models/{model}/artifacts/directories"))
        assert {file["path"] for file in listed["files"]} == {"config.json", "model.safetensors"}

        remote = ModelRegistry(tmp_path / "elsewhere", uri=server.uri)
        assert _weight(remote.fetch(first)) == 1
        second = _register(remote, 2, files={"notes.txt": b"by the server"})
        assert [version.version for version in remote.versions()] == [1, 2]
        assert _weight(local.fetch(second)) == 2
        assert local.read_artifact(second, "notes.txt") == remote.read_artifact(second, "notes.txt") == b"by the server"
    finally:
        server.stop()
    assert [text for _, text in _texts(local.folder / "mlflow.db") if str(tmp_path) in text] == []
