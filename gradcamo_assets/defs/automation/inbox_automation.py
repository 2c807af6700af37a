"""From the inbox to the crops without anybody asking: the nightly schedule, the sensor of the inbox, and their jobs."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg

from gradcamo_assets.defs.automation.pending import Inbox, partitions_to_process, read_inbox
from gradcamo_assets.defs.automation.run_requests import MOST_REQUESTS, in_progress, partition_requests
from gradcamo_assets.defs.partitions import PLATES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.plates import PlateState

ingest_plates = dg.define_asset_job(
    "ingest_plates",
    selection=["plate_images"],
    description="Take a plate in from the inbox: check it, copy it, measure its intensities.",
)
process_fields = dg.define_asset_job(
    "process_fields",
    selection=["masks", "cells", "crops"],
    description="Segment the fields of a plate x site, tabulate their cells and cut them out.",
)


def _now() -> datetime:
    return datetime.now(UTC)


def _ready(inbox: Inbox, busy: set[str | None]) -> list[PlateState]:
    ready = [state for state in inbox.states if state.state == "ready" and state.name not in busy]
    return ready[:MOST_REQUESTS]


def _notes(states: Iterable[PlateState]) -> list[str]:
    return [f"{state.name} ({state.state}): {state.reason}" for state in states if state.reason]


@dg.schedule(
    job=ingest_plates,
    cron_schedule="0 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 02:00: what is in the inbox less what is known. A missed night loses nothing.",
)
def nightly_ingest(context: dg.ScheduleEvaluationContext, platform: Platform) -> list[dg.RunRequest] | dg.SkipReason:
    """Request a run for every plate of the inbox that is complete, not known, and has not just failed."""
    inbox = read_inbox(platform.home, _now())
    for note in _notes(inbox.states):
        context.log.warning(note)
    ready = _ready(inbox, in_progress(context.instance))
    if not ready:
        return dg.SkipReason(" ".join(["No new plate in the inbox.", *_notes(inbox.states)]))
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
    description="New plates are taken in once they have stopped changing; ingested plates are segmented and cropped.",
)
def inbox_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """Request plates that are complete, and the fields of plates that are in."""
    now = _now()
    before = json.loads(context.cursor) if context.cursor else {}
    inbox = read_inbox(platform.home, now, before)
    busy = in_progress(context.instance)
    ready = _ready(inbox, busy)
    fields, failed = partition_requests(
        context.instance, "process_fields", partitions_to_process(platform.lake), busy, now
    )
    given_up = [f"{plate} site {site}: {reason}." for (plate, site), reason in failed.items()]
    requests = [*(_ingest_request(inbox, state, now) for state in ready), *fields][:MOST_REQUESTS]
    looks = {state.name: inbox.found[state.path] for state in inbox.states if state.state in ("ready", "copying")}
    names = [state.name for state in ready]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(" ".join([*_notes(inbox.states), *given_up]) or "Nothing new."),
        dynamic_partitions_requests=[PLATES.build_add_request(names)] if names else [],
        cursor=json.dumps({name: _since(look.token, before.get(name), now) for name, look in looks.items() if look}),
    )


def _since(token: str, before: tuple[str, float] | None, now: datetime) -> tuple[str, float]:
    """A look that lies ahead of a clock that was set back tells nothing."""
    then = before[1] if before is not None and before[0] == token else now.timestamp()
    return token, min(then, now.timestamp())


def _ingest_request(inbox: Inbox, state: PlateState, now: datetime) -> dg.RunRequest:
    """A key is used once for ever: the attempts keep retries apart, the date a run that ended before its first step."""
    failed = inbox.failures.get(state.name)
    attempt = f"{len(failed.attempts)}.{failed.retries}" if failed else "0"
    key = f"ingest {state.name} {inbox.signature(state)} {attempt} {now.date()}"
    return dg.RunRequest(run_key=key, job_name="ingest_plates", partition_key=state.name)
