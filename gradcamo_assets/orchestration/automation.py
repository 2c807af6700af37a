"""Jobs and sensors from the trained model on. Each partition is asked for by one mechanism only."""

import dagster as dg

from gradcamo_assets.common.provenance import digest
from gradcamo_assets.learning.promotion import champion_moves, record_champion, record_versions
from gradcamo_assets.learning.registry import CHAMPION
from gradcamo_assets.orchestration.alerts import alert_on_failure
from gradcamo_assets.orchestration.night import inbox_sensor, ingest_plates, nightly_ingest, process_fields
from gradcamo_assets.orchestration.partitions import plate_site_key
from gradcamo_assets.orchestration.reconcile import record_refusals, scoring_state
from gradcamo_assets.orchestration.resources import Platform

_RUNNING_SENSOR = dg.DefaultSensorStatus.RUNNING

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
SENSORS = [inbox_sensor, champion_model_sensor, automation_sensor, alert_on_failure]
