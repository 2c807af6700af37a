"""Jobs and sensors for training, scoring, publication and reports; the lists of all jobs, schedules and sensors.

Each partition is requested by one sensor, schedule or automation condition only. A failed report is requested again by
the automation condition.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import dagster as dg

from gradcamo_assets.defs.automation.alerts import alert_on_failure
from gradcamo_assets.defs.automation.inbox_automation import (
    inbox_sensor,
    ingest_plates,
    nightly_ingest,
    process_fields,
)
from gradcamo_assets.defs.automation.lake_maintenance import nightly_tidying, tidy_lake
from gradcamo_assets.defs.automation.pending import (
    Partition,
    has_classes,
    plates_unknown_to_models,
    record_refusals,
    scoring_state,
)
from gradcamo_assets.defs.automation.run_requests import (
    MAX_REQUESTS,
    UNFINISHED_STATUSES,
    partition_requests,
    partitions_in_progress,
)
from gradcamo_assets.defs.partitions import PLATES, SITES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.networks.bundle import read_verified_config
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables import is_checked, needs_publication
from gradcamo_assets.training.model_registry import CHAMPION
from gradcamo_assets.training.promotion import champion_moves, record_champion

_RUNNING_SENSOR = dg.DefaultSensorStatus.RUNNING
_MAX_PUBLICATIONS = 1000
_PUBLICATION_SECONDS = 600
"""Time between publications while plates are processed or scored, or publications fail: each takes seconds."""

train_model = dg.define_asset_job(
    "train_model",
    selection=["data_split", "trained_model"],
    description="Split the wells, train an encoder and register it in MLflow.",
)
promote_challenger = dg.define_asset_job(
    "promote_challenger",
    selection=["promotion"],
    description="Promote the challenger to champion if it passes all checks; otherwise report the reasons.",
)
rescore = dg.define_asset_job(
    "rescore",
    selection=["embeddings", "gradcamo_scores"],
    description="Embed and score the cells of a plate x site with the current champion.",
    # Without a limit, a run whose machine was lost would block its partition and the pool for ever.
    tags={"dagster/max_runtime": 6 * 3600},
)
refresh_qc = dg.define_asset_job(
    "refresh_qc",
    selection=["qc_database", "model_comparison", "profiles", "umap", "replicability", "confounder_audit"],
    description="Publish the QC database, and update the profiles and what depends on them.",
)
audit_plates = dg.define_asset_job(
    "audit_plates",
    selection=["audit", "channel_correlation"],
    description="Audit the champion's maps of a plate by changing images and weights; correlate its stains.",
)
report_plates = dg.define_asset_job(
    "report_plates",
    selection=["qc_report"],
    description="Write the report of a plate from the published QC database.",
)
explore_encoders = dg.define_asset_job(
    "explore_encoders",
    selection=["encoder_exploration"],
    description="Explain a version at several layers; train small encoders with several crop sizes and maskings.",
)
JOBS: list[Any] = [
    ingest_plates, process_fields, train_model, promote_challenger, rescore, refresh_qc, audit_plates, report_plates,
    explore_encoders, tidy_lake,
]  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)


@dg.sensor(
    jobs=[rescore, refresh_qc],
    minimum_interval_seconds=15,
    default_status=_RUNNING_SENSOR,
    description="Requests the scoring of all crops that the champion has not scored.",
)
def champion_model_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """Look up the champion and request every plate x site that it has not scored.

    If the registry cannot be reached, the tick fails and the cursor is unchanged.
    """
    lake, registry = platform.lake, platform.registry
    with _short_mlflow_timeouts():
        champion = registry.by_alias(CHAMPION)
        record_champion(lake, registry, by="unknown")
    if champion is None:
        return dg.SensorResult(skip_reason="There is no champion. Launch train_model, or set the alias in MLflow.")
    # The run keys contain the number of the move, since a rollback returns to an MLflow run that was champion before.
    move = f"move {len(champion_moves(lake, registry.name))} to version {champion.version}"
    new = context.cursor != move
    if new:  # A damaged bundle fails this tick rather than every run.
        read_verified_config(registry.fetch(champion))
    # Read the unfinished runs before the lake: the versions of runs that end in between are in the lake.
    busy = partitions_in_progress(context.instance)
    state = scoring_state(lake, registry, champion)
    todo = {partition: digest([move, version]) for partition, version in state.todo.items()}
    tags = {"gradcamo/move": move, "gradcamo/model_version": str(champion.version)}
    requests, given_up = partition_requests(context.instance, "rescore", todo, busy, _now(), tags)
    record_refusals(lake, champion, state.refused | given_up)
    events = []
    if new:
        metadata: dict[str, int | str] = {"model_version": champion.version, "mlflow_run": champion.run_id}
        events.append(
            dg.AssetMaterialization(
                "champion_model",
                description=move,
                metadata=metadata,
                tags={"dagster/data_version": champion.run_id},
            )
        )
    if new and not todo and context.cursor is not None:
        # A rollback needs no new scores, but the results made from scores must be updated.
        requests = [dg.RunRequest(run_key=f"{move} refresh", job_name="refresh_qc")]
    reasons = sorted({f"{plate}: {reason}" for (plate, _), reason in state.refused.items()})
    reasons += [f"{plate} site {site}: {reason}" for (plate, site), reason in given_up.items()]
    waiting = "Nothing to score." if not todo else f"{len(todo)} plate x site wait for unfinished runs or for a retry."
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(" ".join([waiting, *reasons])),
        asset_events=events,
        dynamic_partitions_requests=_missing_partitions(context.instance, todo),
        cursor=move,
    )


@dg.sensor(
    jobs=[refresh_qc],
    minimum_interval_seconds=10,
    default_status=_RUNNING_SENSOR,
    description="Publishes the QC database when the lake has changed.",
)
def publication_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult | dg.SkipReason:
    """Request a publication if the lake differs from what was published last, or if that was not checked.

    While plates are being processed or scored, and after a failure, the last request must be ten minutes old. The
    cursor is its time: events of runs have the time of their machine, whose clock may be wrong.
    """
    database = platform.home.database
    if not needs_publication(platform.lake, database) and is_checked(database):
        return dg.SkipReason("The QC database is up to date.")
    unfinished = {run.job_name for run in context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_STATUSES))}
    if "refresh_qc" in unfinished:
        return dg.SkipReason("A publication is in progress.")
    busy = sorted(unfinished & {"ingest_plates", "process_fields", "rescore"})
    now = _now().timestamp()
    last = context.instance.get_runs(dg.RunsFilter(job_name="refresh_qc"), limit=1)
    if last and last[0].status == dg.DagsterRunStatus.FAILURE:
        busy.append(f"a remedy of what made run {last[0].run_id} fail")
    if busy and now - float(context.cursor or 0) < _PUBLICATION_SECONDS:
        return dg.SkipReason(f"Waits for {', '.join(busy)}, or until the last publication is ten minutes old.")
    request = dg.RunRequest(job_name="refresh_qc", asset_selection=[dg.AssetKey("qc_database")])
    return dg.SensorResult(run_requests=[request], cursor=str(now))


@dg.sensor(
    jobs=[report_plates],
    minimum_interval_seconds=10,
    default_status=_RUNNING_SENSOR,
    description="Writes the reports of plates that publications changed.",
)
def report_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request reports of plates that publications changed since the last tick, at most ``MAX_REQUESTS`` at a time."""
    before = json.loads(context.cursor or '{"publication": 0, "waiting": []}')
    published = dg.AssetRecordsFilter(dg.AssetKey("qc_database"), after_storage_id=before["publication"])
    records = context.instance.fetch_materializations(published, limit=_MAX_PUBLICATIONS, ascending=True).records
    waiting, last = dict.fromkeys(before["waiting"]), before["publication"]
    for record in records:
        last = record.storage_id
        touched = record.asset_materialization.metadata.get("plates_touched") if record.asset_materialization else None
        waiting |= dict.fromkeys(touched.value if isinstance(touched, dg.JsonMetadataValue) else [])  # type: ignore[arg-type]
    unfinished = dg.RunsFilter(job_name="report_plates", statuses=UNFINISHED_STATUSES)
    room = MAX_REQUESTS - len(context.instance.get_run_ids(unfinished, limit=MAX_REQUESTS))
    now, later = list(waiting)[:room], list(waiting)[room:]
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"report {plate} {last}", partition_key=plate) for plate in now],
        skip_reason=None if now else f"No publication changed a plate; {len(later)} reports wait for unfinished runs.",
        cursor=json.dumps({"publication": last, "waiting": later}),
    )


