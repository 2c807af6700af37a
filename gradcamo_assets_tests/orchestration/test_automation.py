"""The inbox, the night, promotions and rollbacks: what is requested, and that it is requested once."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.learning.registry import ModelVersion
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.orchestration import night as automation_of_nights
from gradcamo_assets.orchestration.automation import champion_model_sensor, inbox_sensor, nightly_ingest
from gradcamo_assets.orchestration.partitions import plate_site_key
from gradcamo_assets.plates import failures, write_synthetic_plate
from gradcamo_assets.warehouse import run_sql
from gradcamo_assets_tests.orchestration.conftest import SETTINGS, TINY, Bench


def tick(bench: Bench, sensor: dg.SensorDefinition, cursor: str | None = None) -> dg.SensorResult:
    """One evaluation of a sensor."""
    with dg.build_sensor_context(
        instance=bench.instance, cursor=cursor, resources={"platform": bench.platform}, definitions=bench.definitions
    ) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def requested(result: dg.SensorResult) -> list[tuple[str | None, str | None]]:
    """Job and partition of each request."""
    return [(request.job_name, request.partition_key) for request in result.run_requests or []]


def another_version(bench: Bench, promote: bool = True) -> ModelVersion:
    """Register the champion's weights once more, as the next version."""
    registry = bench.platform.registry
    champion = registry.by_alias()
    assert champion is not None
    model, config = load_bundle(registry.fetch(champion))
    version = registry.register(model, config)
    if promote:
        registry.promote(version.version)
    return version


def night(bench: Bench, date: datetime) -> list[dg.RunRequest] | dg.SkipReason:
    """One evaluation of the nightly schedule."""
    with dg.build_schedule_context(
        instance=bench.instance, scheduled_execution_time=date, resources={"platform": bench.platform}
    ) as context:
        return nightly_ingest(context)  # type: ignore[return-value]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], datetime]:
    """Sets what time it is, so many hours from now, for automation and for attempts to ingest."""
    start = datetime.now(UTC)

    def later(hours: float) -> datetime:
        then = start + timedelta(hours=hours)
        monkeypatch.setattr(automation_of_nights, "_now", lambda: then)
        monkeypatch.setattr(failures, "datetime", SimpleNamespace(now=lambda _: then, fromisoformat=FROM_ISO))
        return then

    return later


FROM_ISO = datetime.fromisoformat
Clock = Callable[[float], datetime]


def test_a_plate_is_taken_in_once_it_has_stopped_changing(bench: Bench) -> None:
    assert requested(tick(bench, inbox_sensor)) == []
    plate = write_synthetic_plate(bench.home.inbox, TINY)
    first = tick(bench, inbox_sensor)
    assert requested(first) == []
    assert "tiny (copying)" in str(first.skip_reason)
    (plate / "growing").write_text("x")
    second = tick(bench, inbox_sensor, first.cursor)
    assert requested(second) == []
    third = tick(bench, inbox_sensor, second.cursor)
    assert requested(third) == [("ingest_plates", "tiny")]
    assert [r.partition_keys for r in third.dynamic_partitions_requests or []] == [["tiny"]]


def test_ingested_plates_ask_for_their_fields_and_for_no_site_that_is_not_there(bench: Bench) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    assert bench.ingest("tiny").success
    bench.instance.add_dynamic_partitions("sites", ["7"])
    wanted = [("process_fields", plate_site_key("tiny", site)) for site in (1, 2)]
    assert requested(tick(bench, inbox_sensor)) == wanted
    refused = bench.run("process_fields", plate_site_key("tiny", 7))
    assert not refused.success
    assert bench.run("process_fields", plate_site_key("tiny", 1)).success
    assert requested(tick(bench, inbox_sensor)) == wanted[1:]


