"""Ingestion by the nightly schedule and the inbox sensor: requests, retries, and no duplicate requests."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.defs.automation import inbox_automation
from gradcamo_assets.defs.automation.jobs_and_sensors import inbox_sensor, nightly_ingest
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import failures
from gradcamo_assets.synthetic import write_synthetic_plate
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import tables_keyed_by
from gradcamo_assets_tests.defs.conftest import TINY, Bench
from gradcamo_assets_tests.defs.sensor_ticks import requested, tick

FROM_ISO = datetime.fromisoformat
Clock = Callable[[float], datetime]


def night(bench: Bench, date: datetime) -> list[dg.RunRequest] | dg.SkipReason:
    """One evaluation of the nightly schedule."""
    with dg.build_schedule_context(
        instance=bench.instance, scheduled_execution_time=date, resources={"platform": bench.platform}
    ) as context:
        return nightly_ingest(context)  # type: ignore[return-value]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A function that sets the clock of automation and failure records to hours from now."""
    start = datetime.now(UTC)

    def later(hours: float) -> datetime:
        then = start + timedelta(hours=hours)
        monkeypatch.setattr(inbox_automation, "_now", lambda: then)
        monkeypatch.setattr(failures, "datetime", SimpleNamespace(now=lambda _: then, fromisoformat=FROM_ISO))
        return then

    return later


def test_a_plate_is_ingested_once_it_has_stopped_changing(bench: Bench, clock: Clock) -> None:
    clock(0)
    assert requested(tick(bench, inbox_sensor)) == []
    plate = write_synthetic_plate(bench.home.inbox, TINY)
    first = tick(bench, inbox_sensor)
    assert requested(first) == []
    assert "tiny (copying)" in str(first.skip_reason)
    (plate / "growing").write_text("x")
    second = tick(bench, inbox_sensor, first.cursor)
    assert requested(second) == []
    assert requested(tick(bench, inbox_sensor, second.cursor)) == [], "two consecutive ticks are too soon"
    clock(0.1)
    fourth = tick(bench, inbox_sensor, second.cursor)
    assert requested(fourth) == [("ingest_plates", "tiny")]
    assert [r.partition_keys for r in fourth.dynamic_partitions_requests or []] == [["tiny"]]


def test_fields_of_ingested_plates_are_requested_at_existing_sites_only(bench: Bench) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    assert bench.ingest("tiny").success
    bench.instance.add_dynamic_partitions("sites", ["7"])
    expected = [("process_fields", plate_site_key("tiny", site)) for site in (1, 2)]
    assert requested(tick(bench, inbox_sensor)) == expected
    refused = bench.run("process_fields", plate_site_key("tiny", 7))
    assert not refused.success
    assert bench.run("process_fields", plate_site_key("tiny", 1)).success
    assert requested(tick(bench, inbox_sensor)) == expected[1:]


