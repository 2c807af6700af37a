"""Promotions and rollbacks: every partition is scored once by the champion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from gradcamo_assets.defs.automation import jobs_and_sensors as automation
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.run_jobs import QUIET
from gradcamo_assets.retries import RETRY_PAUSES
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.tables import Lake, lake_table, run_sql
from gradcamo_assets.training.mlflow_store import sqlite_uri
from gradcamo_assets_tests.defs.conftest import Bench, make_bench
from gradcamo_assets_tests.defs.made_up import SETTINGS, add_plate, add_version, scored_by
from gradcamo_assets_tests.defs.mlflow_server import MlflowServer

KEY = ["Metadata_Plate", "Metadata_Site"]
KEYS = {("P1", 1), ("P1", 2), ("P2", 1), ("P2", 2)}


class Daemon:
    """Emulates Dagster's daemons step by step: it keeps the cursor, accepts a run key once, and queues runs."""

    def __init__(self, bench: Bench):
        self.bench, self.cursor = bench, None
        self.queue: list[tuple[dg.DagsterRun, dg.RunRequest]] = []
        self.asked: list[dg.RunRequest] = []
        self.done: list[tuple[str, bool]] = []

    def evaluate(self) -> dg.SensorResult:
        """Evaluate the sensor without side effects."""
        bench = self.bench
        with dg.build_sensor_context(
            instance=bench.instance, cursor=self.cursor, resources={"platform": bench.platform},
            definitions=bench.definitions,
        ) as context:  # fmt: skip
            return champion_model_sensor(context)  # type: ignore[return-value]

    def tick(self) -> list[dg.RunRequest]:
        """Evaluate the sensor, keep its cursor and queue the new runs of ``rescore``."""
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
        """Execute at most ``most`` queued runs."""
        for run, request in self.queue[:most]:
            self.bench.instance.delete_run(run.run_id)
            result = self.bench.definitions.resolve_job_def("rescore").execute_in_process(
                instance=self.bench.instance, partition_key=str(request.partition_key), tags=dict(request.tags),
                raise_on_error=False, run_config=QUIET,
            )  # fmt: skip
            self.done.append((str(request.partition_key), result.success))
        self.queue = self.queue[most:]

    def settle(self) -> int:
        """Tick and work until nothing is requested. Returns the number of ``rescore`` runs."""
        before = len(self.done)
        for _ in range(10):
            self.tick()
            if not self.queue:
                return len(self.done) - before
            self.work()
        raise AssertionError("requests do not stop")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two plates of two sites, and three versions; the first is champion and has scored all crops."""
    daemon = Daemon(make_bench(tmp_path_factory.mktemp("home")))
    daemon.bench.home.settings_file.write_text(SETTINGS)
    for plate in ("P1", "P2"):
        add_plate(daemon.bench, plate)
    for seed in range(3):
        daemon.bench.platform.registry.fetch(add_version(daemon.bench, seed))
    move(daemon, 1)
    assert daemon.settle() == 4
    assert_scored(daemon, 1)
    return daemon.bench


@pytest.fixture
def daemon(scored: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """A copy of the scored home, with its own daemon and the shared registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(scored.home.mlflow / "mlflow.db"))
    daemon = Daemon(scored.copy(tmp_path))
    move(daemon, 1)
    assert daemon.settle() == 0
    return daemon


