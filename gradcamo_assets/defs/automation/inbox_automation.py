"""Ingest, segment and crop new plates automatically: the nightly schedule, the inbox sensor and their jobs."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg

from gradcamo_assets.defs.automation.pending import Inbox, partitions_to_process, read_inbox
from gradcamo_assets.defs.automation.run_requests import MAX_REQUESTS, partition_requests, partitions_in_progress
from gradcamo_assets.defs.partitions import PLATES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.plates import PlateState

ingest_plates = dg.define_asset_job(
    "ingest_plates",
    selection=["plate_images"],
    description="Ingest a plate from the inbox: check and copy it, measure its intensities.",
)
process_fields = dg.define_asset_job(
    "process_fields",
    selection=["masks", "cells", "crops"],
    description="Segment the fields of a plate x site, tabulate their cells and crop them.",
)


def _now() -> datetime:
    return datetime.now(UTC)


def _ready_plates(inbox: Inbox, busy: set[str | None]) -> list[PlateState]:
    ready = [state for state in inbox.states if state.state == "ready" and state.name not in busy]
    return ready[:MAX_REQUESTS]


def _state_reasons(states: Iterable[PlateState]) -> list[str]:
    return [f"{state.name} ({state.state}): {state.reason}" for state in states if state.reason]


@dg.schedule(
    job=ingest_plates,
    cron_schedule="0 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Ingests new plates in the inbox every night at 02:00. A missed night is made up for by the next.",
)
def nightly_ingest(context: dg.ScheduleEvaluationContext, platform: Platform) -> list[dg.RunRequest] | dg.SkipReason:
    """Request a run for every plate in the inbox that is complete, new and not waiting after a failure."""
    inbox = read_inbox(platform.home, _now())
    for note in _state_reasons(inbox.states):
        context.log.warning(note)
    ready = _ready_plates(inbox, partitions_in_progress(context.instance))
    if not ready:
        return dg.SkipReason(" ".join(["No new plates in the inbox.", *_state_reasons(inbox.states)]))
    context.instance.add_dynamic_partitions(str(PLATES.name), [state.name for state in ready])
    night = context.scheduled_execution_time.date().isoformat()
    return [
        dg.RunRequest(run_key=f"{night} {state.name} {inbox.signature(state)}", partition_key=state.name)
        for state in ready
    ]


@dg.sensor(
    jobs=[ingest_plates, process_fields],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ingests new plates once they have stopped changing; segments and crops ingested plates.",
)
def inbox_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """Request the ingestion of complete plates and the processing of the fields of ingested plates."""
    now = _now()
    before = json.loads(context.cursor) if context.cursor else {}
    inbox = read_inbox(platform.home, now, before)
    busy = partitions_in_progress(context.instance)
    ready = _ready_plates(inbox, busy)
    fields, failed = partition_requests(
        context.instance, "process_fields", partitions_to_process(platform.lake), busy, now
    )
    given_up = [f"{plate} site {site}: {reason}." for (plate, site), reason in failed.items()]
    requests = [*(_ingest_request(inbox, state, now) for state in ready), *fields][:MAX_REQUESTS]
    unsettled = [state for state in inbox.states if state.state in ("ready", "copying")]
    looks = {state.name: inbox.found[state.path] for state in unsettled}
    names = [state.name for state in ready]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None
        if requests
        else dg.SkipReason(" ".join([*_state_reasons(inbox.states), *given_up]) or "No new plates or fields."),
        dynamic_partitions_requests=[PLATES.build_add_request(names)] if names else [],
        cursor=json.dumps(
            {name: _unchanged_since(look.token, before.get(name), now) for name, look in looks.items() if look}
        ),
    )


def _unchanged_since(token: str, before: tuple[str, float] | None, now: datetime) -> tuple[str, float]:
    """The token of a plate, and the time since which it has been the same; never later than now.

    The time of the previous look can lie in the future if the clock was set back.
    """
    since = before[1] if before is not None and before[0] == token else now.timestamp()
    return token, min(since, now.timestamp())


def _ingest_request(inbox: Inbox, state: PlateState, now: datetime) -> dg.RunRequest:
    """The request to ingest a plate.

    Dagster accepts a run key once. The number of attempts distinguishes retries; the date allows another run if one
    ended before its first step.
    """
    failures = inbox.failures.get(state.name)
    attempt = f"{len(failures.attempts)}.{failures.retries}" if failures else "0"
    key = f"ingest {state.name} {inbox.signature(state)} {attempt} {now.date()}"
    return dg.RunRequest(run_key=key, job_name="ingest_plates", partition_key=state.name)
