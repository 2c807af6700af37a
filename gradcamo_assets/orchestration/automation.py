"""Jobs, the nightly schedule and the sensors. Each partition is asked for by one mechanism only."""

import json

import dagster as dg

from gradcamo_assets.common.provenance import digest
from gradcamo_assets.learning.promotion import champion_moves, record_champion, record_versions
from gradcamo_assets.learning.registry import CHAMPION
from gradcamo_assets.orchestration.partitions import PLATES, plate_site_key
from gradcamo_assets.orchestration.reconcile import partitions_without_crops, record_refusals, scoring_state
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.plates import InboxState, known_plates, list_inbox, plates_to_ingest
from gradcamo_assets.plates.hcs import name_of

_RUNNING_SENSOR, _RUNNING_SCHEDULE = dg.DefaultSensorStatus.RUNNING, dg.DefaultScheduleStatus.RUNNING

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
train_model = dg.define_asset_job(
    "train_model",
    selection=["data_split", "trained_model"],
    description="Split the wells, train an encoder on them and register it in MLflow.",
)
rescore = dg.define_asset_job(
    "rescore",
    selection=["embeddings", "gradcamo_scores"],
    description="Embed and score a plate x site with the champion of the moment.",
)
refresh_qc = dg.define_asset_job(
    "refresh_qc",
    selection=["qc_database", "profiles", "umap", "replicability", "confounder_audit"],
    description="Publish the QC database, and make profiles and what is read from them anew.",
)
audit_plates = dg.define_asset_job(
    "audit_plates",
    selection=["audit"],
    description="Hold the champion's maps of a plate against what it does when image or weights are changed.",
)
report_plates = dg.define_asset_job(
    "report_plates",
    selection=["qc_report"],
    description="Write the report of a plate from the published QC database.",
)
JOBS = [ingest_plates, process_fields, train_model, rescore, refresh_qc, audit_plates, report_plates]


def _inbox(platform: Platform) -> tuple[InboxState, dict[str, str]]:
    """The state of the inbox, and the signature of each plate that is ready."""
    known = known_plates(platform.home.plates)
    found = list_inbox(platform.home.inbox, known)
    state = plates_to_ingest(found, known)
    return state, {name_of(path): found[path] for path in state.ready}


@dg.schedule(
    job=ingest_plates,
    cron_schedule="0 2 * * *",
    default_status=_RUNNING_SCHEDULE,
    description="Every night at 02:00: what is in the inbox less what is known. A missed night loses nothing.",
)
def nightly_ingest(context: dg.ScheduleEvaluationContext, platform: Platform) -> list[dg.RunRequest] | dg.SkipReason:
    """Request a run for every plate of the inbox that is not known yet."""
    state, ready = _inbox(platform)
    for place, problem in state.problems.items():
        context.log.warning(f"{place}: {problem}")
    if not ready:
        return dg.SkipReason("No new plate in the inbox. " + " ".join(state.problems.values()))
    context.instance.add_dynamic_partitions(str(PLATES.name), sorted(ready))
    night = context.scheduled_execution_time.date().isoformat()
    return [dg.RunRequest(run_key=f"{night} {name} {ready[name]}", partition_key=name) for name in sorted(ready)]


@dg.sensor(
    jobs=[ingest_plates, process_fields],
    minimum_interval_seconds=30,
    default_status=_RUNNING_SENSOR,
    description="New plates are taken in once they have stopped changing; ingested plates are segmented and cropped.",
)
def inbox_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """Request plates that look the same as at the last tick, and the fields of plates that are in."""
    state, ready = _inbox(platform)
    before = json.loads(context.cursor) if context.cursor else {}
    stable = sorted(name for name, signature in ready.items() if before.get(name) == signature)
    requests = [
        dg.RunRequest(run_key=f"ingest {name} {ready[name]}", job_name="ingest_plates", partition_key=name)
        for name in stable
    ]
    known = known_plates(platform.home.plates)
    for plate, site in partitions_without_crops(platform.lake):
        signature = known.get(plate, {}).get("signature", "")
        requests.append(
            dg.RunRequest(
                run_key=f"fields {plate} {site} {signature}",
                job_name="process_fields",
                partition_key=plate_site_key(plate, site),
            )
        )
    waiting = [f"{name} is waited for until it stops changing." for name in sorted(set(ready) - set(stable))]
    notes = " ".join([*waiting, *(f"{place}: {problem}" for place, problem in state.problems.items())])
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(notes or "Nothing new."),
        dynamic_partitions_requests=[PLATES.build_add_request(stable)] if stable else [],
        cursor=json.dumps(ready, sort_keys=True),
    )


@dg.sensor(
    jobs=[rescore, refresh_qc],
    minimum_interval_seconds=15,
    default_status=_RUNNING_SENSOR,
    description="Requests what has crops, less what the champion has scored for these crops.",
)
def champion_model_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """Ask the registry who is champion, and request every plate x site it has not scored.

    An unreachable registry is an error of this tick; the cursor stays where it was.
    """
    home, lake, registry = platform.home, platform.lake, platform.registry
    champion = registry.by_alias(CHAMPION)
    moved = record_champion(lake, registry, by="unknown")
    if champion is None:
        return dg.SensorResult(skip_reason="No champion yet. Launch train_model, or move the alias in MLflow.")
    # A rollback has the version of an earlier move: only the number of the move keeps its requests apart.
    move = f"move {len(champion_moves(lake, registry.name))} to version {champion.version}"
    state = scoring_state(home, lake, registry, champion)
    record_refusals(lake, champion, state.refused)
    requests = [
        dg.RunRequest(
            run_key=f"{move} {plate} {site} {digest(sorted(state.crops[plate, site]))}",
            job_name="rescore",
            partition_key=plate_site_key(plate, site),
            tags={"gradcamo/model_version": str(champion.version)},
        )
        for plate, site in state.todo
    ]
    events = []
    if context.cursor != move:
        record_versions(lake, registry)
        events.append(
            dg.AssetMaterialization(
                "champion_model",
                description=move,
                metadata={"model_version": champion.version, "mlflow_run": champion.run_id},
            )
        )
        if not requests and (moved or context.cursor is not None):
            # A rollback to a version that has scored already computes nothing: it republishes.
            requests.append(dg.RunRequest(run_key=f"{move} refresh", job_name="refresh_qc"))
    reasons = sorted({f"{plate}: {reason}" for (plate, _), reason in state.refused.items()})
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(" ".join(["Nothing to score.", *reasons])),
        asset_events=events,
        cursor=move,
    )


automation_sensor = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=_RUNNING_SENSOR,
    minimum_interval_seconds=30,
    description="Publishes the QC database, reports, profiles and maps when scores have changed.",
)
SCHEDULES = [nightly_ingest]
SENSORS = [inbox_sensor, champion_model_sensor, automation_sensor]
