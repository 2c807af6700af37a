"""Check that runs in this process do not wait for runs whose process was killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import pytest

from gradcamo_assets.defs.run_jobs import _PROCESS_TAG, end_killed_runs, run_job

POOL = "segmentation"


@dg.asset(pool=POOL)
def masks() -> None:
    """An asset that takes the only slot of a pool."""


DEFINITIONS = dg.Definitions([masks], jobs=[dg.define_asset_job("segment", [masks])])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    limits = {"concurrency": {"pools": {"granularity": "op", "default_limit": 1}}}
    with dg.instance_for_test(overrides=limits) as instance:
        yield instance


def _run_that_holds_the_slot(instance: dg.DagsterInstance, process: int) -> str:
    run = instance.create_run_for_job(
        DEFINITIONS.resolve_job_def("segment"),
        status=dg.DagsterRunStatus.STARTED,
        tags={_PROCESS_TAG: f"{socket.gethostname()}/{process}"},
    )
    instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
    instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "masks")
    assert instance.event_log_storage.get_concurrency_info(POOL).active_run_ids == {run.run_id}
    return run.run_id


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_killed_run_gives_its_slot_back_and_ends(instance: dg.DagsterInstance) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    killed = _run_that_holds_the_slot(instance, ended.pid)
    assert run_job(DEFINITIONS, instance, "segment").success
    assert _status(instance, killed) == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("call", ["report_run_failed", "event_log_storage.free_concurrency_slots_for_run"])
def test_a_killed_run_ends_even_if_the_process_that_ends_it_is_killed(
    instance: dg.DagsterInstance, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    killed = _run_that_holds_the_slot(instance, ended.pid)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        *owner, name = call.split(".")
        patch.setattr(getattr(instance, owner[0]) if owner else instance, name, kill)
        end_killed_runs(instance)
    end_killed_runs(instance)
    assert _status(instance, killed) == dg.DagsterRunStatus.FAILURE
    assert instance.event_log_storage.get_concurrency_info(POOL).active_run_ids == set()


def test_a_run_in_a_living_process_keeps_its_slot(instance: dg.DagsterInstance) -> None:
    running = _run_that_holds_the_slot(instance, os.getpid())
    end_killed_runs(instance)
    assert _status(instance, running) == dg.DagsterRunStatus.STARTED
    assert instance.event_log_storage.get_concurrency_info(POOL).active_run_ids == {running}