@contextmanager
def _short_mlflow_timeouts() -> Iterator[None]:
    """Shorten MLflow's timeouts: by default it repeats requests for four minutes, but a tick may take one minute."""
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    added = {name: value for name, value in short.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _missing_partitions(
    instance: dg.DagsterInstance, todo: Iterable[Partition]
) -> list[dg.AddDynamicPartitionsRequest]:
    """Requests to add the plates and sites that Dagster does not know, as after its instance was recreated."""
    requests = []
    for definition, names in ((PLATES, {plate for plate, _ in todo}), (SITES, {str(site) for _, site in todo})):
        if missing := sorted(names - set(instance.get_dynamic_partitions(str(definition.name)))):
            requests.append(definition.build_add_request(missing))
    return requests


@dg.sensor(
    jobs=[train_model],
    minimum_interval_seconds=300,
    default_status=_RUNNING_SENSOR,
    description="Trains a challenger after the number of new plates in [retraining] of gradcamo.toml; 0: never.",
)
def retraining_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.RunRequest | dg.SkipReason:
    """Request training when enough plates have crops that no registered version has used.

    Also end the MLflow runs of trainings whose machine was lost.
    """

    def has_ended(run_id: str) -> bool:
        # A run that is not known here may be one of another Dagster instance with the same registry.
        run = context.instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    with _short_mlflow_timeouts():
        platform.registry.end_lost_runs(has_ended)
    required = platform.settings.retraining.after_plates
    if not required:
        return dg.SkipReason("Disabled. Set after_plates in [retraining] of gradcamo.toml.")
    with _short_mlflow_timeouts():
        unused = plates_unknown_to_models(platform.lake, platform.registry)
    # has_classes reads the lake: stop at the required number of plates.
    plates = list(islice((plate for plate in unused if has_classes(platform.lake, plate)), required))
    if len(plates) < required:
        return dg.SkipReason(f"{len(plates)} of {required} new plates{': ' * bool(plates)}{', '.join(plates)}.")
    if context.instance.get_runs(dg.RunsFilter(job_name="train_model", statuses=UNFINISHED_STATUSES), limit=1):
        return dg.SkipReason("A training is in progress.")
    # One request for these plates: a failed training is not repeated until there is another new plate.
    return dg.RunRequest(run_key=f"retrain {digest(unused)}", tags={"gradcamo/new_plates": ", ".join(plates)[:250]})


weekly_training = dg.ScheduleDefinition(
    "weekly_training",
    job=train_model,
    cron_schedule="0 3 * * 6",
    description="Trains a challenger on all plates every Saturday at 03:00. Disabled by default.",
)
automation_sensor = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=_RUNNING_SENSOR,
    minimum_interval_seconds=30,
    description="Updates profiles, UMAPs and audits when scores have changed; repeats those and reports that failed.",
)
SCHEDULES = [nightly_ingest, nightly_tidying, weekly_training]
SENSORS = [
    inbox_sensor, champion_model_sensor, publication_sensor, report_sensor, retraining_sensor, automation_sensor,
    alert_on_failure,
]  # fmt: skip