@pytest.fixture
def server(scored: Bench, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """An MLflow server of the registry, which the daemon uses from now on."""
    server = MlflowServer(scored.home.mlflow)
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server
    finally:
        server.stop()


def move(daemon: Daemon, version: int) -> None:
    """Move the alias, like a user of the MLflow UI."""
    daemon.bench.platform.registry.client.set_registered_model_alias(
        daemon.bench.platform.model_name, "champion", str(version)
    )


def published(daemon: Daemon, sql: str) -> list[tuple]:
    """Publish the QC database and query it."""
    assert daemon.bench.materialize("qc_database").success
    return run_sql(daemon.bench.home.database, sql).rows()


def assert_scored(daemon: Daemon, champion: int, never: tuple[int, ...] = ()) -> None:
    """Check that every partition has the champion's rows of the current crops, and none of the versions ``never``."""
    bench = daemon.bench
    for table in ("scores", "embeddings"):
        found = scored_by(bench.home.lake, table)
        assert set(found) == set(scored_by_cells(bench)), table
        for partition, versions in found.items():
            assert versions[champion] == 6, (table, partition)
            assert not set(never) & set(versions), (table, partition)
    names = ["Metadata_Plate", "Metadata_CellID", "crop_version"]
    rows = pl.read_delta(str(bench.home.lake / "scores")).filter(model_version=champion)
    crops = pl.read_delta(str(bench.home.lake / "crops"))
    assert rows.select(names).sort(names).equals(crops.select(names).sort(names))


def scored_by_cells(bench: Bench) -> list[tuple[str, int]]:
    """The existing partitions."""
    return bench.platform.lake.read("cells").select("Metadata_Plate", "Metadata_Site").unique().rows()


def test_a_promotion_scores_once_and_a_rollback_computes_nothing(daemon: Daemon) -> None:
    move(daemon, 2)
    asked = daemon.tick()
    assert [request.job_name for request in asked] == ["rescore"] * 4
    waits = "SELECT Metadata_Plate, Metadata_Site, model_version, n_cells, reason FROM stale_scores ORDER BY ALL"
    assert published(daemon, waits) == [
        (*partition, 2, 6, "never scored by the champion") for partition in sorted(KEYS)
    ]
    assert daemon.tick() == []
    daemon.work(1)
    assert daemon.tick() == [], "queued partitions are not requested again"
    daemon.work()
    assert daemon.tick() == []
    assert_scored(daemon, 2)
    assert published(daemon, waits) == []
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
    assert daemon.tick() == [], "moving back within a tick is no move"


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
    """The run completes with its first version, and the partition is requested again."""
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


def test_a_restarted_daemon_and_a_recreated_instance(daemon: Daemon) -> None:
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


@pytest.mark.slow
def test_a_killed_run_is_retried_and_then_given_up(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    later = timedelta()
    monkeypatch.setattr(automation, "_now", lambda: datetime.now(UTC) + later)
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
        assert scored_by(daemon.bench.home.lake)["P2", 1] == {1: 6}, "no row of the killed run is visible"
        for attempt, pause in enumerate(RETRY_PAUSES, start=2):
            later = pause - timedelta(minutes=1)
            assert daemon.settle() == 0, "too soon"
            later = pause + timedelta(minutes=1)
            daemon.tick()
            daemon.work()
            assert len(daemon.done) == 3 + attempt
            assert len(killed) == attempt
        later = timedelta(days=30)
        assert daemon.settle() == 0
        reason = daemon.bench.platform.lake.read("unscored").filter(model_version=2)["reason"].item()
        assert "rescore failed 5 times" in reason and "launch the job by hand" in reason
    assert published(daemon, "SELECT reason FROM stale_scores") == [(reason,)]
    assert daemon.bench.run("rescore", plate_site_key("P2", 1)).success
    daemon.settle()
    assert_scored(daemon, 2)
    assert len(daemon.bench.platform.lake.read("unscored").filter(model_version=2)) == 0


def test_a_run_whose_machine_was_lost_is_repeated(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    move(daemon, 2)
    daemon.tick()
    (dead, _), daemon.queue = daemon.queue[0], daemon.queue[1:]
    daemon.work()
    assert daemon.settle() == 0, "the run may still be running"
    assert daemon.bench.definitions.resolve_job_def("rescore").tags["dagster/max_runtime"] == "21600"
    daemon.bench.instance.report_run_failed(dead)
    later = datetime.now(UTC) + timedelta(seconds=601)
    monkeypatch.setattr(automation, "_now", lambda: later)
    assert daemon.settle() == 1
    assert_scored(daemon, 2)


def test_new_plates_and_new_masks_are_scored_by_the_current_champion(daemon: Daemon) -> None:
    move(daemon, 2)
    assert daemon.settle() == 4
    add_plate(daemon.bench, "P3")
    add_plate(daemon.bench, "P1", sites=1, masks="second")
    assert daemon.settle() == 3
    assert_scored(daemon, 2)
    assert scored_by(daemon.bench.home.lake)["P3", 1] == {2: 6}
    move(daemon, 1)
    assert daemon.settle() == 3, "version 1 has not scored P3 and the new masks"
    assert_scored(daemon, 1)


def test_a_run_for_a_scored_partition_does_nothing_by_default(daemon: Daemon) -> None:
    lake = daemon.bench.platform.lake
    before = lake.delta_version("scores")
    result = daemon.bench.run("rescore", plate_site_key("P1", 1))
    assert result.success
    assert lake.delta_version("scores") == before
    assert result.get_asset_materialization_events() == []
    seen = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    assert len(seen) == 2
    assert all("already" in str(observation) for observation in seen)
    assert daemon.bench.checks(result)["cells_scored"].passed
    again = {"ops": {"scores_and_embeddings": {"config": {"again": True}}}}
    assert len(daemon.bench.run("rescore", plate_site_key("P1", 1), **again).get_asset_materialization_events()) == 2
    assert lake.delta_version("scores") > before
    assert_scored(daemon, 1)


def test_a_damaged_champion_fails_the_tick_before_any_run(daemon: Daemon) -> None:
    registry = daemon.bench.platform.registry
    version = registry.by_alias("challenger")
    assert version is not None
    weights = registry.fetch(version) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\1")
    move(daemon, version.version)
    before = daemon.cursor
    with pytest.raises(Exception, match="do not match the digest in the configuration"):
        daemon.tick()
    assert daemon.cursor == before
    weights.write_bytes(good)
    assert daemon.settle() == 4
    assert_scored(daemon, version.version)


@pytest.mark.slow
def test_at_most_two_hundred_partitions_are_requested_at_a_time(daemon: Daemon) -> None:
    """Most partitions exist in the version tables only, and their runs are only recorded as done."""
    bench, lake = daemon.bench, daemon.bench.platform.lake
    crops = lake.partition_versions("crop_versions")
    many = [
        {**crops.row(0, named=True), "Metadata_Plate": f"M{n // 9:02d}", "Metadata_Site": n % 9 + 1} for n in range(446)
    ]
    lake.replace("crop_versions", pl.concat([crops, pl.DataFrame(many, schema=crops.schema)]))
    move(daemon, 2)

    def finish(number: int) -> None:
        """Record that this number of queued runs have scored their partition."""
        run = bench.platform.registry.versions()[1].run_id
        for dead, request in daemon.queue[:number]:
            plate, site = request.partition_key.keys_by_dimension.values()  # type: ignore[union-attr]
            done.append({"Metadata_Plate": plate, "Metadata_Site": int(site), "model_run": run, "version": "s", "n": 6})
            bench.instance.delete_run(dead.run_id)
        rows = pl.DataFrame(done, schema=lake_table("score_versions").schema).drop("made_from")
        made = rows.join(lake.partition_versions("crop_versions").select(*KEY, made_from="version"), on=KEY)
        lake.replace("score_versions", made.select(list(lake_table("score_versions").schema)))
        daemon.queue = daemon.queue[number:]

    done: list[dict] = []
    assert [request.job_name for request in daemon.tick()] == ["rescore"] * 200
    assert daemon.tick() == [], "the maximum number of runs is queued"
    finish(50)
    daemon.cursor = None  # The daemon is restarted.
    assert len(daemon.tick()) == 50
    while daemon.queue:
        assert len(daemon.queue) <= 200
        finish(150)
        daemon.tick()
    expected = {(row["Metadata_Plate"], row["Metadata_Site"]) for row in many} | KEYS
    assert len(daemon.asked) == len(expected) == 450
    assert {request.partition_key for request in daemon.asked} == {plate_site_key(*key) for key in expected}


@pytest.mark.slow
def test_partitions_of_queued_runs_are_not_requested_after_a_promotion(daemon: Daemon) -> None:
    add_plate(daemon.bench, "more", sites=2)
    move(daemon, 2)
    assert len(daemon.tick()) == 6
    move(daemon, 3)
    assert daemon.tick() == [], "the queued runs will score with version 3"
    assert daemon.settle() == 6
    assert_scored(daemon, 3, never=(2,))


@pytest.mark.slow
def test_scoring_continues_after_the_server_was_down(
    daemon: Daemon, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
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
