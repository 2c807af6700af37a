"""Runs on a Ray cluster compute what one process does, even if machines and servers fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import duckdb
import pytest

from gradcamo_assets.local_copies import fetch_file
from gradcamo_assets.tables import Lake, run_sql
from gradcamo_assets_tests.cluster.cluster import (
    Cluster,
    train_and_promote,
    wait_until_complete,
    wait_until_processed,
    wait_until_scored,
)
from gradcamo_assets_tests.cluster.services import NODE, processes_with, wait_for
from gradcamo_assets_tests.comparison import differences

FAKETIME = next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
# S3 refuses requests whose time is more than a quarter of an hour off.
AHEAD = {"shared_folder": True, "variables": [f"LD_PRELOAD={FAKETIME}", "FAKETIME=+1h"]}
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


def process_everything(cluster: Cluster) -> None:
    start = time.monotonic()
    wait_until_processed(cluster)
    promotion = train_and_promote(cluster)
    wait_until_scored(cluster)
    print(f"scored after {time.monotonic() - start:.0f} s")
    wait_until_complete(cluster)
    print(f"complete after {time.monotonic() - start:.0f} s; runs: {cluster.run_counts()}")
    assert cluster.has_succeeded(promotion)


def test_a_cluster_computes_what_one_process_does(expected: Lake, cluster: Cluster) -> None:
    process_everything(cluster)
    assert not differences(expected, cluster.platform.lake)
    # DuckDB without the extension httpfs has the summaries, and says what it lacks for rows of cells.
    with duckdb.connect(fetch_file(cluster.home.database), read_only=True) as plain:
        assert plain.execute("SELECT count(*) FROM qc_by_dose").fetchall()[0][0] > 0
        with pytest.raises(duckdb.Error, match=r"httpfs|HTTP"):
            plain.execute("SELECT count(*) FROM scores")
    assert run_sql(cluster.home.database, "SELECT count(*) FROM scores").item() > 0


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME, reason="Debian's package faketime is not installed")
@pytest.mark.parametrize("cluster", [AHEAD], indirect=True, ids=["ahead"])
def test_the_clock_of_nodes_may_be_an_hour_off(expected: Lake, cluster: Cluster) -> None:
    process_everything(cluster)
    ends = [record.end_time for record in cluster.instance.get_run_records()]
    assert min(end for end in ends if end) > time.time() + 2400, "the clock was not changed"
    assert not differences(expected, cluster.platform.lake)


@pytest.mark.slow
def test_nothing_is_lost_when_machines_and_servers_fail(expected: Lake, cluster: Cluster) -> None:
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {what}; runs: {cluster.run_counts()}", flush=True)

    def kill_node_during(job: str) -> None:
        wait_for(lambda: cluster.started(job) is not None, job, 300)
        cluster.ray.kill(NODE)
        say(f"the second node was killed while {job} ran")
        time.sleep(5)
        cluster.ray.start_node()

    def kill_worker(run: str) -> None:
        wait_for(lambda: cluster.started("train_model") is not None, "train_model", 300)
        for process in processes_with(run):
            os.kill(process, signal.SIGKILL)
        say("the process of the training was killed")

    kill_node_during("process_fields")
    wait_until_processed(cluster, 900)
    say("processed")
    cluster.postgres.stop()
    time.sleep(3)
    cluster.postgres.start()
    say("Postgres was restarted")
    promotion = train_and_promote(cluster, kill_worker)
    say("promoted")
    kill_node_during("rescore")
    cluster.mlflow.stop()
    time.sleep(60)
    cluster.mlflow.start()
    say("MLflow was away for a minute")
    wait_until_scored(cluster, 900)
    cluster.ray.restart()
    say("scored; Ray was restarted")
    if cluster.objects:
        cluster.objects.stop()
        time.sleep(60)
        cluster.objects.start()
        say("the object store was away for a minute")
    wait_until_complete(cluster, 900)
    say("complete")
    assert cluster.has_succeeded(promotion)
    assert not differences(expected, cluster.platform.lake)
