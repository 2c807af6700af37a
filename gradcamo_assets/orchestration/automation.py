"""Jobs and sensors from the trained model on. Each partition is asked for by one mechanism only."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from gradcamo_assets.common.provenance import digest
from gradcamo_assets.learning.promotion import champion_moves, record_champion
from gradcamo_assets.learning.registry import CHAMPION
from gradcamo_assets.networks.bundle import verified_config
from gradcamo_assets.orchestration.alerts import alert_on_failure
from gradcamo_assets.orchestration.night import inbox_sensor, ingest_plates, nightly_ingest, process_fields
from gradcamo_assets.orchestration.partitions import PLATES, SITES
from gradcamo_assets.orchestration.reconcile import record_refusals, scoring_state, unlearned_plates
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.runs import UNFINISHED, in_progress, score_requests
from gradcamo_assets.scoring.reconcile import Partition

_RUNNING_SENSOR = dg.DefaultSensorStatus.RUNNING

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
JOBS = [
    ingest_plates, process_fields, train_model, promote_challenger, rescore, refresh_qc, audit_plates, report_plates,
    explore_encoders,
]  # fmt: skip


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
    with _impatient():
        champion = registry.by_alias(CHAMPION)
        moved = record_champion(lake, registry, by="unknown")
    if champion is None:
        return dg.SensorResult(skip_reason="No champion yet. Launch train_model, or move the alias in MLflow.")
    # A rollback has the version of an earlier move: only the number of the move keeps its requests apart.
    move = f"move {len(champion_moves(lake, registry.name))} to version {champion.version}"
    new = context.cursor != move
    if new:  # A damaged bundle is one error here, not one in every run.
        verified_config(registry.fetch(champion))
    # Before the stores are read: a run that ends in between has left its rows.
    busy = in_progress(context.instance)
    state = scoring_state(home, lake, registry, champion)
    todo = {partition: state.crops[partition] for partition in state.todo}
    requests, given_up = score_requests(context.instance, todo, busy, move, champion.version)
    changed = record_refusals(lake, champion, state.refused | given_up)
    events = []
    if new:
        metadata: dict[str, int | str] = {"model_version": champion.version, "mlflow_run": champion.run_id}
        events.append(dg.AssetMaterialization("champion_model", description=move, metadata=metadata))
    if new and not todo and (moved or context.cursor is not None):
        # A rollback to a version that has scored already computes nothing: it republishes.
        requests = [dg.RunRequest(run_key=f"{move} refresh", job_name="refresh_qc")]
    elif changed or (new and todo):
        # Before the scores, so that stale_scores lists what waits for them, and why.
        key = f"{move} publish {digest(sorted((*p, reason) for p, reason in (state.refused | given_up).items()))}"
        only = [dg.AssetKey("qc_database")]
        requests.insert(0, dg.RunRequest(run_key=key, job_name="refresh_qc", asset_selection=only))
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
        dynamic_partitions_requests=_unknown_partitions(context.instance, state.todo),
        cursor=move,
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
        plates = unlearned_plates(platform.lake, platform.registry)
    if len(plates) < wanted:
        return dg.SkipReason(f"{len(plates)} of {wanted} new plates have come{': ' * bool(plates)}{', '.join(plates)}.")
    if context.instance.get_runs(dg.RunsFilter(job_name="train_model", statuses=UNFINISHED), limit=1):
        return dg.SkipReason("An encoder is being trained.")
    # Once for these plates: a failed run is for a person to look at, and the next plate asks again.
    return dg.RunRequest(run_key=f"retrain {digest(plates)}", tags={"gradcamo/new_plates": ", ".join(plates)[:250]})


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
    description="Publishes the QC database, reports, profiles and maps when scores have changed.",
)
SCHEDULES = [nightly_ingest, weekly_training]
SENSORS = [inbox_sensor, champion_model_sensor, retraining_sensor, automation_sensor, alert_on_failure]
