"""A home whose runs are jobs of a Ray cluster, with Postgres, an MLflow server and an object store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import HTTPError

import dagster as dg
import pytest
import yaml

from gradcamo_assets.defs.automation.pending import scoring_state
from gradcamo_assets.defs.automation.run_requests import UNFINISHED_STATUSES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.home import Home
from gradcamo_assets.storage import list_visible
from gradcamo_assets.tables import needs_publication
from gradcamo_assets_tests.cluster.object_store import ObjectStore
from gradcamo_assets_tests.cluster.services import Postgres, RayCluster, wait_for
from gradcamo_assets_tests.defs.mlflow_server import MlflowServer
from gradcamo_assets_tests.loopback import ask, free_port
from gradcamo_assets_tests.two_plates import NAMES, SITES, crown, fill_inbox

DEPLOY = Path(__file__).parents[2] / "deploy"


def cluster_environment(home: Home, postgres: Postgres) -> dict[str, str]:
    """The variables that ``deploy/dagster-cluster.yaml`` needs on every machine."""
    return {
        "GRADCAMO_HOME": home.address,
        "DAGSTER_HOME": str(home.dagster),
        "GRADCAMO_POSTGRES_HOST": "127.0.0.1",
        "GRADCAMO_POSTGRES_PORT": str(postgres.port),
        "GRADCAMO_POSTGRES_USER": postgres.user,
        "GRADCAMO_POSTGRES_PASSWORD": postgres.password,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def configure_instance(home: Home, runs: int, variables: Sequence[str] = ()) -> None:
    """Write ``deploy/dagster-cluster.yaml`` into a home, for nodes of one core.

    Args:
        runs: how many run at a time.
        variables: of the environment of runs, ``NAME=value``.
    """
    settings = yaml.safe_load((DEPLOY / "dagster-cluster.yaml").read_text())
    settings["run_launcher"]["config"]["ray"]["env_vars"] += variables
    settings["run_launcher"]["config"]["assets"] = {"masks": {"num_cpus": 1, "memory": 1 << 30}}
    settings["concurrency"]["runs"]["max_concurrent_runs"] = runs
    settings["run_monitoring"] |= {"poll_interval_seconds": 5, "start_timeout_seconds": 60}
    home.dagster.mkdir(exist_ok=True)
    (home.dagster / "dagster.yaml").write_text(yaml.safe_dump(settings))


class Cluster:
    """A home whose runs are jobs of a Ray cluster, served by ``gradcamo ui``.

    Args:
        shared_folder: whether the home is a folder that all nodes see; otherwise it is in a bucket.
        variables: of the environment of runs, ``NAME=value``.
    """

    def __init__(
        self,
        folder: Path,
        running: ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        shared_folder: bool = False,
        variables: Sequence[str] = (),
    ):
        self.home, self.objects = Home(folder / "home"), None
        if not shared_folder:
            self.objects = ObjectStore()
            running.callback(self.objects.remove)
            for name, value in (self.objects.environment | {"DAGSTER_HOME": str(folder / "dagster")}).items():
                monkeypatch.setenv(name, value)
            self.home = Home.at(f"s3://lab/{folder.parent.name}.{folder.name}")
        self.postgres = Postgres()
        running.callback(self.postgres.remove)
        self.mlflow = MlflowServer(folder, self.postgres.address("mlflow"))
        self.mlflow.start()
        running.callback(self.mlflow.stop)
        environment = cluster_environment(self.home, self.postgres)
        environment |= self.objects.environment if self.objects else {}
        self.ray = RayCluster(folder, environment)
        running.callback(self.ray.remove)
        for name, value in {**environment, "GRADCAMO_RAY_ADDRESS": self.ray.address}.items():
            monkeypatch.setenv(name, value)
        self.ray.start_head()
        self.ray.start_node()
        fill_inbox(self.home, f'[registry]\nuri = "{self.mlflow.uri}"\n')
        configure_instance(self.home, runs=2, variables=variables)
        self.platform = Platform(root=self.home.address)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        with (folder / "ui.log").open("ab") as log:
            self._ui = subprocess.Popen(
                [Path(sys.executable).with_name("gradcamo"), "ui", "--port", str(port)],
                stdout=log, stderr=log, cwd=folder, start_new_session=True,
            )  # fmt: skip
        running.callback(self._stop_ui)
        wait_for(self._is_served, "gradcamo ui")
        self.instance = running.enter_context(dg.DagsterInstance.from_config(str(self.home.dagster)))

    def launch(self, job: str) -> str:
        """Launch a job, as the button in the UI does, again after an error. Returns the identifier of the run."""
        mutation = """mutation($job: String!) { launchRun(executionParams: {mode: "default", selector: {jobName: $job,
            repositoryName: "__repository__", repositoryLocationName: "gradcamo_assets"}})
            { __typename ... on LaunchRunSuccess { run { runId } } } }"""
        for _ in range(3):
            # The pages answer the first requests after a restart of Postgres with an error.
            with suppress(HTTPError):
                return ask(self.address, mutation, job=job)["data"]["launchRun"]["run"]["runId"]
            time.sleep(5)
        raise AssertionError(f"{job} could not be launched")

    def has_succeeded(self, run: str) -> bool:
        """Whether a run, or one that repeats it, has succeeded."""
        group = self.instance.get_run_group(run)
        assert group is not None
        return any(member.status == dg.DagsterRunStatus.SUCCESS for member in group[1])

    def started(self, job: str) -> str | None:
        """A run of this job that executes steps now."""
        runs = self.instance.get_runs(dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.STARTED]), limit=1)
        return runs[0].run_id if runs else None

    def run_counts(self) -> dict[str, int]:
        """Runs by state and job."""
        return dict(Counter(f"{run.status.value.lower()} {run.job_name}" for run in self.instance.get_runs()))

    def is_idle(self) -> bool:
        """Whether no run is queued or in progress."""
        assert self._ui.poll() is None, "gradcamo ui has stopped"
        return not self.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_STATUSES), limit=1)

    def _is_served(self) -> bool:
        try:
            return bool(ask(self.address, "{ version }"))
        except OSError:
            return False

    def _stop_ui(self) -> None:
        self._ui.send_signal(signal.SIGINT)
        try:
            self._ui.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self._ui.pid, signal.SIGKILL)


def wait_until_processed(cluster: Cluster, seconds: float = 300) -> None:
    """Wait until the crops of all fields are recorded."""
    fields = len(NAMES) * len(SITES)
    wait_for(lambda: cluster.platform.lake.read("crop_versions").height == fields, "crops", seconds)


def train_and_promote(cluster: Cluster, disturb: Callable[[str], object] = lambda run: None) -> str:
    """Launch a training, disturb it, wait for the encoder, and promote it. Scores are requested within seconds.

    Returns:
        The run of the promotion, which may still be in progress.
    """
    run = cluster.launch("train_model")
    disturb(run)
    wait_for(lambda: cluster.has_succeeded(run), "the training", 300)
    run, registry = cluster.launch("promote_challenger"), cluster.platform.registry
    wait_for(lambda: registry.by_alias() is not None or cluster.has_succeeded(run), "the promotion", 300)
    crown(cluster.platform)
    return run


def wait_until_scored(cluster: Cluster, seconds: float = 300) -> None:
    """Wait until the champion has scored all fields."""
    lake, registry = cluster.platform.lake, cluster.platform.registry
    champion = registry.by_alias()
    assert champion is not None
    wait_for(lambda: not scoring_state(lake, registry, champion).todo, "scores", seconds)


def wait_until_complete(cluster: Cluster, seconds: float = 500) -> None:
    """Wait until audits, profiles, a publication with all of them, and the reports are made."""
    lake, home = cluster.platform.lake, cluster.home
    by_plate = ("audit", "profile", "umap", "confounder")

    def is_complete() -> bool:
        return (
            all(lake.read(f"{stage}_versions").height == len(NAMES) for stage in by_plate)
            and lake.delta_version("replicability") >= 0
            and len(list_visible(home.reports, "*/*.html")) == len(NAMES)
            and not needs_publication(lake, home.database)
            and cluster.is_idle()
        )

    wait_for(is_complete, "reports", seconds)
