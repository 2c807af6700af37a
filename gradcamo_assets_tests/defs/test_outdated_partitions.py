"""Out-of-date partitions are processed again, up-to-date ones are not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gradcamo_assets.cells import record_crops
from gradcamo_assets.defs.automation.inbox_automation import inbox_sensor
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.segmentation import Segmenter
from gradcamo_assets_tests.defs.conftest import Bench
from gradcamo_assets_tests.defs.sensor_ticks import requested, tick

SITE = plate_site_key("tiny", 1)


@pytest.fixture
def bench(scored_bench: Bench, tmp_path: Path) -> Bench:
    """One scored plate, for which no sensor requests anything."""
    bench = scored_bench.copy(tmp_path / "home")
    assert requested(tick(bench, inbox_sensor)) == []
    assert requested(tick(bench, champion_model_sensor)) == []
    return bench


def change_settings(bench: Bench, old: str, new: str) -> None:
    text = bench.home.settings_file.read_text()
    assert old in text
    bench.home.settings_file.write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_plate_ingested_again_during_segmentation_is_out_of_date(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, again = Segmenter.segment, []
    change_settings(bench, "[segmentation]\n", "[segmentation]\nmin_volume = 201\n")

    def interrupted(self: Segmenter, *args: object, **kwargs: object) -> object:
        masks = segment(self, *args, **kwargs)  # type: ignore[arg-type]
        if not again:
            again.append(True)
            bench.change_pixels()
            assert bench.ingest("tiny").success
        return masks

    monkeypatch.setattr(Segmenter, "segment", interrupted)
    bench.run("process_fields", SITE)
    assert again
    assert ("process_fields", SITE) in requested(tick(bench, inbox_sensor))
    assert bench.run("process_fields", SITE).success
    assert ("process_fields", SITE) not in requested(tick(bench, inbox_sensor))
    assert bench.ask("SELECT DISTINCT qc_flag FROM fields WHERE Metadata_Site = 1") == [(None,)]


def test_crops_alone_follow_their_settings(bench: Bench) -> None:
    count = "SELECT count(*) FROM cells WHERE qc_flag IS NULL AND Metadata_Site = 1"
    (every,) = bench.ask(count)[0]
    for keep in ("false", "true", "false"):
        change_settings(bench, f"keep_border = {'true' if keep == 'false' else 'false'}", f"keep_border = {keep}")
        assert bench.materialize("crops", SITE).success
        (kept,) = bench.ask(count)[0]
        assert (kept == every) if keep == "true" else (0 < kept < every)


def test_crops_left_over_from_other_images_of_the_plate_are_out_of_date(bench: Bench) -> None:
    """The plate's statistics are in the crops of every site, also where the masks remain the same."""
    other = plate_site_key("tiny", 2)
    bench.change_pixels()  # Of a field at the first site.
    assert bench.ingest("tiny").success
    # A run that is killed before its last step has made these.
    for made in ("masks", "cells"):
        assert ("process_fields", other) in requested(tick(bench, inbox_sensor))
        assert bench.materialize(made, other).success
    assert ("process_fields", other) in requested(tick(bench, inbox_sensor))
    assert bench.materialize("crops", other).success
    assert ("process_fields", other) not in requested(tick(bench, inbox_sensor))
    assert ("rescore", other) in requested(tick(bench, champion_model_sensor))


def test_a_corrected_plate_map_reaches_cells_and_scores(bench: Bench) -> None:
    compounds = "SELECT DISTINCT Metadata_Well, Metadata_Compound FROM {} WHERE Metadata_Well < 'A03' ORDER BY ALL"
    assert bench.ask(compounds.format("current_scores")) == [("A01", "DMSO"), ("A02", "cpd-A")]
    plate_map = bench.home.inbox / "tiny.csv"
    rows = plate_map.read_text().replace("A01,", "X,").replace("A02,", "A01,").replace("X,", "A02,")
    plate_map.write_text(rows)
    assert bench.ingest("tiny").success
    sites = [plate_site_key("tiny", site) for site in (1, 2)]
    for job, sensor in (("process_fields", inbox_sensor), ("rescore", champion_model_sensor)):
        assert requested(tick(bench, sensor)) == [(job, site) for site in sites]
        assert all(bench.run(job, site).success for site in sites)
        assert requested(tick(bench, sensor)) == []
    for table in ("cells", "current_scores"):
        assert bench.ask(compounds.format(table)) == [("A01", "cpd-A"), ("A02", "DMSO")]


