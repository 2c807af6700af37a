"""One publication for many changes, and reports of the changed plates only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from gradcamo_assets.defs.assets import qc_assets
from gradcamo_assets.defs.automation import jobs_and_sensors as automation
from gradcamo_assets.defs.automation.jobs_and_sensors import publication_sensor, report_sensor
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.tables import run_sql
from gradcamo_assets_tests.defs.conftest import Bench, make_bench
from gradcamo_assets_tests.defs.made_up import SETTINGS, add_plate, add_version
from gradcamo_assets_tests.defs.sensor_ticks import requested, tick

PLATES = ["P1", "P2", "P3"]
PUBLISH = [("refresh_qc", None)]
AGAIN = {"ops": {"scores_and_embeddings": {"config": {"again": True}}}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Three plates, scored."""
    bench = make_bench(tmp_path_factory.mktemp("home"))
    bench.home.settings_file.write_text(SETTINGS)
    bench.platform.registry.promote(add_version(bench).version)
    for plate in PLATES:
        add_plate(bench, plate, sites=1)
        assert bench.run("rescore", plate_site_key(plate, 1)).success
    return bench


@pytest.fixture
def published(scored: Bench, tmp_path: Path) -> Bench:
    """A copy, published."""
    bench = scored.copy(tmp_path / "home")
    assert requested(tick(bench, publication_sensor)) == PUBLISH
    assert bench.materialize("qc_database").success
    return bench


def reports(result: dg.SensorResult) -> list[str | None]:
    """The plates whose reports are requested."""
    assert all(request.job_name in (None, "report_plates") for request in result.run_requests or [])
    return [request.partition_key for request in result.run_requests or []]


def test_reports_of_changed_plates_are_requested(published: Bench) -> None:
    bench = published
    first = tick(bench, report_sensor)
    assert reports(first) == PLATES
    assert reports(tick(bench, report_sensor, first.cursor)) == []
    assert bench.run("rescore", plate_site_key("P2", 1), **AGAIN).success
    assert reports(tick(bench, report_sensor, first.cursor)) == [], "the change is not published yet"
    assert bench.materialize("qc_database").success
    second = tick(bench, report_sensor, first.cursor)
    assert reports(second) == ["P2"]
    assert not {r.run_key for r in first.run_requests or []} & {r.run_key for r in second.run_requests or []}
    assert bench.materialize("qc_database").success
    assert reports(tick(bench, report_sensor, second.cursor)) == [], "nothing has changed"


def test_a_publication_that_was_killed_before_its_checks_is_requested_again(
    published: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, cursor = published, tick(published, report_sensor).cursor
    assert bench.run("rescore", plate_site_key("P2", 1), **AGAIN).success
    with monkeypatch.context() as patch:
        patch.setattr(qc_assets, "find_violations", lambda *_: 1 / 0)
        assert not bench.materialize("qc_database").success
    assert requested(tick(bench, publication_sensor)) == PUBLISH
    assert bench.materialize("qc_database").success
    assert reports(tick(bench, report_sensor, cursor)) == ["P2"]
    assert requested(tick(bench, publication_sensor)) == []


def test_a_violation_is_no_reason_to_publish_again_and_again(published: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, checked = published, []

    def found(_: object, plates: tuple[str, ...]) -> list[str]:
        checked.append(plates)
        return ["1 row is wrong"]

    monkeypatch.setattr(qc_assets, "find_violations", found)
    for plate in ("P2", "P3"):
        assert bench.run("rescore", plate_site_key(plate, 1), **AGAIN).success
        assert requested(tick(bench, publication_sensor)) == PUBLISH
        assert bench.materialize("qc_database").success
        assert requested(tick(bench, publication_sensor)) == []
    assert checked == [("P2",), ("P2", "P3")], "plates with violations are checked again"


def test_one_publication_covers_the_audits_of_all_plates(published: Bench) -> None:
    bench, version = published, published.platform.lake.delta_version
    cursor = tick(bench, report_sensor).cursor
    before = bench.home.database.read_bytes()
    asked = []
    for plate in PLATES:
        assert bench.run("audit_plates", plate).success
        assert bench.home.database.read_bytes() == before, "an audit does not publish"
        asked += requested(tick(bench, publication_sensor))
        if len(asked) == 1:
            job = bench.definitions.resolve_job_def("refresh_qc")
            run = bench.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert version("audit") == version("channel_correlation") == len(PLATES)
    assert asked == PUBLISH, "the unfinished publication covers all plates"
    bench.instance.delete_run(run.run_id)
    assert bench.materialize("qc_database").success
    assert requested(tick(bench, publication_sensor)) == []
    for table in ("audit", "channel_correlation"):
        found = run_sql(bench.home.database, f"SELECT DISTINCT Metadata_Plate FROM {table} ORDER BY 1").rows()
        assert found == [(plate,) for plate in PLATES]
    assert reports(tick(bench, report_sensor, cursor)) == PLATES


@pytest.mark.parametrize(("job", "waits"), [("rescore", True), ("process_fields", True), ("audit_plates", False)])
def test_a_publication_waits_for_scores_but_not_long(
    published: Bench, job: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = published
    assert bench.run("rescore", plate_site_key("P2", 1), **AGAIN).success
    cursor = tick(bench, publication_sensor).cursor
    bench.instance.add_run(dg.DagsterRun(job, status=dg.DagsterRunStatus.STARTED))
    assert requested(tick(bench, publication_sensor)) == PUBLISH, "the first one"
    assert requested(tick(bench, publication_sensor, cursor)) == ([] if waits else PUBLISH)
    later = datetime.now(UTC) + timedelta(seconds=601)
    monkeypatch.setattr(automation, "_now", lambda: later)
    assert requested(tick(bench, publication_sensor, cursor)) == PUBLISH


def test_a_publication_that_fails_is_not_requested_at_every_tick(
    published: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = published
    assert bench.run("rescore", plate_site_key("P2", 1), **AGAIN).success
    cursor = tick(bench, publication_sensor).cursor
    bench.instance.add_run(dg.DagsterRun("refresh_qc", status=dg.DagsterRunStatus.FAILURE))
    assert requested(tick(bench, publication_sensor, cursor)) == []
    later = datetime.now(UTC) + timedelta(seconds=601)
    monkeypatch.setattr(automation, "_now", lambda: later)
    assert requested(tick(bench, publication_sensor, cursor)) == PUBLISH
    bench.instance.add_run(dg.DagsterRun("refresh_qc", status=dg.DagsterRunStatus.SUCCESS))
    assert requested(tick(bench, publication_sensor, cursor)) == PUBLISH


def test_reports_are_requested_once_per_plate_and_in_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automation, "MAX_REQUESTS", 20)
    cursor: str | None = None
    touched = [f"M{number:03d}" for number in range(45)]
    for plates in (touched[:30], touched[20:]):
        bench.instance.report_runless_asset_event(
            dg.AssetMaterialization("qc_database", metadata={"plates_touched": dg.MetadataValue.json(plates)})
        )
    asked, waiting = [], []
    while True:
        result = tick(bench, report_sensor, cursor)
        cursor, now = result.cursor, reports(result)
        if not now:
            break
        asked += now
        waiting += [dg.DagsterRun("report_plates", status=dg.DagsterRunStatus.STARTED) for _ in now]
        for run in waiting[-len(now) :]:
            bench.instance.add_run(run)
        assert len(waiting) <= 20
        assert reports(tick(bench, report_sensor, cursor)) == [] or len(waiting) < 20
        for run in waiting[:7]:
            bench.instance.delete_run(run.run_id)
        waiting = waiting[7:]
    assert asked == touched
