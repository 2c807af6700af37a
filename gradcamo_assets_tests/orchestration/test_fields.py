"""What is told of fields while they are worked on, and what is written about them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.orchestration import fields as module
from gradcamo_assets.orchestration.fields import flag_fields, for_each_field, measure_fields, progress
from gradcamo_assets.warehouse import Lake, lake_table


@pytest.mark.parametrize(
    ("done", "of", "took", "text"),
    [
        (12, 384, [41.0] * 12, "B03 done, 12 of 384, 41 s a field, about 4 h left"),
        (12, 24, [41.0] * 12, "B03 done, 12 of 24, 41 s a field, about 8 min left"),
        (203, 205, [0.01] * 202 + [40.0], "B03 done, 203 of 205, 40 s a field, about 80 s left"),
        (2, 2, [1.25, 1.25], "B03 done, 2 of 2, 1.25 s a field"),
        (1, 2, [0.0], "B03 done, 1 of 2, 0 s a field, about 0 s left"),
    ],
)
def test_progress_is_told_with_the_time_left(done, of, took, text):
    assert progress("B03", done, of, took) == text


def test_the_log_is_told_every_half_minute_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    context = SimpleNamespace(log=SimpleNamespace(info=told.append, error=lambda text: None))

    def work(item: SimpleNamespace) -> None:
        clock[0] += 11
        if item.well == "A02":
            raise GradcamoError("broken", "Mend it.")

    items = [SimpleNamespace(plate="P", well=f"A{n:02d}", site=1) for n in range(1, 8)]
    outcome = for_each_field(context, items, work)  # type: ignore[arg-type]
    assert [text.split(" done")[0] for text in told] == ["A03", "A06", "A07"]
    assert list(outcome.failed) == ["A02"] and len(outcome.done) == 6
    with pytest.raises(dg.Failure):
        for_each_field(context, items[1:2], work)  # type: ignore[arg-type]


def test_warnings_of_other_stages_stay_and_ours_are_replaced(tmp_path: Path) -> None:
    lake, wells = Lake(tmp_path), ["A01", "A02", "A03"]
    warnings = ["DNA is out of focus", None, "ER is out of focus; DNA repeats a plane in 2 of 3 slices"]
    rows = pl.DataFrame({"Metadata_Plate": "P", "Metadata_Well": wells, "Metadata_Site": 1, "qc_warning": warnings})
    lake.write("fields", pl.concat([lake_table("fields").empty(), rows], how="diagonal_relaxed"), plate="P", site=1)

    def read(column: str) -> list:
        return lake.read("fields", plate="P", site=1)[column].to_list()

    numbers = {"n_cells": {"A01": 3, "A03": 0}, "foreground_share": {"A01": 0.25}}
    for _ in range(2):
        measure_fields(lake, "P", 1, numbers, {"A01": "3 cells", "A02": "9 cells"})
        assert read("qc_warning") == ["DNA is out of focus; masks: 3 cells", "masks: 9 cells", warnings[2]]
        assert read("n_cells") == [3, None, 0] and read("foreground_share") == [0.25, None, None]
    measure_fields(lake, "P", 1, {}, {"A03": "1 cell"})
    assert read("qc_warning") == [*warnings[:2], f"{warnings[2]}; masks: 1 cell"]
    measure_fields(lake, "P", 1, {"n_cells": {}}, {})
    assert read("qc_warning") == warnings and read("n_cells") == [None] * 3
    flag_fields(lake, "P", 1, "unusable masks", {"A02": "over-split"})
    assert read("qc_flag") == [None, "unusable masks: over-split", None]
    flag_fields(lake, "P", 1, "unusable masks", {})
    assert read("qc_flag") == [None] * 3
