"""Create run requests for partitions, considering runs in progress and failed runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg

from gradcamo_assets.defs.automation.pending import Partition
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.retries import MAX_ATTEMPTS, decide_retry

PARTITION = "dagster/partition"
_STATUS = dg.DagsterRunStatus
# Without NOT_STARTED: a daemon that was stopped can leave runs in this state for ever.
UNFINISHED_STATUSES = [_STATUS.QUEUED, _STATUS.STARTING, _STATUS.STARTED, _STATUS.CANCELING]
_ENDED_STATUSES = [_STATUS.FAILURE, _STATUS.CANCELED, _STATUS.SUCCESS]
_MADE_FROM = "gradcamo/made_from"
MAX_REQUESTS = 200
"""Maximum number of unfinished runs of a job. More requests at once would exceed the time limit of a tick."""
_UNFINISHED_WORK_WINDOW = timedelta(hours=1)
"""Runs that succeed but leave their partition out of date indicate a fault: at most ``MAX_ATTEMPTS`` per this time."""


def partitions_in_progress(instance: dg.DagsterInstance) -> set[str | None]:
    """The partitions of unfinished runs."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_STATUSES))
    return {run.tags.get(PARTITION) for run in runs}


def partition_requests(
    instance: dg.DagsterInstance,
    job: str,
    todo: Mapping[Partition, str],
    busy: set[str | None],
    now: datetime,
    tags: Mapping[str, str] | None = None,
) -> tuple[list[dg.RunRequest], dict[Partition, str]]:
    """Create the requests of ``job`` for out-of-date partitions without unfinished runs.

    ``retries.decide_retry`` decides when failed runs are repeated. The run key contains the number of finished runs,
    since Dagster accepts a run key once, even if its run was killed.

    Args:
        instance: the Dagster instance with the runs.
        job: name of the job.
        todo: the out-of-date partitions, with the version of their input. Attempts are counted per version.
        busy: partitions of unfinished runs, see ``partitions_in_progress``.
        now: the current time, with a time zone.
        tags: tags of the runs.

    Returns:
        The requests, and by partition the reasons why others are not requested any more.
    """
    free = [(key, made_from) for key, made_from in todo.items() if str(plate_site_key(*key)) not in busy]
    unfinished = instance.get_run_ids(dg.RunsFilter(job_name=job, statuses=UNFINISHED_STATUSES), limit=MAX_REQUESTS)
    room = MAX_REQUESTS - len(unfinished)
    requests: list[dg.RunRequest] = []
    given_up = {}
    for start in range(0, len(free), MAX_REQUESTS):
        if len(requests) >= room:
            break
        batch = free[start : start + MAX_REQUESTS]
        ended_runs = _ended_runs(instance, job, {made_from for _, made_from in batch})
        for (plate, site), made_from in batch:
            key = plate_site_key(plate, site)
            ended = ended_runs[str(key), made_from]
            failed = [record for record in ended if record.dagster_run.status != _STATUS.SUCCESS]
            retry = decide_retry([_ended_at(record) for record in failed], now)
            if retry.given_up:
                run = failed[-1].dagster_run.run_id
                given_up[plate, site] = f"{job} failed {len(failed)} times: see run {run}, then launch the job by hand"
            elif (
                len(ended) - len(failed) >= MAX_ATTEMPTS
                and now - _ended_at(ended[-MAX_ATTEMPTS]) < _UNFINISHED_WORK_WINDOW
            ):
                run = ended[-1].dagster_run.run_id
                given_up[plate, site] = f"{job} succeeded {MAX_ATTEMPTS} times without effect: see run {run}"
            elif retry.due and len(requests) < room:
                request = dg.RunRequest(
                    run_key=f"{job} {plate} {site} {made_from} {len(ended)}",
                    job_name=job,
                    partition_key=key,
                    tags={**(tags or {}), _MADE_FROM: made_from},
                )
                requests.append(request)
    return requests, given_up


def _ended_runs(
    instance: dg.DagsterInstance, job: str, made_from: set[str]
) -> Mapping[tuple[str | None, str | None], list[dg.RunRecord]]:
    """The finished runs that were requested, oldest first, by partition and version of the input."""
    ended_runs = defaultdict(list)
    runs = dg.RunsFilter(job_name=job, statuses=_ENDED_STATUSES, tags={_MADE_FROM: sorted(made_from)})
    for record in sorted(instance.get_run_records(runs), key=_ended_at):
        tags = record.dagster_run.tags
        ended_runs[tags.get(PARTITION), tags.get(_MADE_FROM)].append(record)
    return ended_runs


def _ended_at(record: dg.RunRecord) -> datetime:
    return datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)
