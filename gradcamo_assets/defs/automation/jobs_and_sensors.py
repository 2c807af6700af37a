"""Jobs and sensors from the trained model on. Each partition is asked for by one mechanism only."""

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
    record_refusals,
    scoring_state,
    unlearned_plates,
)
from gradcamo_assets.defs.automation.run_requests import MOST_REQUESTS, UNFINISHED, in_progress, partition_requests
from gradcamo_assets.defs.partitions import PLATES, SITES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.networks.bundle import read_verified_config
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables import needs_publication
from gradcamo_assets.training.model_registry import CHAMPION
from gradcamo_assets.training.promotion import champion_moves, record_champion

_RUNNING_SENSOR = dg.DefaultSensorStatus.RUNNING
_MOST_PUBLICATIONS = 1000

train_model = dg.define_asset_job(
    "train_model",
    selection=["data_split", "trained_model"],
    description="Split the wells, train an encoder on them and register it in MLflow.",
)
promote_challenger = dg.define_asset_job(
    "promote_challenger",
    selection=["promotion"],
    description="Make the challenger champion if its evidence is not worse; else say why not.",
)
rescore = dg.define_asset_job(
    "rescore",
    selection=["embeddings", "gradcamo_scores"],
    description="Embed and score a plate x site with the champion of the moment.",
    # A run whose machine went away would be waited for, and keep the pool, for ever.
    tags={"dagster/max_runtime": 6 * 3600},
)
refresh_qc = dg.define_asset_job(
    "refresh_qc",
    selection=["qc_database", "model_comparison", "profiles", "umap", "replicability", "confounder_audit"],
    description="Publish the QC database, and make profiles and what is read from them anew.",
)
audit_plates = dg.define_asset_job(
    "audit_plates",
    selection=["audit", "channel_correlation"],
    description="Hold the champion's maps of a plate against changes of image and weights; correlate its stains.",
)
report_plates = dg.define_asset_job(
    "report_plates",
    selection=["qc_report"],
    description="Write the report of a plate from the published QC database.",
)
explore_encoders = dg.define_asset_job(
    "explore_encoders",
    selection=["encoder_exploration"],
    description="Explain a version at several layers; train small encoders on crops of other sizes and maskings.",
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
    description="Requests what has crops, less what the champion has scored for these crops.",
)
def champion_model_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """Ask the registry who is champion, and request every plate x site it has not scored.

    An unreachable registry is an error of this tick; the cursor stays where it was.
    """
    lake, registry = platform.lake, platform.registry
    with _impatient():
        champion = registry.by_alias(CHAMPION)
        record_champion(lake, registry, by="unknown")
    if champion is None:
        return dg.SensorResult(skip_reason="No champion yet. Launch train_model, or move the alias in MLflow.")
    # A rollback has the run of an earlier move: only the number of the move keeps its requests apart.
    move = f"move {len(champion_moves(lake, registry.name))} to version {champion.version}"
    new = context.cursor != move
    if new:  # A damaged bundle is one error here, not one in every run.
        read_verified_config(registry.fetch(champion))
    # Before the lake is read: a run that ends in between has left its versions.
    busy = in_progress(context.instance)
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
        # A rollback to a version that has scored already computes no score; what is read from scores follows.
        requests = [dg.RunRequest(run_key=f"{move} refresh", job_name="refresh_qc")]
    reasons = sorted({f"{plate}: {reason}" for (plate, _), reason in state.refused.items()})
    reasons += [f"{plate} site {site}: {reason}" for (plate, site), reason in given_up.items()]
    waiting = (
        "Nothing to score."
        if not todo
        else f"{len(todo)} plate x site wait for runs in progress, or to be tried again."
    )
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(" ".join([waiting, *reasons])),
        asset_events=events,
        dynamic_partitions_requests=_unknown_partitions(context.instance, todo),
        cursor=move,
    )


@dg.sensor(
    jobs=[refresh_qc],
    minimum_interval_seconds=30,
    default_status=_RUNNING_SENSOR,
    description="Publishes the QC database when the lake has changed, however often it has.",
)
def publication_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.RunRequest | dg.SkipReason:
    """Request one publication where the lake's versions differ from those that were published last."""
    if not needs_publication(platform.lake, platform.home.database):
        return dg.SkipReason("The QC database holds what the lake holds.")
    waiting = dg.RunsFilter(job_name="refresh_qc", statuses=UNFINISHED)
    if context.instance.get_run_ids(waiting, limit=1):
        return dg.SkipReason("A publication is on its way.")
    return dg.RunRequest(job_name="refresh_qc", asset_selection=[dg.AssetKey("qc_database")])


