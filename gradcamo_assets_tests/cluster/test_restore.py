"""A back-up of a home with Postgres and an MLflow server, restored elsewhere after all of these were lost."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.defs.automation.inbox_automation import inbox_sensor
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor, publication_sensor
from gradcamo_assets.defs.demo import run_demo
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets.training.mlflow_store import ARTIFACTS
from gradcamo_assets_tests.cluster.cluster import DEPLOY, cluster_environment
from gradcamo_assets_tests.cluster.services import Postgres
from gradcamo_assets_tests.defs.conftest import Bench
from gradcamo_assets_tests.defs.mlflow_server import MlflowServer
from gradcamo_assets_tests.defs.sensor_ticks import requested, tick
from gradcamo_assets_tests.two_plates import SETTINGS

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]
PLATE = SyntheticPlate(name="one", wells=6, sites=2, shape=(6, 96, 96), cells=4, doses=1)


class Place:
    """Postgres, an MLflow server and a home below one folder; runs are processes of this machine."""

    def __init__(self, folder: Path, running: ExitStack, monkeypatch: pytest.MonkeyPatch):
        self.home, self.folder = Home(folder / "home"), folder
        self.postgres = Postgres()
        running.callback(self.postgres.remove)
        self.mlflow = MlflowServer(folder, self.postgres.address("mlflow"))
        running.callback(self.mlflow.stop)
        for name, value in cluster_environment(self.home, self.postgres).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", self.mlflow.uri)

    def qc(self) -> str:
        """The QC table that the command prints."""
        result = CliRunner().invoke(main, ["qc", "--format", "csv"], env={"GRADCAMO_HOME": str(self.home.root)})
        assert result.exit_code == 0, result.output
        return result.stdout


def test_a_backup_is_restored_in_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = tmp_path / "backup"
    backup.mkdir()
    with ExitStack() as running:
        first = Place(tmp_path / "first", running, monkeypatch)
        first.home.create()
        first.mlflow.start()
        settings = yaml.safe_load((DEPLOY / "dagster-cluster.yaml").read_text())
        del settings["run_launcher"]
        (first.home.dagster / "dagster.yaml").write_text(yaml.safe_dump(settings))
        first.home.settings_file.write_text(SETTINGS)
        run_demo(first.home, PLATE, processes=1)
        answer = first.qc()
        with open_instance(first.home) as instance:
            runs = {run.run_id: run.status for run in instance.get_runs()}
        for database in ("dagster", "mlflow"):
            shutil.copy(first.postgres.dump(database), backup)
        shutil.copytree(first.folder / ARTIFACTS, backup / ARTIFACTS)
        left_out = shutil.ignore_patterns("qc.duckdb", "reports", "exports")
        shutil.copytree(first.home.root, backup / "home", ignore=left_out, copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "first")

    with ExitStack() as running:
        second = Place(tmp_path / "second", running, monkeypatch)
        shutil.copytree(backup / "home", second.home.root)
        shutil.copytree(backup / ARTIFACTS, second.folder / ARTIFACTS)
        for database in ("dagster", "mlflow"):
            file = Path(shutil.copy(backup / f"{database}.dump", second.postgres.folder))
            file.chmod(0o644)
            second.postgres.restore(database, file)
        second.mlflow.start()
        assert CliRunner().invoke(main, ["publish"]).exit_code == 0
        assert second.qc() == answer
        instance = running.enter_context(open_instance(second.home))
        assert {run.run_id: run.status for run in instance.get_runs()} == runs
        bench = Bench(Platform(), instance)
        move = tick(bench, champion_model_sensor).cursor
        # The command publishes without the checks of the asset.
        assert requested(tick(bench, publication_sensor)) == [("refresh_qc", None)]
        assert bench.materialize("qc_database").success
        for sensor, cursor in ((inbox_sensor, None), (champion_model_sensor, move), (publication_sensor, None)):
            assert requested(tick(bench, sensor, cursor)) == [], sensor.name
        without_history = Bench(Platform(), dg.DagsterInstance.ephemeral())
        for sensor, cursor in ((inbox_sensor, None), (champion_model_sensor, move)):
            assert requested(tick(without_history, sensor, cursor)) == [], sensor.name

        write_synthetic_plate(second.home.inbox, SyntheticPlate(**{**vars(PLATE), "name": "two", "seed": 1}))
        assert bench.ingest("two").success and all(result.success for result in bench.process("two"))
        asked = requested(tick(bench, champion_model_sensor, move))
        assert asked == [("rescore", plate_site_key("two", site)) for site in (1, 2)]
        assert all(bench.run("rescore", partition).success for _, partition in asked)
        assert CliRunner().invoke(main, ["publish"]).exit_code == 0
        assert len(second.qc().splitlines()) > len(answer.splitlines())
