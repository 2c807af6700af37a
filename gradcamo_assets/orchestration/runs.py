"""What Dagster knows of runs: which partitions are being worked on, which were tried, and which may be asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg

from gradcamo_assets.common.provenance import digest
from gradcamo_assets.orchestration.partitions import plate_site_key
from gradcamo_assets.scoring.reconcile import Partition

PARTITION = "dagster/partition"
_STATUS = dg.DagsterRunStatus
# Not NOT_STARTED: a run that a daemon left behind there would be waited for in vain.
UNFINISHED = [_STATUS.QUEUED, _STATUS.STARTING, _STATUS.STARTED, _STATUS.CANCELING]
ENDED_BADLY = [_STATUS.FAILURE, _STATUS.CANCELED]
_ENDED = [*ENDED_BADLY, _STATUS.SUCCESS]
_MOVE, _CROPS, _VERSION = "gradcamo/move", "gradcamo/crops", "gradcamo/model_version"
_PAUSE = timedelta(minutes=10)
ATTEMPTS = 3
"""How often a partition is asked for before a person has to look."""


def in_progress(instance: dg.DagsterInstance) -> set[str | None]:
    """Partitions that some run is busy with or queued for."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {run.tags.get(PARTITION) for run in runs}


def ended_at(record: dg.RunRecord) -> float:
    """When a run ended, in seconds since 1970."""
    return record.end_time or record.update_timestamp.timestamp()


def _now() -> float:
    return datetime.now(UTC).timestamp()


def score_requests(
    instance: dg.DagsterInstance,
    todo: Mapping[Partition, frozenset[str]],
    busy: set[str | None],
    move: str,
    version: int,
) -> tuple[list[dg.RunRequest], dict[Partition, str]]:
    """Requests of ``rescore`` for partitions that nobody works on, and why others are given up.

    A run that ended without the scores is repeated ten minutes later, twice. The number of those runs stands in the run
    key: a key is used once for ever, and one that was used by a run that died would never be scored.

    Args:
        todo: what is to be scored, with its crop versions. busy: see ``in_progress``.
        move: of the champion alias; another move, or other crops, begin anew. version: the champion's.
    """
    free = {p: digest(sorted(crops)) for p, crops in todo.items() if str(plate_site_key(*p)) not in busy}
    tried: dict[tuple[str | None, str | None], list[dg.RunRecord]] = defaultdict(list)
    if free:
        of_this_move = dg.RunsFilter(job_name="rescore", statuses=_ENDED, tags={_MOVE: move})
        for record in instance.get_run_records(of_this_move):
            tags = record.dagster_run.tags
            tried[tags.get(PARTITION), tags.get(_CROPS)].append(record)
    requests, given_up = [], {}
    for (plate, site), crops in free.items():
        key = plate_site_key(plate, site)
        records = tried[str(key), crops]
        if len(records) >= ATTEMPTS:
            last = max(records, key=ended_at).dagster_run.run_id
            given_up[plate, site] = (
                f"rescore ended {len(records)} times without scores: see run {last}, launch it by hand"
            )
        elif _now() - max(map(ended_at, records), default=0) >= _PAUSE.total_seconds():
            request = dg.RunRequest(
                run_key=f"{move} {plate} {site} {crops} {len(records)}",
                job_name="rescore",
                partition_key=key,
                tags={_VERSION: str(version), _MOVE: move, _CROPS: crops},
            )
            requests.append(request)
    return requests, given_up