@dg.sensor(
    jobs=[report_plates],
    minimum_interval_seconds=30,
    default_status=_RUNNING_SENSOR,
    description="Writes the reports of the plates that publications have changed.",
)
def report_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request a report of every plate that was touched by a publication since the last tick, some at a time."""
    before = json.loads(context.cursor or '{"publication": 0, "waiting": []}')
    published = dg.AssetRecordsFilter(dg.AssetKey("qc_database"), after_storage_id=before["publication"])
    records = context.instance.fetch_materializations(published, limit=_MOST_PUBLICATIONS, ascending=True).records
    waiting, last = dict.fromkeys(before["waiting"]), before["publication"]
    for record in records:
        last = record.storage_id
        touched = record.asset_materialization.metadata.get("plates_touched") if record.asset_materialization else None
        waiting |= dict.fromkeys(touched.value if isinstance(touched, dg.JsonMetadataValue) else [])  # type: ignore[arg-type]
    unfinished = dg.RunsFilter(job_name="report_plates", statuses=UNFINISHED)
    room = MOST_REQUESTS - len(context.instance.get_run_ids(unfinished, limit=MOST_REQUESTS))
    now, later = list(waiting)[:room], list(waiting)[room:]
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"report {plate} {last}", partition_key=plate) for plate in now],
        skip_reason=None if now else f"No publication has changed a plate; {len(later)} reports wait for others.",
        cursor=json.dumps({"publication": last, "waiting": later}),
    )


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow repeats a request for four minutes; a tick has one. Runs, which can wait, keep its patience."""
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    given = {name: value for name, value in short.items() if name not in os.environ}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)


def _unknown_partitions(
    instance: dg.DagsterInstance, todo: Iterable[Partition]
) -> list[dg.AddDynamicPartitionsRequest]:
    """An instance that was made anew knows no plate of the lake; a request for one would be an error."""
    requests = []
    for definition, names in ((PLATES, {plate for plate, _ in todo}), (SITES, {str(site) for _, site in todo})):
        if missing := sorted(names - set(instance.get_dynamic_partitions(str(definition.name)))):
            requests.append(definition.build_add_request(missing))
    return requests


@dg.sensor(
    jobs=[train_model],
    minimum_interval_seconds=300,
    default_status=_RUNNING_SENSOR,
    description="Trains a challenger once after_plates of [retraining] in gradcamo.toml have come; 0: never.",
)
def retraining_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.RunRequest | dg.SkipReason:
    """Request training when enough plates have crops that no registered version was given."""
    wanted = platform.settings.retraining.after_plates
    if not wanted:
        return dg.SkipReason("Off. Set after_plates under [retraining] in gradcamo.toml.")
    with _impatient():
        unlearned = unlearned_plates(platform.lake, platform.registry)
    # No more of them than are wanted are looked into.
    plates = list(islice((plate for plate in unlearned if has_classes(platform.lake, plate)), wanted))
    if len(plates) < wanted:
        return dg.SkipReason(f"{len(plates)} of {wanted} new plates have come{': ' * bool(plates)}{', '.join(plates)}.")
    if context.instance.get_runs(dg.RunsFilter(job_name="train_model", statuses=UNFINISHED), limit=1):
        return dg.SkipReason("An encoder is being trained.")
    # Once for these plates: a failed run is for a person to look at, and the next plate asks again.
    return dg.RunRequest(run_key=f"retrain {digest(unlearned)}", tags={"gradcamo/new_plates": ", ".join(plates)[:250]})


weekly_training = dg.ScheduleDefinition(
    "weekly_training",
    job=train_model,
    cron_schedule="0 3 * * 6",
    description="Trains a challenger on all plates every Saturday at 03:00. Off until it is switched on here.",
)
automation_sensor = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=_RUNNING_SENSOR,
    minimum_interval_seconds=30,
    description="Makes profiles, maps and audits when scores have changed.",
)
SCHEDULES = [nightly_ingest, nightly_tidying, weekly_training]
SENSORS = [
    inbox_sensor, champion_model_sensor, publication_sensor, report_sensor, retraining_sensor, automation_sensor,
    alert_on_failure,
]  # fmt: skip
