"""What Dagster knows of runs: which partitions are being worked on, which were tried, and which may be asked for."""

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
# Not NOT_STARTED: a run that a daemon left behind there would be waited for in vain.
UNFINISHED = [_STATUS.QUEUED, _STATUS.STARTING, _STATUS.STARTED, _STATUS.CANCELING]
_ENDED = [_STATUS.FAILURE, _STATUS.CANCELED, _STATUS.SUCCESS]
_MADE_FROM = "gradcamo/made_from"
MOST_REQUESTS = 200
"""Runs of a job that wait or go on at a time: asking for all at once would outlast a tick."""
_FRUITLESS = timedelta(hours=1)
"""Runs that succeed and leave their partition undone show a fault: at most ``MAX_ATTEMPTS`` of them in this time."""


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

    ``retries`` says when runs that failed are repeated. The number of runs that have ended stands in the run
    key: a key is used once for ever, and one that was used by a run that died would never be asked for again.

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
            failed = [record for record in ended if record.dagster_run.status != _STATUS.SUCCESS]
            answer = decide_retry([_ended_at(record) for record in failed], now)
            if answer.given_up:
                run = failed[-1].dagster_run.run_id
                given_up[plate, site] = f"{job} failed {len(failed)} times: see run {run}, then launch it by hand"
            elif len(ended) - len(failed) >= MAX_ATTEMPTS and now - _ended_at(ended[-MAX_ATTEMPTS]) < _FRUITLESS:
                run = ended[-1].dagster_run.run_id
                given_up[plate, site] = f"{job} succeeded {MAX_ATTEMPTS} times and left it undone: see run {run}"
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
) -> Mapping[tuple[str | None, str | None], list[dg.RunRecord]]:
    """Runs that were asked for and have ended, the last one last, by partition and what they began with."""
    tried = defaultdict(list)
    wanted = dg.RunsFilter(job_name=job, statuses=_ENDED, tags={_MADE_FROM: sorted(made_from)})
    for record in sorted(instance.get_run_records(wanted), key=_ended_at):
        tags = record.dagster_run.tags
        tried[tags.get(PARTITION), tags.get(_MADE_FROM)].append(record)
    return tried


def _ended_at(record: dg.RunRecord) -> datetime:
    return datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)