def test_a_field_whose_crops_failed_keeps_its_cells_and_needs_crops_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bench.ask("SELECT Metadata_Well, count(*), count(crop_index) FROM cells GROUP BY ALL ORDER BY ALL")
    change_settings(bench, "shape = [6, 48, 48]", "shape = [6, 40, 40]")

    def failing(*args: Any, **options: Any) -> None:
        calls.append(True)
        if len(calls) == 1:
            raise GradcamoError("the disk is full", "Make room.")
        record_crops(*args, **options)

    calls: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(import_module("gradcamo_assets.defs.assets.cell_assets"), "record_crops", failing)
        failed = bench.materialize("crops", SITE)
    assert failed.success and not bench.checks(failed)["fields_cropped"].passed
    cells = "SELECT Metadata_Well, count(*) FROM cells GROUP BY ALL ORDER BY ALL"
    assert bench.ask(cells) == [(well, n) for well, n, _ in before], "all cells remain"
    flags = bench.ask("SELECT DISTINCT qc_flag FROM fields WHERE qc_flag IS NOT NULL")
    assert len(flags) == 1 and "not cropped" in flags[0][0] and "the disk is full" in flags[0][0]
    mended = bench.materialize("crops", SITE)
    assert bench.checks(mended)["fields_cropped"].passed
    after = bench.ask("SELECT Metadata_Well, count(*), count(crop_index) FROM cells GROUP BY ALL ORDER BY ALL")
    assert after == before
    assert bench.ask("SELECT count(qc_flag) FROM fields") == [(0,)]


def test_scores_are_removed_when_all_cells_are_excluded(bench: Bench) -> None:
    scores = "SELECT count(*) FROM current_scores WHERE Metadata_Site = 1"
    assert bench.ask(scores)[0][0] > 0
    change_settings(bench, "[crops]\n", "[segmentation_qc]\nmin_probability = 1.0\n[crops]\n")
    assert bench.run("process_fields", SITE).success
    stale = "SELECT Metadata_Plate, Metadata_Site, n_cells, reason FROM stale_scores"
    assert bench.ask(stale) == [("tiny", 1, 0, "crops changed")]
    assert requested(tick(bench, champion_model_sensor)) == [("rescore", SITE)]
    assert bench.run("rescore", SITE).success
    assert bench.ask(scores) == [(0,)] and bench.ask(stale) == []
    assert bench.ask("SELECT DISTINCT Metadata_Site FROM qc_by_site") == [(2,)]
    assert requested(tick(bench, champion_model_sensor)) == []


def test_settings_that_keep_the_same_cells_cause_no_new_crops_or_scores(bench: Bench) -> None:
    kept = "SELECT Metadata_CellID, crop_index, crop_version FROM cells ORDER BY ALL"
    before = bench.ask(kept)
    change_settings(bench, "[crops]\n", "[segmentation_qc]\noutlier = 6.0\n[crops]\n")
    for site in (1, 2):
        assert bench.run("process_fields", plate_site_key("tiny", site)).success
    assert bench.ask(kept) == before
    assert requested(tick(bench, champion_model_sensor)) == []


def test_a_new_version_of_a_stage_requests_the_later_stages(bench: Bench) -> None:
    change_settings(bench, "[segmentation]\n", "[segmentation]\nmin_volume = 202\n")
    assert bench.materialize("masks", SITE).success
    assert requested(tick(bench, inbox_sensor)) == [("process_fields", SITE)]
    assert bench.run("process_fields", SITE).success
    assert requested(tick(bench, inbox_sensor)) == []


def test_a_tick_opens_no_file_of_cells_scores_or_plates(bench: Bench) -> None:
    lake, keys = bench.platform.lake, {"plate": "tiny", "site": 1}
    made_from = lake.partition_version("cell_versions", **keys)
    assert made_from is not None
    lake.record_version("crop_versions", "others", made_from["version"], 3, **keys)
    data = list(lake.root.glob("*/Metadata_Plate=*/**/*.parquet"))
    assert {file.relative_to(lake.root).parts[0] for file in data} >= {"cells", "crops", "scores", "crop_versions"}
    for file in [*data, *bench.home.plates.glob("*.json")]:
        file.write_bytes(b"")
    assert requested(tick(bench, inbox_sensor)) == []
    assert requested(tick(bench, champion_model_sensor)) == [("rescore", SITE)]