def test_a_plate_taken_in_again_gets_new_masks_and_crops(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    assert requested(tick(bench, inbox_sensor)) == []
    plate = bench.home.inbox / "tiny.zarr"
    before = (bench.home.plates / "tiny.json").read_text()
    (plate / "A" / "01" / "note.txt").write_text("x")
    assert "materialise its plate_images" in str(tick(bench, inbox_sensor).skip_reason), "changed: on request only"
    assert bench.ingest("tiny").success
    assert (bench.home.plates / "tiny.json").read_text() != before
    keys = [plate_site_key("tiny", site) for site in (1, 2)]
    again = tick(bench, inbox_sensor)
    assert requested(again) == [("process_fields", key) for key in keys]
    assert bench.run("process_fields", keys[0]).success
    assert requested(tick(bench, inbox_sensor)) == [("process_fields", keys[1])]
    assert bench.ingest("tiny").success
    once_more = tick(bench, inbox_sensor)
    assert requested(once_more) == requested(again)
    assert not {r.run_key for r in once_more.run_requests or []} & {r.run_key for r in again.run_requests or []}


def test_the_night_is_a_reconciliation(bench: Bench, clock: Clock) -> None:
    date = clock(0)
    assert isinstance(night(bench, date), dg.SkipReason)
    plate = write_synthetic_plate(bench.home.inbox, TINY)
    shutil.copytree(plate, plate.with_name("other.zarr"))
    shutil.copytree(plate, plate.with_name("other.ome.zarr"))
    assert isinstance(night(bench, date), dg.SkipReason), "it may still be copied"
    date = clock(1)
    requests = night(bench, date)
    assert isinstance(requests, list)
    assert [request.partition_key for request in requests] == ["tiny"]
    assert bench.ingest("tiny").success
    skipped = night(bench, date)
    assert isinstance(skipped, dg.SkipReason)
    assert "other.ome.zarr" in str(skipped.skip_message)
    shutil.rmtree(bench.home.inbox)
    with pytest.raises(PlateError, match="inbox cannot be listed"):
        night(bench, date)


def test_a_plate_that_fails_is_tried_again_and_quarantined_on_its_third_night(bench: Bench, clock: Clock) -> None:
    (bench.home.inbox / "bad.zarr").mkdir()
    keys: list[str | None] = []
    for date in range(3):
        requests = night(bench, clock(24 * date + 1))
        assert isinstance(requests, list), date
        keys += [request.run_key for request in requests]
        assert not bench.ingest("bad").success
        clock(24 * date + 1.9)
        assert requested(tick(bench, inbox_sensor)) == []
        if date < 2:
            clock(24 * date + 1 + 2**date)
            result = tick(bench, inbox_sensor)
            assert requested(result) == [("ingest_plates", "bad")]
            keys += [request.run_key for request in result.run_requests or []]
    assert len(set(keys)) == len(keys) == 5
    quarantined = night(bench, clock(24 * 30))
    assert isinstance(quarantined, dg.SkipReason)
    assert "no OME-Zarr plate" in str(quarantined.skip_message) and "--retry bad" in str(quarantined.skip_message)
    failures.forget_failures(bench.home.plates, "bad")
    again = tick(bench, inbox_sensor)
    assert requested(again) == [("ingest_plates", "bad")]
    assert again.run_requests and again.run_requests[0].run_key not in keys


def test_a_plate_that_a_run_is_busy_with_is_not_requested(bench: Bench, clock: Clock) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    clock(1)
    job = bench.definitions.resolve_job_def("ingest_plates")
    run = bench.instance.create_run_for_job(
        job, tags={"dagster/partition": "tiny"}, status=dg.DagsterRunStatus.STARTED, run_id=str(uuid.uuid4())
    )
    result = tick(bench, inbox_sensor)
    assert requested(result) == []
    bench.instance.report_run_canceled(run)
    assert requested(tick(bench, inbox_sensor, result.cursor)) == [("ingest_plates", "tiny")]


def test_fields_that_failed_are_tried_again_an_hour_later_twice(bench: Bench, clock: Clock) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    assert bench.ingest("tiny").success
    bench.home.settings_file.write_text("[segmentation]\nno_such = 1\n")
    key = plate_site_key("tiny", 1)
    keys = set()
    for attempt in range(3):
        clock(1.1 * attempt)  # A run ends when it really does, which is at 0 h.
        request = next(r for r in tick(bench, inbox_sensor).run_requests or [] if r.partition_key == key)
        keys.add(request.run_key)
        assert not bench.run("process_fields", key).success
        clock(0.9)
        assert ("process_fields", key) not in requested(tick(bench, inbox_sensor)), "not within the hour"
    assert len(keys) == 3
    clock(48)
    assert requested(tick(bench, inbox_sensor)) == [("process_fields", plate_site_key("tiny", 2))]
    bench.home.settings_file.write_text(SETTINGS)
    assert bench.ingest("tiny").success
    assert ("process_fields", key) in requested(tick(bench, inbox_sensor)), "a plate taken in again starts anew"


def test_two_plates_of_one_name_are_named_and_neither_is_taken(bench: Bench) -> None:
    plate = write_synthetic_plate(bench.home.inbox, TINY)
    shutil.copytree(plate, plate.with_name("tiny.ome.zarr"))
    result = tick(bench, inbox_sensor)
    assert requested(tick(bench, inbox_sensor, result.cursor)) == []
    assert "tiny.ome.zarr" in str(result.skip_reason)
    failed = bench.ingest("tiny")
    assert not failed.success
    assert not (bench.home.plates / "tiny.zarr").exists()


def test_the_command_lists_states_and_forgets_failures(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAMO_HOME", str(bench.home.root))
    bench.home.settings_file.write_text("[inbox]\nsettle_seconds = 0\n")
    (bench.home.inbox / "bad.zarr").mkdir()
    (bench.home.inbox / "notes").mkdir()

    def inbox(*options: str) -> dict[str, str]:
        result = CliRunner().invoke(main, ["inbox", "--format", "json", *options])
        assert result.exit_code == 0, result.output
        return {row["plate"]: row["state"] for row in json.loads(result.output)}

    assert inbox() == {"bad": "ready", "notes": "unreadable"}
    assert not bench.ingest("bad").success
    assert inbox("--full")["bad"] == "waiting"
    assert inbox("--retry", "bad")["bad"] == "ready"
    unknown = CliRunner().invoke(main, ["inbox", "--retry", "nobody"])
    assert unknown.exit_code == 1 and "bad, notes" in unknown.output


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
    assert requested(promoted) == [("rescore", plate_site_key("tiny", site)) for site in (1, 2)]
    assert len({request.run_key for request in promoted.run_requests or []}) == 2
    again = tick(bench, champion_model_sensor, promoted.cursor)
    assert [r.run_key for r in again.run_requests or []] == [r.run_key for r in promoted.run_requests or []]
    assert bench.run("rescore", plate_site_key("tiny", 1)).success
    assert requested(tick(bench, champion_model_sensor, again.cursor)) == [("rescore", plate_site_key("tiny", 2))]
    assert bench.run("refresh_qc").success
    stale = run_sql(bench.home.database, "SELECT Metadata_Site, reason FROM stale_scores")
    assert stale.rows() == [(2, "never scored by the champion")]
    assert bench.run("rescore", plate_site_key("tiny", 2)).success
    assert bench.run("refresh_qc").success
    versions = run_sql(bench.home.database, "SELECT model_version, count(*) FROM scores GROUP BY ALL ORDER BY 1").rows()
    assert [version for version, _ in versions] == [1, second.version]
    assert versions[0][1] == versions[1][1]
    assert run_sql(bench.home.database, "SELECT DISTINCT model_version FROM current_scores").item() == second.version

    registry.promote(1)
    back = tick(bench, champion_model_sensor, again.cursor)
    assert requested(back) == [("refresh_qc", None)]
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
    with bench.home.settings_file.open("a") as file:
        file.write("[segmentation]\nmin_volume = 200\n")
    assert bench.run("process_fields", plate_site_key("tiny", 2)).success
    assert requested(tick(bench, champion_model_sensor, cursor)) == [("rescore", plate_site_key("tiny", 2))]


def test_a_plate_the_champion_does_not_fit_is_left_with_the_reason(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    lake = bench.platform.lake
    lake.write("plates", lake.read("plates").with_columns(voxel_y_um=3.0), plate="tiny")
    another_version(bench)
    assert ("rescore", plate_site_key("tiny", 1)) not in requested(tick(bench, champion_model_sensor))
    reasons = lake.read("unscored")["reason"].unique().to_list()
    assert len(reasons) == 1
    assert "3 um in y" in reasons[0]


def test_an_unreachable_registry_is_an_error_of_the_tick(scored_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        tick(scored_bench, champion_model_sensor, "move 1 to version 1")


def test_scores_without_a_champion_say_what_to_do(bench: Bench) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    assert bench.ingest("tiny").success
    assert "train_model" in str(tick(bench, champion_model_sensor).skip_reason)


def test_published_tables_follow_the_scores_by_themselves(scored_bench: Bench) -> None:
    """``qc_database`` is requested when scores are there, although some plate x site pairs never exist."""
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("plates", ["tiny", "other"])
    instance.add_dynamic_partitions("sites", ["1", "2", "9"])
    before = dg.evaluate_automation_conditions(scored_bench.definitions, instance)
    for key in ("gradcamo_scores", "embeddings"):
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=str(plate_site_key("tiny", 1))))
    after = dg.evaluate_automation_conditions(scored_bench.definitions, instance, cursor=before.cursor)
    assert after.get_num_requested(dg.AssetKey("qc_database")) == 1
    assert after.get_num_requested(dg.AssetKey("profiles")) == 1
    assert after.get_requested_partitions(dg.AssetKey("audit")) == {"tiny"}
