"""What Dagster knows of runs: which partitions are being worked on, which were tried, and which may be asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime

import dagster as dg

from gradcamo_assets.common.attempts import next_try
from gradcamo_assets.orchestration.partitions import plate_site_key
from gradcamo_assets.orchestration.reconcile import Partition

PARTITION = "dagster/partition"
_STATUS = dg.DagsterRunStatus
# Not NOT_STARTED: a run that a daemon left behind there would be waited for in vain.
UNFINISHED = [_STATUS.QUEUED, _STATUS.STARTING, _STATUS.STARTED, _STATUS.CANCELING]
_ENDED = [_STATUS.FAILURE, _STATUS.CANCELED, _STATUS.SUCCESS]
_MADE_FROM = "gradcamo/made_from"
MOST_REQUESTS = 200
"""Runs of a job that wait or go on at a time: asking for all at once would outlast a tick."""


def in_progress(instance: dg.DagsterInstance) -> set[str | None]:
    """Partitions that some run is busy with or queued for."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {run.tags.get(PARTITION) for run in runs}


def partition_requests(
    instance: dg.DagsterInstance,
    job: str,
    todo: Mapping[Partition, str],
    busy: set[str | None],
    now: datetime,
    tags: Mapping[str, str] | None = None,
) -> tuple[list[dg.RunRequest], dict[Partition, str]]:
    """Requests of ``job`` for partitions that nobody works on, and why others are given up.

    A run that ended and left its partition to be done is one attempt; ``common.attempts`` says what follows. The number
    of attempts stands in the run key: a key is used once for ever, and one that was used by a run that died would never
    be asked for again.

    Args:
        todo: what is to be done, with what it is made from: another version begins anew.
        busy: see ``in_progress``. tags: of the runs.
    """
    free = [(key, made_from) for key, made_from in todo.items() if str(plate_site_key(*key)) not in busy]
    unfinished = instance.get_run_ids(dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=MOST_REQUESTS)
    room = MOST_REQUESTS - len(unfinished)
    requests: list[dg.RunRequest] = []
    given_up = {}
    for start in range(0, len(free), MOST_REQUESTS):
        if len(requests) >= room:
            break
        some = free[start : start + MOST_REQUESTS]
        tried = _tried(instance, job, {made_from for _, made_from in some})
        for (plate, site), made_from in some:
            key = plate_site_key(plate, site)
            ended = tried[str(key), made_from]
            answer = next_try([at for at, _ in ended], now)
            if answer.given_up:
                run = ended[-1][1]
                given_up[plate, site] = f"{job} failed {len(ended)} times: see run {run}, then launch it by hand"
            elif answer.due and len(requests) < room:
                request = dg.RunRequest(
                    run_key=f"{job} {plate} {site} {made_from} {len(ended)}",
                    job_name=job,
                    partition_key=key,
                    tags={**(tags or {}), _MADE_FROM: made_from},
                )
                requests.append(request)
    return requests, given_up


def _tried(
    instance: dg.DagsterInstance, job: str, made_from: set[str]
) -> Mapping[tuple[str | None, str | None], list[tuple[datetime, str]]]:
    """When runs ended that were asked for, the last one last, with their ids; by partition and what they began with."""
    tried = defaultdict(list)
    wanted = dg.RunsFilter(job_name=job, statuses=_ENDED, tags={_MADE_FROM: sorted(made_from)})
    for record in instance.get_run_records(wanted):
        at = datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)
        tags = record.dagster_run.tags
        tried[tags.get(PARTITION), tags.get(_MADE_FROM)].append((at, record.dagster_run.run_id))
    return defaultdict(list, {key: sorted(ended) for key, ended in tried.items()})
