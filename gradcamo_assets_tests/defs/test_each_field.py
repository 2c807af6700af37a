"""Progress messages while fields are processed, and the states written about them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest

from gradcamo_assets.defs import each_field as module
from gradcamo_assets.defs.each_field import field_row, format_progress, process_fields_of_site
from gradcamo_assets.defs.field_results import require_version
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.tables import Lake, lake_table, publish, run_sql


@pytest.mark.parametrize(
    ("done", "total", "durations", "text"),
    [
        (12, 384, [41.0] * 12, "B03 done, 12 of 384, 41 s per field, about 4 h left"),
        (12, 24, [41.0] * 12, "B03 done, 12 of 24, 41 s per field, about 8 min left"),
        (203, 205, [0.01] * 202 + [40.0], "B03 done, 203 of 205, 40 s per field, about 80 s left"),
        (2, 2, [1.25, 1.25], "B03 done, 2 of 2, 1.25 s per field"),
        (1, 2, [0.0], "B03 done, 1 of 2, 0 s per field, about 0 s left"),
    ],
)
def test_progress_includes_the_remaining_time(done, total, durations, text):
    assert format_progress("B03", done, total, durations) == text


def test_progress_is_logged_every_half_minute_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, messages = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    context = SimpleNamespace(log=SimpleNamespace(info=messages.append, error=lambda text: None))

    def work(item: SimpleNamespace) -> None:
        clock[0] += 11
        if item.well == "A02":
            raise GradcamoError("broken", "Repair it.")

    items = [SimpleNamespace(plate="P", well=f"A{n:02d}", site=1) for n in range(1, 8)]
    outcome = process_fields_of_site(context, items, work)  # type: ignore[arg-type]
    assert [text.split(" done")[0] for text in messages] == ["A03", "A06", "A07"]
    assert list(outcome.failed) == ["A02"] and len(outcome.done) == 6
    with pytest.raises(dg.Failure):
        process_fields_of_site(context, items[1:2], work)  # type: ignore[arg-type]


def test_the_states_of_all_stages_are_combined_and_replaced_by_stage(tmp_path: Path) -> None:
    lake, wells = Lake(tmp_path / "lake"), ("A01", "A02", "A03")

    def write(table: str, *states: dict) -> None:
        rows = [field_row("P", well, 1, **values) for well, values in zip(wells, states, strict=False)]
        lake.write(table, pl.DataFrame(rows, schema=lake_table(table).schema), plate="P", site=1)

    def fields(*columns: str) -> list[tuple]:
        publish(lake, tmp_path / "qc.duckdb")
        return run_sql(tmp_path / "qc.duckdb", f"SELECT {', '.join(columns)} FROM fields ORDER BY Metadata_Well").rows()

    out, repeats = "DNA is out of focus", "ER is out of focus; DNA repeats a plane in 2 of 3 slices"
    write("fields", *({"image_version": "1", "qc_warning": warning} for warning in (out, None, repeats)))
    assert fields("qc_flag", "qc_warning", "n_cells") == [(None, out, None), (None, None, None), (None, repeats, None)]
    made = {"image_version": "1", "mask_version": "m"}
    write(
        "masks", {**made, "n_cells": 3, "foreground_share": 0.25}, {"qc_flag": "not segmented"}, {**made, "n_cells": 0}
    )
    write("field_verdicts", {"qc_warning": "masks: 3 cells"}, {}, {"qc_flag": "unusable masks: no cell was found"})
    assert fields("n_cells", "foreground_share") == [(3, 0.25), (None, None), (0, None)]
    assert fields("qc_warning") == [(f"{out}; masks: 3 cells",), (None,), (repeats,)]
    flags = [(None,), ("not segmented",), ("unusable masks: no cell was found",)]
    assert fields("qc_flag") == flags
    write("field_crops", {"qc_flag": "not cropped"}, {}, {"qc_flag": "not cropped"})
    assert fields("qc_flag") == [("not cropped",), *flags[1:]], "the first stage that failed is the reason"
    write("field_crops", {}, {}, {})
    write("field_verdicts", {}, {"qc_warning": "masks: 9 cells"}, {})
    assert fields("qc_flag", "qc_warning") == [(None, out), ("not segmented", "masks: 9 cells"), (None, repeats)]
    write("fields", {"image_version": "2"}, {"image_version": "2"}, {"image_version": "1"})
    assert fields("n_cells") == [(None,), (None,), (0,)], "states from masks of other pixels are ignored"
    assert fields("qc_flag") == [(None,), ("not segmented",), (None,)]


def test_a_missing_result_names_the_asset_to_make(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.record_version("mask_versions", "v1", "images", 4, plate="P1", site=2)
    assert require_version(lake, "masks", "P1", 2) == "v1"
    with pytest.raises(GradcamoError, match="the asset crops has no results yet"):
        require_version(lake, "crops", "P1", 2)
