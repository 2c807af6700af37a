"""Moving the champion alias on a real MLflow server, forwards and back: what is scored, by whom, and how often."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from gradcamo_assets.common import Home
from gradcamo_assets.orchestration import runs
from gradcamo_assets.orchestration.automation import champion_model_sensor
from gradcamo_assets.orchestration.demo import QUIET
from gradcamo_assets.orchestration.partitions import plate_site_key
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.scoring.score import Scorer
from gradcamo_assets.warehouse import Lake, publish, run_sql
from gradcamo_assets_tests.orchestration.conftest import Bench
from gradcamo_assets_tests.orchestration.made_up import add_plate, add_version, scored_by
from gradcamo_assets_tests.orchestration.mlflow_server import MlflowServer

KEYS = {("P1", 1), ("P1", 2), ("P2", 1), ("P2", 2)}


class Daemon:
    """What Dagster's daemons do, step by step: the cursor is kept, a run key is used once, runs wait in a queue."""

    def __init__(self, bench: Bench):
        self.bench, self.cursor = bench, None
        self.queue: list[tuple[dg.DagsterRun, dg.RunRequest]] = []
        self.asked: list[dg.RunRequest] = []
        self.done: list[tuple[str, bool]] = []

    def evaluate(self) -> dg.SensorResult:
        """What the sensor says now."""
        bench = self.bench
        with dg.build_sensor_context(
            instance=bench.instance, cursor=self.cursor, resources={"platform": bench.platform},
            definitions=bench.definitions,
        ) as context:  # fmt: skip
            return champion_model_sensor(context)  # type: ignore[return-value]

    def tick(self) -> list[dg.RunRequest]:
        """Evaluate the sensor, keep its cursor and put the new runs of ``rescore`` into the queue."""
        bench, result = self.bench, self.evaluate()
        used = {request.run_key for request in self.asked}
        new = [request for request in result.run_requests or [] if request.run_key not in used]
        for request in new:
            self.asked.append(request)
            if request.job_name == "rescore":
                tags = {**request.tags, "dagster/partition": str(request.partition_key)}
                job = bench.definitions.resolve_job_def("rescore")
                run = bench.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
                self.queue.append((run, request))
        self.cursor = result.cursor
        return new

    def work(self, most: int = 100) -> None:
        """Execute so many runs of the queue."""
        for run, request in self.queue[:most]:
            self.bench.instance.delete_run(run.run_id)
            result = self.bench.definitions.resolve_job_def("rescore").execute_in_process(
                instance=self.bench.instance, partition_key=str(request.partition_key), tags=dict(request.tags),
                raise_on_error=False, run_config=QUIET,
            )  # fmt: skip
            self.done.append((str(request.partition_key), result.success))
        self.queue = self.queue[most:]

    def settle(self) -> int:
        """Tick and work until nothing is asked for. How many runs of ``rescore`` that took."""
        before = len(self.done)
        for _ in range(10):
            self.tick()
            if not self.queue:
                return len(self.done) - before
            self.work()
        raise AssertionError("it never comes to rest")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def scored(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plates of two sites and three versions, the first of which is champion and has scored everything."""
    root = Home(tmp_path_factory.mktemp("home")).create().root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        daemon = Daemon(Bench(Platform(root=str(root)), dg.DagsterInstance.ephemeral()))
        for plate in ("P1", "P2"):
            add_plate(daemon.bench, plate)
        for seed in range(3):
            daemon.bench.platform.registry.fetch(add_version(daemon.bench, seed))
        move(daemon, 1)
        assert daemon.settle() == 4
        assert_scored(daemon, 1)
    return root


@pytest.fixture
def daemon(scored: Path, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The same, in a folder of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    shutil.copytree(scored, tmp_path, dirs_exist_ok=True)
    daemon = Daemon(Bench(Platform(root=str(tmp_path)), dg.DagsterInstance.ephemeral()))
    daemon.bench.instance.add_dynamic_partitions("plates", ["P1", "P2"])
    daemon.bench.instance.add_dynamic_partitions("sites", ["1", "2"])
    move(daemon, 1)
    assert daemon.settle() == 0
    return daemon


def move(daemon: Daemon, version: int) -> None:
    """Move the alias as a user does in MLflow's pages."""
    daemon.bench.platform.registry.client.set_registered_model_alias(
        daemon.bench.platform.model_name, "champion", str(version)
    )


def assert_scored(daemon: Daemon, champion: int, never: tuple[int, ...] = ()) -> None:
    """Every partition has one set of rows of the champion, of the crops that are there, and none of the others."""
    bench = daemon.bench
    for table in ("scores", "embeddings"):
        found = scored_by(bench.home.lake, table)
        assert set(found) == set(scored_by_cells(bench)), table
        for partition, versions in found.items():
            assert versions[champion] == 6, (table, partition)
            assert not set(never) & set(versions), (table, partition)
    for path in (bench.home.lake / "scores").rglob(f"model_version={champion}.parquet"):
        rows = pl.read_parquet(path, hive_partitioning=False)
        cells = bench.platform.lake.read("cells", plate=rows["Metadata_Plate"][0], site=rows["Metadata_Site"][0])
        assert set(rows["crop_version"]) == set(cells["crop_version"])


def scored_by_cells(bench: Bench) -> list[tuple[str, int]]:
    """The partitions there are."""
    return [(key.plate, key.site) for key in bench.platform.lake.keys("cells")]  # type: ignore[misc]


def test_a_promotion_scores_once_and_a_rollback_computes_nothing(daemon: Daemon) -> None:
    move(daemon, 2)
    asked = daemon.tick()
    assert [request.job_name for request in asked] == ["refresh_qc"] + ["rescore"] * 4
    publish(daemon.bench.platform.lake, daemon.bench.home.database)
    waits = "SELECT Metadata_Plate, Metadata_Site, model_version, n_cells, reason FROM stale_scores ORDER BY ALL"
    assert run_sql(daemon.bench.home.database, waits).rows() == [
        (*partition, 2, 6, "never scored by the champion") for partition in sorted(KEYS)
    ]
    assert daemon.tick() == []
    daemon.work(1)
    assert daemon.tick() == [], "what is queued is not asked for again"
    daemon.work()
    assert daemon.tick() == []
    assert_scored(daemon, 2)
    publish(daemon.bench.platform.lake, daemon.bench.home.database)
    assert run_sql(daemon.bench.home.database, waits).rows() == []
    for version in (1, 2, 1):
        move(daemon, version)
        assert [request.job_name for request in daemon.tick()] == ["refresh_qc"]
        assert daemon.settle() == 0
        assert_scored(daemon, version, never=(3,))


def test_two_promotions_within_a_tick_and_back_again(daemon: Daemon) -> None:
    move(daemon, 2)
    move(daemon, 3)
    assert daemon.settle() == 4
    assert_scored(daemon, 3, never=(2,))
    move(daemon, 2)
    move(daemon, 3)
    assert daemon.tick() == [], "there and back within a tick is no move"


def test_a_promotion_while_runs_of_the_last_one_wait(daemon: Daemon) -> None:
    move(daemon, 2)
    daemon.tick()
    daemon.work(1)
    move(daemon, 3)
    assert [r.partition_key for r in daemon.tick() if r.job_name == "rescore"] == [plate_site_key("P1", 1)]
    daemon.work()
    assert daemon.settle() == 0
    assert len(daemon.done) == 4 + 1
    assert_scored(daemon, 3)
    assert {v for versions in scored_by(daemon.bench.home.lake).values() for v in versions} == {1, 2, 3}
    assert sum(2 in versions for versions in scored_by(daemon.bench.home.lake).values()) == 1


def test_an_alias_that_moves_while_a_partition_is_scored(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on with the version it began with, whole, and the partition is asked for again."""
    score, moved = Scorer.score, []

    def moving(self: Scorer, *args: object, **kwargs: object) -> object:
        if not moved:
            moved.append(True)
            move(daemon, 3)
            assert all(r.job_name != "rescore" or r.partition_key != key for r in daemon.tick())
        return score(self, *args, **kwargs)  # type: ignore[arg-type]

    key = plate_site_key("P1", 1)
    move(daemon, 2)
    daemon.tick()
    monkeypatch.setattr(Scorer, "score", moving)
    daemon.work(1)
    assert scored_by(daemon.bench.home.lake)["P1", 1] == {1: 6, 2: 6}
    daemon.settle()
    assert_scored(daemon, 3)


def test_a_daemon_that_is_restarted_and_an_instance_that_is_made_anew(daemon: Daemon) -> None:
    move(daemon, 2)
    daemon.tick()
    daemon.work(2)
    daemon.cursor = None
    assert daemon.tick() == []
    daemon.work()
    assert daemon.settle() == 0
    assert_scored(daemon, 2)
    move(daemon, 3)
    lost = Bench(daemon.bench.platform, dg.DagsterInstance.ephemeral())
    with dg.build_sensor_context(
        instance=lost.instance, resources={"platform": lost.platform}, definitions=lost.definitions
    ) as context:
        result = champion_model_sensor(context)
    added = {r.partitions_def_name: r.partition_keys for r in result.dynamic_partitions_requests or []}
    assert added == {"plates": ["P1", "P2"], "sites": ["1", "2"]}
    assert {r.partition_key for r in result.run_requests or []} - {None} == {plate_site_key(*key) for key in KEYS}


def test_a_run_that_is_killed_half_way(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    later = 0.0
    monkeypatch.setattr(runs, "_now", lambda: time.time() + later)
    write, killed = Lake.write, []

    def dying(self: Lake, table: str, *args: object, **keys: object) -> object:
        if table == "scores" and (keys["plate"], keys["site"]) == ("P2", 1):
            killed.append(keys)
            raise MemoryError("killed")
        return write(self, table, *args, **keys)  # type: ignore[arg-type]

    move(daemon, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "write", dying)
        assert daemon.settle() == 4
        assert scored_by(daemon.bench.home.lake)["P2", 1] == {1: 6}, "nothing of it is to be seen"
        for attempt in (2, 3):
            later = 0.0
            assert daemon.settle() == 0, "too soon"
            later = 601.0
            daemon.tick()
            daemon.work()
            assert len(daemon.done) == 2 + attempt + 1
            assert len(killed) == attempt
        later = 86400.0
        given_up = daemon.tick()
        assert [request.job_name for request in given_up] == ["refresh_qc"]
        assert daemon.settle() == 0
        reason = daemon.bench.platform.lake.read("unscored").filter(model_version=2)["reason"].item()
        assert "ended 3 times without scores" in reason
    publish(daemon.bench.platform.lake, daemon.bench.home.database)
    assert run_sql(daemon.bench.home.database, "SELECT reason FROM stale_scores").item() == reason
    assert daemon.bench.run("rescore", plate_site_key("P2", 1)).success
    daemon.settle()
    assert_scored(daemon, 2)
    assert len(daemon.bench.platform.lake.read("unscored").filter(model_version=2)) == 0


def test_a_run_whose_machine_went_away(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    move(daemon, 2)
    daemon.tick()
    (dead, _), daemon.queue = daemon.queue[0], daemon.queue[1:]
    daemon.work()
    assert daemon.settle() == 0, "it may still be running"
    assert daemon.bench.definitions.resolve_job_def("rescore").tags["dagster/max_runtime"] == "21600"
    daemon.bench.instance.report_run_failed(dead)
    later = time.time() + 601
    monkeypatch.setattr(runs, "_now", lambda: later)
    assert daemon.settle() == 1
    assert_scored(daemon, 2)


def test_new_plates_and_new_masks_are_scored_by_the_champion_of_the_moment(daemon: Daemon) -> None:
    move(daemon, 2)
    assert daemon.settle() == 4
    add_plate(daemon.bench, "P3")
    add_plate(daemon.bench, "P1", sites=1, masks="second")
    assert daemon.settle() == 3
    assert_scored(daemon, 2)
    assert scored_by(daemon.bench.home.lake)["P3", 1] == {2: 6}
    move(daemon, 1)
    assert daemon.settle() == 3, "what version 1 has not scored: P3, and the new masks"
    assert_scored(daemon, 1)


def test_a_run_for_what_is_scored_already_does_nothing_unless_told(daemon: Daemon) -> None:
    path = next((daemon.bench.home.lake / "scores" / "plate=P1").rglob("*.parquet"))
    before = path.stat().st_mtime_ns
    result = daemon.bench.run("rescore", plate_site_key("P1", 1))
    assert result.success
    assert path.stat().st_mtime_ns == before
    assert result.get_asset_materialization_events() == []
    seen = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    assert len(seen) == 2
    assert all("already" in str(observation) for observation in seen)
    assert daemon.bench.checks(result)["cells_scored"].passed
    again = {"ops": {"scores_and_embeddings": {"config": {"again": True}}}}
    assert len(daemon.bench.run("rescore", plate_site_key("P1", 1), **again).get_asset_materialization_events()) == 2
    assert path.stat().st_mtime_ns != before
    assert_scored(daemon, 1)


def test_a_champion_whose_bundle_is_damaged_is_refused_before_any_run(daemon: Daemon) -> None:
    registry = daemon.bench.platform.registry
    version = registry.by_alias("challenger")
    assert version is not None
    weights = registry.fetch(version) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\1")
    move(daemon, version.version)
    before = daemon.cursor
    with pytest.raises(Exception, match="not those the configuration was written for"):
        daemon.tick()
    assert daemon.cursor == before
    weights.write_bytes(good)
    assert daemon.settle() == 4
    assert_scored(daemon, version.version)


def test_a_hundred_partitions_are_a_hundred_runs(daemon: Daemon) -> None:
    add_plate(daemon.bench, "many", sites=96)
    move(daemon, 2)
    begin = time.process_time()
    result = daemon.evaluate()
    assert time.process_time() - begin < 5, "of the sixty seconds that a tick has, on any machine"
    asked = [request for request in result.run_requests or [] if request.job_name == "rescore"]
    assert len(asked) == 100
    assert max(Counter(request.partition_key for request in asked).values()) == 1
    daemon.tick()
    assert len(daemon.queue) == 100
    daemon.cursor = None
    assert daemon.tick() == []
    move(daemon, 3)
    assert [request.job_name for request in daemon.tick()] == ["refresh_qc"], "the runs that wait will score for it"


def test_a_server_that_is_down_for_a_while(
    daemon: Daemon, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last: it takes the server away."""
    move(daemon, 2)
    daemon.tick()
    daemon.work(1)
    cursor = daemon.cursor
    server.stop()
    try:
        begin = time.perf_counter()
        with pytest.raises(Exception, match=r"127\.0\.0\.1"):
            daemon.tick()
        assert time.perf_counter() - begin < 30, "a tick has sixty seconds"
        assert daemon.cursor == cursor
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            daemon.work(1)
        assert daemon.done[-1][1] is False
    finally:
        server.start()
    move(daemon, 3)
    daemon.settle()
    assert_scored(daemon, 3)
    assert [success for _, success in daemon.done].count(False) == 1
