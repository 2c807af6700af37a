"""Requests of the sensors after promotions and rollbacks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor, publication_sensor
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.synthetic import write_synthetic_plate
from gradcamo_assets.tables import run_sql
from gradcamo_assets_tests.defs.conftest import TINY, Bench
from gradcamo_assets_tests.defs.sensor_ticks import another_version, requested, tick


def test_promotion_rescores_every_partition_once_and_a_rollback_republishes(
    scored_bench: Bench, tmp_path: Path
) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    registry = bench.platform.registry
    settled = tick(bench, champion_model_sensor)
    assert requested(settled) == []
    assert [event.asset_key.to_user_string() for event in settled.asset_events] == ["champion_model"]
    assert requested(tick(bench, champion_model_sensor, settled.cursor)) == []

    second = another_version(bench)
    promoted = tick(bench, champion_model_sensor, settled.cursor)
    scores = [("rescore", plate_site_key("tiny", site)) for site in (1, 2)]
    assert requested(promoted) == scores
    assert len({request.run_key for request in promoted.run_requests or []}) == 2
    assert requested(tick(bench, publication_sensor)) == [("refresh_qc", None)], "the database lists the stale scores"
    again = tick(bench, champion_model_sensor, promoted.cursor)
    assert [r.run_key for r in again.run_requests or []] == [r.run_key for r in promoted.run_requests or []]
    assert bench.run("rescore", plate_site_key("tiny", 1)).success
    assert requested(tick(bench, champion_model_sensor, again.cursor)) == [("rescore", plate_site_key("tiny", 2))]
    assert bench.materialize("qc_database").success
    stale = run_sql(bench.home.database, "SELECT Metadata_Site, reason FROM stale_scores")
    assert stale.rows() == [(2, "never scored by the champion")]
    assert bench.run("rescore", plate_site_key("tiny", 2)).success
    assert bench.materialize("qc_database").success
    versions = run_sql(bench.home.database, "SELECT model_version, count(*) FROM scores GROUP BY ALL ORDER BY 1").rows()
    assert [version for version, _ in versions] == [1, second.version]
    assert versions[0][1] == versions[1][1]
    assert run_sql(bench.home.database, "SELECT DISTINCT model_version FROM current_scores").item() == second.version

    registry.promote(1)
    back = tick(bench, champion_model_sensor, again.cursor)
    assert requested(back) == [("refresh_qc", None)], "results made from scores are updated"
    assert bench.run("refresh_qc").success
    assert run_sql(bench.home.database, "SELECT DISTINCT model_version FROM current_scores").item() == 1
    registry.promote(second.version)
    forth = tick(bench, champion_model_sensor, back.cursor)
    registry.promote(1)
    back_again = tick(bench, champion_model_sensor, forth.cursor)
    assert requested(back_again) == [("refresh_qc", None)]
    assert back_again.run_requests[0].run_key != back.run_requests[0].run_key  # type: ignore[index]


def test_new_masks_are_scored_again(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    cursor = tick(bench, champion_model_sensor).cursor
    settings = bench.home.settings_file.read_text()
    bench.home.settings_file.write_text(settings.replace("[segmentation]\n", "[segmentation]\nmin_volume = 200\n"))
    assert bench.run("process_fields", plate_site_key("tiny", 2)).success
    assert requested(tick(bench, champion_model_sensor, cursor)) == [("rescore", plate_site_key("tiny", 2))]


def test_a_plate_the_champion_does_not_fit_is_recorded_as_unscored(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    lake = bench.platform.lake
    lake.write("plates", lake.read("plates").with_columns(voxel_y_um=3.0), plate="tiny")
    another_version(bench)
    assert ("rescore", plate_site_key("tiny", 1)) not in requested(tick(bench, champion_model_sensor))
    reasons = lake.read("unscored")["reason"].unique().to_list()
    assert len(reasons) == 1
    assert "3 um in y" in reasons[0]
    lake.write("plates", lake.read("plates").with_columns(voxel_y_um=None), plate="tiny")
    assert ("rescore", plate_site_key("tiny", 1)) not in requested(tick(bench, champion_model_sensor))
    reasons = lake.read("unscored")["reason"].unique().to_list()
    assert len(reasons) == 1
    assert "the plate does not state its voxel size in y" in reasons[0]


def test_an_unreachable_registry_is_an_error_of_the_tick(scored_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        tick(scored_bench, champion_model_sensor, "move 1 to version 1")


def test_without_a_champion_the_reason_names_the_job(bench: Bench) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    assert bench.ingest("tiny").success
    assert "train_model" in str(tick(bench, champion_model_sensor).skip_reason)


def test_profiles_and_audits_are_requested_after_scores(scored_bench: Bench) -> None:
    """Profiles are requested when scores exist, although some plate x site pairs do not exist."""
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("plates", ["tiny", "other"])
    instance.add_dynamic_partitions("sites", ["1", "2", "9"])
    before = dg.evaluate_automation_conditions(scored_bench.definitions, instance)
    for key in ("gradcamo_scores", "embeddings"):
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=str(plate_site_key("tiny", 1))))
    after = dg.evaluate_automation_conditions(scored_bench.definitions, instance, cursor=before.cursor)
    assert after.get_num_requested(dg.AssetKey("qc_database")) == 0, "publication_sensor requests it"
    assert after.get_num_requested(dg.AssetKey("profiles")) == 1
    assert after.get_requested_partitions(dg.AssetKey("audit")) == {"tiny"}
    assert before.get_num_requested(dg.AssetKey("audit")) == 0
    instance.add_dynamic_partitions("plates", ["new"])
    later = dg.evaluate_automation_conditions(scored_bench.definitions, instance, cursor=after.cursor)
    assert later.get_num_requested(dg.AssetKey("audit")) == 0, "a new plate has nothing to audit"


def test_what_failed_is_requested_again_every_six_hours(bench: Bench) -> None:
    """Without a champion or a database, audits and reports fail. Sensors do not request them again."""
    bench.instance.add_dynamic_partitions("plates", ["tiny", "other"])
    evening = datetime(2030, 1, 1, 17, 50, tzinfo=UTC)

    def evaluate(minutes: int, cursor: AssetDaemonCursor | None = None) -> dg.EvaluateAutomationConditionsResult:
        return dg.evaluate_automation_conditions(
            bench.definitions, bench.instance, cursor=cursor, evaluation_time=evening + timedelta(minutes=minutes)
        )

    before = evaluate(0)
    failing = ("audit", "qc_report")
    assert not any(bench.materialize(asset, "tiny").success for asset in failing)
    after = evaluate(5, before.cursor)
    assert after.total_requested == 0
    due = evaluate(11, after.cursor)
    assert all(due.get_requested_partitions(dg.AssetKey(asset)) == {"tiny"} for asset in failing)
    assert due.total_requested == len(failing)
    later = evaluate(12, due.cursor)
    assert later.total_requested == 0
    bench.instance.report_runless_asset_event(dg.AssetMaterialization("audit", partition="tiny"))
    next_time = evaluate(371, later.cursor)
    assert next_time.get_num_requested(dg.AssetKey("audit")) == 0
    assert next_time.get_requested_partitions(dg.AssetKey("qc_report")) == {"tiny"}
