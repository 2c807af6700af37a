"""Run the platform's jobs in this process or in processes of its own, for programs such as the demo."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import dagster as dg

from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration: events are stored in the instance, where the UI shows them, and not printed."""

_PROCESS_TAG = "gradcamo/process"
"""Tag of a run: host and number of the process that runs it."""


def run_job(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    partition: str | None = None,
    only: Sequence[str] | None = None,
    **config: object,
) -> dg.ExecuteInProcessResult:
    """Run a job, or some of its assets, in this process.

    Raises:
        GradcamoError: if the run fails; the UI shows where.
    """
    end_killed_runs(instance)
    result = definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags={_PROCESS_TAG: f"{socket.gethostname()}/{os.getpid()}"},
        partition_key=partition,
        asset_selection=[dg.AssetKey(name) for name in only] if only else None,
        raise_on_error=False,
        run_config={**QUIET, **config},
    )
    if not result.success:
        failures = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
        error = failures[0] if failures else None
        reason = (error.cause or error).message.strip() if error else "see the run"
        raise GradcamoError(
            f"job {job} failed{f' for {partition}' if partition else ''} ({reason})",
            f"Look at run {result.run_id} with make ui.",
        )
    return result


def end_killed_runs(instance: dg.DagsterInstance) -> None:
    """End the runs of ``run_job`` whose process was killed, so that no later run waits for their pool slots for ever.

    Dagster's daemon ends killed runs too, but only those that it launched.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        host, _, number = run.tags.get(_PROCESS_TAG, "").rpartition("/")
        if host == socket.gethostname() and not _is_alive(int(number)):
            # First: if this process is killed in between, the run must still be found.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "The process of this run was killed.")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It belongs to another user.
        return True
    return True


def _process_in_worker(home: Home, partition: str) -> tuple[str, str] | None:
    """Run the job ``process_fields`` with one thread, since small images do not use more.

    Returns:
        Problem and remedy if the run fails, else None: a ``GradcamoError`` cannot be pickled.
    """
    import torch

    torch.set_num_threads(1)
    try:
        run_job(build_definitions(Platform(root=str(home.root))), open_instance(home), "process_fields", partition)
    except GradcamoError as error:
        return error.problem, error.remedy
    return None


def process_fields(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    home: Home,
    partitions: Sequence[str],
    processes: int | None = None,
) -> None:
    """Run the job ``process_fields`` for several partitions, in processes of their own if there are several.

    Args:
        processes: number of processes, at most and by default one per processor core.

    Raises:
        GradcamoError: if a run fails.
    """
    cores = os.cpu_count() or 1
    workers = min(processes or cores, cores, len(partitions))
    if workers <= 1:
        for partition in partitions:
            run_job(definitions, instance, "process_fields", partition)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        for error in executor.map(partial(_process_in_worker, home), partitions):
            if error:
                raise GradcamoError(*error)
