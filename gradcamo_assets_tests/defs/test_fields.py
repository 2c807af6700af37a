"""What is told of fields while they are worked on, and what is written about them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest

from gradcamo_assets.defs import each_field as module
from gradcamo_assets.defs.each_field import field_row, for_each_field, progress
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.tables import Lake, lake_table, publish, run_sql


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


def test_what_stages_say_of_a_field_stands_together_and_each_replaces_its_own(tmp_path: Path) -> None:
    lake, wells = Lake(tmp_path / "lake"), ("A01", "A02", "A03")

    def say(table: str, *said: dict) -> None:
        rows = [field_row("P", well, 1, **values) for well, values in zip(wells, said, strict=False)]
        lake.write(table, pl.DataFrame(rows, schema=lake_table(table).schema), plate="P", site=1)

    def fields(*columns: str) -> list[tuple]:
        publish(lake, tmp_path / "qc.duckdb")
        return run_sql(tmp_path / "qc.duckdb", f"SELECT {', '.join(columns)} FROM fields ORDER BY Metadata_Well").rows()

    out, repeats = "DNA is out of focus", "ER is out of focus; DNA repeats a plane in 2 of 3 slices"
    say("fields", *({"image_version": "1", "qc_warning": warning} for warning in (out, None, repeats)))
    assert fields("qc_flag", "qc_warning", "n_cells") == [(None, out, None), (None, None, None), (None, repeats, None)]
    made = {"image_version": "1", "mask_version": "m"}
    say("masks", {**made, "n_cells": 3, "foreground_share": 0.25}, {"qc_flag": "not segmented"}, {**made, "n_cells": 0})
    say("field_verdicts", {"qc_warning": "masks: 3 cells"}, {}, {"qc_flag": "unusable masks: no cell was found"})
    assert fields("n_cells", "foreground_share") == [(3, 0.25), (None, None), (0, None)]
    assert fields("qc_warning") == [(f"{out}; masks: 3 cells",), (None,), (repeats,)]
    flags = [(None,), ("not segmented",), ("unusable masks: no cell was found",)]
    assert fields("qc_flag") == flags
    say("field_crops", {"qc_flag": "not cropped"}, {}, {"qc_flag": "not cropped"})
    assert fields("qc_flag") == [("not cropped",), *flags[1:]], "the first stage that failed is the reason"
    say("field_crops", {}, {}, {})
    say("field_verdicts", {}, {"qc_warning": "masks: 9 cells"}, {})
    assert fields("qc_flag", "qc_warning") == [(None, out), ("not segmented", "masks: 9 cells"), (None, repeats)]
    say("fields", {"image_version": "2"}, {"image_version": "2"}, {"image_version": "1"})
    assert fields("n_cells") == [(None,), (None,), (0,)], "masks of other pixels say nothing of the field"
    assert fields("qc_flag") == [(None,), ("not segmented",), (None,)]
