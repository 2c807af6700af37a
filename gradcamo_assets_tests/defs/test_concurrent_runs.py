"""Two runs that write one partition at the same time: the last one replaces all results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.automation.inbox_automation import inbox_sensor
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.tables import Lake
from gradcamo_assets_tests.defs.conftest import SETTINGS, Bench
from gradcamo_assets_tests.defs.sensor_ticks import tick

pytestmark = pytest.mark.slow

SITE = plate_site_key("tiny", 1)
OTHER_MASKS = SETTINGS.replace("[segmentation]\n", "[segmentation]\nmin_volume = 300\n")
OTHER_CROPS = SETTINGS.replace("keep_border = true", "keep_border = false")

Partition = tuple[list[dict], ...]


@pytest.fixture(scope="module")
def stages(scored_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, dict[str, Partition]]:
    """One scored plate, and the state of its partition for each settings. All masks and crops exist already."""
    bench, states = scored_bench.copy(tmp_path_factory.mktemp("stages")), {}
    for settings in (OTHER_MASKS, OTHER_CROPS, SETTINGS):
        assert process(bench, settings)
        settle(bench)
        states[settings] = state(bench)
    assert states[OTHER_MASKS] != states[SETTINGS] != states[OTHER_CROPS]
    return bench, states


def process(bench: Bench, settings: str = SETTINGS) -> bool:
    """Segment and crop the partition with these settings, then restore the default ones."""
    bench.home.settings_file.write_text(settings)
    result = bench.run("process_fields", SITE)
    bench.home.settings_file.write_text(SETTINGS)
    return result.success


def state(bench: Bench) -> Partition:
    """The versions of the partition by stage, its cells, crops, scores and field states."""
    lake, keys = bench.platform.lake, {"plate": "tiny", "site": 1}
    versions = [
        lake.partition_versions(f"{stage}_versions", **keys) for stage in ("image", "mask", "cell", "crop", "score")
    ]
    cells = cells_with_crops(lake, **keys).sort("Metadata_CellID").collect()
    scores = lake.read("scores", **keys).sort("Metadata_CellID").drop("run_id", "scored_at")
    fields = [lake.read(table, **keys).sort("Metadata_Well") for table in ("masks", "field_verdicts", "field_crops")]
    return tuple(frame.to_dicts() for frame in (*versions, cells, scores, *fields))


def call_before_write(table: str, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Call ``act`` before the first write to a table of the partition."""
    write, called = Lake.write, []

    def interrupted(self: Lake, name: str, frame: pl.DataFrame, **keys: object) -> None:
        if name == table and not called:
            called.append(True)
            act()
        write(self, name, frame, **keys)

    patch.setattr(Lake, "write", interrupted)


def settle(bench: Bench) -> None:
    """Run the requests of the sensors until there are none."""
    for _ in range(4):
        asked = [r for sensor in (inbox_sensor, champion_model_sensor) for r in tick(bench, sensor).run_requests or []]
        if not asked:
            return
        for request in asked:
            assert bench.run_request(request).success
    raise AssertionError("requests do not stop")


@pytest.mark.parametrize(
    ("settings", "table"),
    [(OTHER_MASKS, "masks"), (OTHER_MASKS, "field_verdicts"), (OTHER_CROPS, "field_crops")],
    ids=["masks", "cells", "crops"],
)
def test_the_last_writer_of_a_partition_replaces_all_results(
    stages: tuple[Bench, dict[str, Partition]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    table: str,
) -> None:
    bench, states = stages[0].copy(tmp_path / "home"), stages[1]
    succeeded: list[bool] = []
    with monkeypatch.context() as patch:
        call_before_write(table, lambda: succeeded.append(process(bench, settings)), patch)
        process(bench)  # It may fail, since the other run wrote meanwhile.
    assert succeeded == [True]
    settle(bench)
    assert state(bench) in (states[SETTINGS], states[settings])


def test_scores_match_the_current_crops_after_concurrent_writes(
    stages: tuple[Bench, dict[str, Partition]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = stages[0].copy(tmp_path / "home")
    again = {"ops": {"scores_and_embeddings": {"config": {"again": True}}}}

    def overtake() -> None:
        assert process(bench, OTHER_CROPS)
        assert bench.run("rescore", SITE).success

    with monkeypatch.context() as patch:
        call_before_write("scores", overtake, patch)
        bench.run("rescore", SITE, **again)
    settle(bench)
    cells = cells_with_crops(bench.platform.lake, plate="tiny", site=1).drop_nulls("crop_index").collect()
    names = ["Metadata_CellID", "crop_version"]
    scores = bench.platform.lake.read("scores", plate="tiny", site=1)
    assert scores.select(names).sort(names).equals(cells.select(names).sort(names))
    embedded = bench.platform.lake.read("embeddings", plate="tiny", site=1)["Metadata_CellID"]
    assert set(embedded) == set(cells["Metadata_CellID"])
