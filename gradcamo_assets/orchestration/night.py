"""From the inbox to the crops without anybody asking: the nightly schedule, the sensor of the inbox, and their jobs."""

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg

from gradcamo_assets.orchestration.partitions import PLATES, plate_site_key
from gradcamo_assets.orchestration.reconcile import Inbox, partitions_without_crops, read_inbox
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.runs import ATTEMPTS, ENDED_BADLY, PARTITION, ended_at, in_progress
from gradcamo_assets.plates import PlateState, known_plates
from gradcamo_assets.scoring.reconcile import Partition

MOST_REQUESTS = 200
"""Runs asked for in one tick, which has 60 s; the next tick goes on."""
_PAUSE = timedelta(hours=1)
_MEMORY = timedelta(days=365)

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
    fields, given_up = _field_requests(platform, context.instance, busy, now)
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


def _field_requests(
    platform: Platform, instance: dg.DagsterInstance, busy: set[str | None], now: datetime
) -> tuple[list[dg.RunRequest], list[str]]:
    """Requests for the fields of plates that are in, and a note on each partition that failed too often.

    A failed run is repeated an hour later, twice; a plate that is taken in again starts anew.
    """
    failed: dict[Partition, list[dg.RunRecord]] = defaultdict(list)
    lately = dg.RunsFilter(job_name="process_fields", statuses=ENDED_BADLY, created_after=now - _MEMORY)
    for record in instance.get_run_records(lately):
        plate, site = (record.dagster_run.tags.get(f"{PARTITION}/{part}", "") for part in ("plate", "site"))
        if site.isdigit():
            failed[plate, int(site)].append(record)
    wanted = partitions_without_crops(platform.lake, {key: max(map(ended_at, runs)) for key, runs in failed.items()})
    known = known_plates(platform.home.plates) if wanted else {}
    requests, given_up = [], []
    for (plate, site_number), ingested in wanted.items():
        key = plate_site_key(plate, site_number)
        attempts = [record for record in failed[plate, site_number] if record.create_timestamp >= ingested]
        ended = max(map(ended_at, attempts), default=0)
        if len(attempts) >= ATTEMPTS:
            given_up.append(
                f"{plate} site {site_number}: process_fields failed {len(attempts)} times; launch it by hand."
            )
        elif str(key) not in busy and now.timestamp() - ended >= _PAUSE.total_seconds():
            signature = known.get(plate, "")
            run_key = f"fields {plate} {site_number} {signature} {ingested.isoformat()} {len(attempts)}"
            requests.append(dg.RunRequest(run_key=run_key, job_name="process_fields", partition_key=key))
    return requests, given_up