@pytest.mark.slow
def test_a_plate_ingested_again_gets_new_masks_and_crops(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    assert requested(tick(bench, inbox_sensor)) == []
    plate = bench.home.inbox / "tiny.zarr"
    before = (bench.home.plates / "tiny.json").read_text()
    (plate / "A" / "01" / "note.txt").write_text("x")
    assert requested(tick(bench, inbox_sensor)) == [], "changed plates are ingested on request only"
    assert bench.ingest("tiny").success
    assert (bench.home.plates / "tiny.json").read_text() != before
    assert requested(tick(bench, inbox_sensor)) == [], "the same pixels"
    expected = [("process_fields", plate_site_key("tiny", site)) for site in (1, 2)]
    bench.change_pixels()
    assert requested(tick(bench, inbox_sensor)) == []
    assert bench.ingest("tiny").success
    again = tick(bench, inbox_sensor)
    assert requested(again) == expected
    first, second = again.run_requests or []
    assert bench.run_request(first).success
    assert requested(tick(bench, inbox_sensor)) == expected[1:]
    bench.change_pixels()
    assert bench.ingest("tiny").success
    once_more = tick(bench, inbox_sensor)
    assert requested(once_more) == expected[:1], "the masks of site 2 are up to date"
    assert not {r.run_key for r in once_more.run_requests or []} & {first.run_key, second.run_key}


def test_rows_of_removed_sites_are_deleted(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    lake = bench.platform.lake
    for well in (bench.home.inbox / "tiny.zarr").glob("[AB]/*/zarr.json"):
        meta = json.loads(well.read_text())
        meta["attributes"]["ome"]["well"]["images"] = meta["attributes"]["ome"]["well"]["images"][:1]
        well.write_text(json.dumps(meta))
    assert bench.ingest("tiny").success
    for table in tables_keyed_by("plate", "site"):
        assert set(lake.read(table, plate="tiny")["Metadata_Site"]) == {1}, table
    assert requested(tick(bench, inbox_sensor)) == [("process_fields", plate_site_key("tiny", 1))]


def test_the_nightly_schedule_requests_new_plates(stored_bench: Bench, clock: Clock) -> None:
    date = clock(0)
    assert isinstance(night(stored_bench, date), dg.SkipReason)
    plate = write_synthetic_plate(stored_bench.home.inbox, TINY)
    shutil.copytree(plate, plate.with_name("other.zarr"))
    shutil.copytree(plate, plate.with_name("other.ome.zarr"))
    assert isinstance(night(stored_bench, date), dg.SkipReason), "the plate may still be copied"
    date = clock(1)
    requests = night(stored_bench, date)
    assert isinstance(requests, list)
    assert [request.partition_key for request in requests] == ["tiny"]
    assert stored_bench.ingest("tiny").success
    skipped = night(stored_bench, date)
    assert isinstance(skipped, dg.SkipReason)
    assert "other.ome.zarr" in str(skipped.skip_message)
    shutil.rmtree(stored_bench.home.inbox)
    with pytest.raises(PlateError, match="inbox cannot be listed"):
        night(stored_bench, date)


def test_a_plate_that_fails_is_retried_four_times_and_then_quarantined(stored_bench: Bench, clock: Clock) -> None:
    (stored_bench.home.inbox / "bad.zarr").mkdir()
    keys: list[str | None] = []
    for hours in (1, 1.2, 2.3, 8.4, 33):
        requests = night(stored_bench, clock(hours))
        assert isinstance(requests, list), hours
        assert [request.partition_key for request in requests] == ["bad"], hours
        result = tick(stored_bench, inbox_sensor)
        assert requested(result) == [("ingest_plates", "bad")], hours
        keys += [request.run_key for request in result.run_requests or []]
        assert not stored_bench.ingest("bad").success
        clock(hours + 0.1)
        assert requested(tick(stored_bench, inbox_sensor)) == [], hours
    assert len(set(keys)) == len(keys) == 5
    quarantined = night(stored_bench, clock(24 * 30))
    assert isinstance(quarantined, dg.SkipReason)
    assert "not an OME-Zarr plate" in str(quarantined.skip_message) and "--retry bad" in str(quarantined.skip_message)
    failures.forget_failures(stored_bench.home.plates, "bad")
    again = tick(stored_bench, inbox_sensor)
    assert requested(again) == [("ingest_plates", "bad")]
    assert again.run_requests and again.run_requests[0].run_key not in keys


def test_plates_are_ingested_after_the_clock_was_set_back(bench: Bench, clock: Clock) -> None:
    years = 24 * 3650
    plate = write_synthetic_plate(bench.home.inbox, TINY)
    (bench.home.inbox / "bad.zarr").mkdir()
    for path in (plate, *plate.rglob("*"), bench.home.inbox / "tiny.csv"):
        os.utime(path, (clock(years).timestamp(),) * 2)
    ahead = tick(bench, inbox_sensor)
    assert requested(ahead) == [("ingest_plates", "bad")], "tiny has just changed"
    assert not bench.ingest("bad").success
    clock(0)
    first = tick(bench, inbox_sensor, ahead.cursor)
    assert ("ingest_plates", "tiny") not in requested(first)
    clock(0.1)
    expected = {("ingest_plates", "bad"), ("ingest_plates", "tiny")}
    assert set(requested(tick(bench, inbox_sensor, first.cursor))) == expected


def test_a_plate_with_an_unfinished_run_is_not_requested(bench: Bench, clock: Clock) -> None:
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


def break_stage(stage: str, patch: pytest.MonkeyPatch) -> None:
    """Make a stage fail before its first field or, with ``rows``, while it writes to the lake."""
    write = Lake.write

    def full(self: Lake, table: str, *args: object, **keys: object) -> None:
        if table == "field_crops":
            raise OSError("no space left on device")
        write(self, table, *args, **keys)  # type: ignore[arg-type]

    if stage == "rows":
        patch.setattr(Lake, "write", full)
    else:
        module, used = {"masks": ("mask_assets", "Segmenter"), "crops": ("cell_assets", "read_plate_record")}[stage]
        patch.setattr(import_module(f"gradcamo_assets.defs.assets.{module}"), used, None)


@pytest.mark.parametrize(
    "stage", ["masks", pytest.param("crops", marks=pytest.mark.slow), pytest.param("rows", marks=pytest.mark.slow)]
)
def test_fields_that_fail_are_retried_four_times_and_then_given_up(bench: Bench, clock: Clock, stage: str) -> None:
    write_synthetic_plate(bench.home.inbox, replace(TINY, sites=1))
    assert bench.ingest("tiny").success
    key = plate_site_key("tiny", 1)
    keys = set()
    if stage != "masks":  # Results of earlier stages exist.
        assert bench.materialize("masks", key).success and bench.materialize("cells", key).success
    for pause, next_one in pairwise((0, 1 / 6, 1, 6, 24, 24 * 30)):
        clock(pause + 0.05)  # The end time of a run is not patched: it is at 0 h.
        (request,) = tick(bench, inbox_sensor).run_requests or []
        assert (request.job_name, request.partition_key) == ("process_fields", key)
        keys.add(request.run_key)
        with pytest.MonkeyPatch.context() as patch:
            break_stage(stage, patch)
            assert not bench.run_request(request).success
        clock(next_one - 0.05)
        assert requested(tick(bench, inbox_sensor)) == []
    assert len(keys) == 5
    assert "tiny site 1: process_fields failed 5 times" in str(tick(bench, inbox_sensor).skip_reason)
    bench.change_pixels()
    assert bench.ingest("tiny").success
    (request,) = tick(bench, inbox_sensor).run_requests or []
    assert request.run_key not in keys, "attempts are counted anew after ingesting again"
    assert bench.run_request(request).success
    assert requested(tick(bench, inbox_sensor)) == []


@pytest.mark.slow
def test_a_stage_materialised_by_hand_is_no_failed_attempt(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    settings, key = bench.home.settings_file.read_text(), plate_site_key("tiny", 1)
    for volume in range(201, 205):
        more = f"[segmentation]\nmin_volume = {volume}\n"
        bench.home.settings_file.write_text(settings.replace("[segmentation]\n", more))
        assert bench.materialize("masks", key).success
        (request,) = tick(bench, inbox_sensor).run_requests or []
        assert bench.run_request(request).success
        assert requested(tick(bench, inbox_sensor)) == []


def test_two_plates_of_one_name_are_reported_and_not_ingested(bench: Bench) -> None:
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
