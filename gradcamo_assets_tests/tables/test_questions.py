"""The question views, compared with loops over synthetic rows with planted answers."""

from __future__ import annotations

import io
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import Lake, publish, qc_table, run_sql
from gradcamo_assets.tables.queries import QC_CHOICES
from gradcamo_assets.thresholds import THRESHOLDS
from gradcamo_assets_tests.tables import rows

PLATES = [f"P{number}" for number in range(1, 12)]
# The plates are ingested in another order than that of their names; the last one differs from all others.
INGESTED = [*PLATES[5:10], *PLATES[:5], PLATES[10]]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 scores higher than 1, site 2 of P3 higher than site 1, P11 lower than all, A01 of P1 at chance."""
    folder, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(4)
    lake = rows.filled(folder / "lake", plates=len(PLATES))
    is_here = pl.col("Metadata_Plate") == "P3"
    raised = (
        0.2 * (pl.col("model_version") == 2)
        + 0.5 * (is_here & (pl.col("Metadata_Site") == 2))
        - 0.4 * (pl.col("Metadata_Plate") == "P11")
        - 2.0 * ((pl.col("Metadata_Plate") == "P1") & (pl.col("Metadata_Well") == "A01"))
    )
    for keys in partitions(lake):
        frame = lake.read("scores", **keys).with_columns(
            gradcamo_adjusted=pl.col("gradcamo_adjusted") + raised,
            on_target=pl.when(pl.col("Metadata_Plate") == "P2").then(True).otherwise(pl.col("on_target")),
        )
        if keys["plate"] == "P4" and keys["site"] == 1:  # Leave few cells in this well.
            is_kept = pl.int_range(pl.len()).over("Metadata_Well") < 2
            frame = frame.filter((pl.col("Metadata_Well") != "B03") | is_kept)
        lake.write("scores", frame, **keys)
    lake.drop("scores", plate="P4", site=2)
    again = rows.write_cells(lake, lake.read("cells", plate="P5", site=1).with_columns(mask_version=pl.lit("m2")))
    rows.write_scores(lake, rows.scores(rng, again, 2), "P5", 1, 2)
    for day, plate in enumerate(INGESTED):
        row = {"Metadata_Plate": plate, "ingested_at": rows.NOW + timedelta(days=day)}
        lake.write("plates", rows.frame("plates", [row]), plate=plate)
    publish(lake, folder / "qc.duckdb")
    return folder


def partitions(lake: Lake) -> Rows:
    names = {"plate": "Metadata_Plate", "site": "Metadata_Site", "model_run": "model_run"}
    return lake.partition_versions("score_versions").select(**names).to_dicts()


@pytest.fixture(scope="module")
def scores(home: Path) -> Rows:
    return [row for row in Lake(home / "lake").read("scores").to_dicts() if row["split"] != "train"]


def answer(home: Path, question: str, **arguments: Any) -> Rows:
    return qc_table(home / "qc.duckdb", question, **arguments).to_dicts()


def grouped(found: Rows, *names: str) -> dict[tuple, Rows]:
    groups: dict[tuple, Rows] = defaultdict(list)
    for row in found:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def adjusted(found: Rows) -> list[float]:
    return [row["gradcamo_adjusted"] for row in found if row["gradcamo_adjusted"] is not None]


def deviation(value: float, others: list[float]) -> float:
    middle = np.median(others)
    return float((value - middle) / max(1.4826 * np.median(np.abs(np.array(others) - middle)), 0.01))


def sign_test(ups: list[bool], up: str, down: str) -> str:
    n, k = len(ups), sum(ups)
    return "no clear difference" if abs(2 * k - n) - 1 < 1.96 * n**0.5 else up if 2 * k > n else down


def test_no_dose_is_trusted_without_a_swap_test_and_the_paper_has_its_own_column(home: Path) -> None:
    found, papers, verdicts = answer(home, "trusted_doses"), set(), set()
    assert len(found) == len(answer(home, "dose")) == 3 * len(PLATES)
    for row, dose in zip(found, answer(home, "dose"), strict=True):
        assert all(row[name] == dose[name] for name in ("Metadata_Plate", "ci_low", "adjusted_low", "adjusted_high"))
        low, high = dose["ci_low"], dose["ci_high"]
        expected = "too few wells" if low is None else "trusted" if low > 0.5 else "not trusted" if high < 0.5 else None
        assert row["paper_verdict"] == (expected or "undecided")
        is_low = (dose["adjusted_high"] or 1) < row["adjusted_threshold"]
        unknown = "not trusted" if is_low else "not audited"
        assert row["verdict"] == ("too few wells" if dose["adjusted_high"] is None else unknown)
        assert (row["survives_swap"], row["n_audited"], row["one_treatment_per_well"]) == (None, 0, True)
        papers.add(row["paper_verdict"])
        verdicts.add(row["verdict"])
        assert row["Metadata_Plate"] != "P2" or row["paper_verdict"] in ("trusted", "too few wells")
    assert len(papers) >= 3 and "trusted" not in verdicts and {"too few wells", "not audited"} <= verdicts


# Adjusted score (None: wells differ; NaN: unknown), share of audited cells that survive the swap (None: no audit),
# number of audited held-out cells, verdict.
HIGH, LOW = 0.9, -0.1
BETWEEN = (THRESHOLDS.adjusted_one_treatment + THRESHOLDS.adjusted) / 2
SWAP_BETWEEN = (THRESHOLDS.swap_one_treatment + THRESHOLDS.swap) / 2
PLANTED = {
    "P1": (HIGH, 1.0, 20, "trusted"),
    "P2": (HIGH, 0.0, 20, "fails the swap"),
    "P3": (HIGH, None, 0, "not audited"),
    "P4": (LOW, 1.0, 20, "not trusted"),
    "P5": (None, 1.0, 20, "undecided"),
    "P6": (HIGH, 1.0, THRESHOLDS.fewest_audited - 1, "not audited"),
    "P7": (BETWEEN, SWAP_BETWEEN, 1000, "trusted"),
    "P8": (HIGH, SWAP_BETWEEN, 1000, "fails the swap"),
    "P9": (BETWEEN, 1.0, 20, "not trusted"),
    "P10": (np.nan, 1.0, 20, "too few wells"),
}
POOLED = ("P8", "P9")
"""Plates whose wells have two treatments each: a control, which is judged, and another."""


def test_the_adjusted_score_and_the_swap_test_decide(tmp_path: Path) -> None:
    lake, rng = rows.filled(tmp_path / "lake", plates=len(PLANTED), sites=1), np.random.default_rng(0)
    for keys in partitions(lake):
        adjusted_score = PLANTED[keys["plate"]][0]
        value = pl.lit(adjusted_score)
        if adjusted_score is None:  # The wells of the control differ.
            value = pl.when(pl.col("Metadata_Well") == "A01").then(LOW).otherwise(HIGH)
        table = lake.read("scores", **keys).with_columns(
            gradcamo_adjusted=pl.when(pl.col("gradcamo").is_not_null()).then(
                value - 0.001 * (2 - int(keys["model_run"][-1]))
            )
        )
        if keys["plate"] in POOLED:
            is_second = pl.int_range(pl.len()) % 2 == 0
            table = table.with_columns(
                Metadata_Compound=pl.when(is_second).then(pl.lit("other")).otherwise(pl.lit("DMSO"))
            )
        lake.write("scores", table, **keys)
    for plate, (_, share, held_out, _) in PLANTED.items():
        if share is not None:
            run = rows.run_of(2)
            scored = lake.read("scores", plate=plate, model_run=run)
            audited = pl.concat(
                [scored.filter(pl.col("split") != "train").head(held_out), scored.filter(split="train")]
            )
            table = rows.audited(rng, audited, 2, len(audited)).join(
                scored.select("Metadata_CellID", "split"), on="Metadata_CellID"
            )
            # Cells of the training do not count, so all of them contradict the others.
            kept = pl.int_range(pl.len()).over("split") < (share * pl.len()).round().over("split")
            table = table.with_columns(survives_swap=kept ^ (pl.col("split") == "train")).drop("split")
            lake.write("audit", table, plate=plate, model_run=run)

    def verdicts() -> dict[str, str]:
        publish(lake, tmp_path / "qc.duckdb")
        found = [row for row in answer(tmp_path, "trusted_doses") if row["Metadata_Compound"] == "DMSO"]
        assert all(row["one_treatment_per_well"] == (row["Metadata_Plate"] not in POOLED) for row in found)
        assert {row["rule"] for row in found} == {rule}
        return {row["Metadata_Plate"]: row["verdict"] for row in found if row["Metadata_Dose"] == 0}

    rule = "adjusted score and swap test"
    assert verdicts() == {plate: planted[-1] for plate, planted in PLANTED.items()}
    helped = [row["verdict"] for row in answer(tmp_path, "model_gain")]
    lake.append("models", rows.model(2).with_columns(regulariser=pl.lit("gradcamo"), regulariser_weight=2.0))
    rule = "swap test"
    by_swap = dict.fromkeys(("P4", "P5", "P9", "P10"), "trusted")
    assert verdicts() == {plate: planted[-1] for plate, planted in PLANTED.items()} | by_swap
    assert "helped" in helped
    but = ["helped, but trained for" if verdict == "helped" else verdict for verdict in helped]
    assert [row["verdict"] for row in answer(tmp_path, "model_gain")] == but
    audits = run_sql(
        tmp_path / "qc.duckdb", "SELECT Metadata_Plate, n_cells, survives_swap, verdict FROM audit_by_plate"
    )
    for row in audits.iter_rows(named=True):
        _, share, _, verdict = PLANTED[row["Metadata_Plate"]]
        assert row["survives_swap"] == pytest.approx(share, abs=1 / row["n_cells"])
        assert row["verdict"] == (verdict if verdict in ("fails the swap", "not audited") else "survives the swap")


def test_which_wells_to_drop(home: Path, scores: Rows) -> None:
    expected = {}
    for (plate,), here in grouped([row for row in scores if row["model_version"] == 2], "Metadata_Plate").items():
        wells = {well: adjusted(found) for (well,), found in grouped(here, "Metadata_Well").items()}
        medians = [float(np.median(values)) for values in wells.values() if values]
        for well, values in wells.items():
            off = deviation(float(np.median(values)), medians) if values else None
            if len(values) < 5:
                expected[plate, well] = (len(values), "fewer than 5 cells with a score", off)
            elif np.median(values) < 0.05:
                expected[plate, well] = (len(values), "no better than chance", off)
            elif off is not None and off < -4:
                expected[plate, well] = (len(values), "far below its plate", off)
    found = answer(home, "wells_to_drop")
    assert {(row["Metadata_Plate"], row["Metadata_Well"]) for row in found} == set(expected)
    for row in found:
        n, reason, off = expected[row["Metadata_Plate"], row["Metadata_Well"]]
        assert (row["n_scored"], row["reason"]) == (n, reason)
        assert row["deviation"] == pytest.approx(off)
        assert row["Metadata_Dose"] == rows.treatment(row["Metadata_Well"])["Metadata_Dose"]
    assert expected["P1", "A01"][1] == "no better than chance"
    assert expected["P4", "B03"][1] == "fewer than 5 cells with a score"


def test_does_site_matter(home: Path, scores: Rows) -> None:
    found = grouped(answer(home, "site_effect"), "Metadata_Plate", "Metadata_Site")
    held = [row for row in scores if row["model_version"] == 2 and row["gradcamo_adjusted"] is not None]
    for (plate, site), (row,) in found.items():
        differences = []
        for here in grouped([r for r in held if r["Metadata_Plate"] == plate], "Metadata_Well").values():
            inside = [r["gradcamo_adjusted"] for r in here if r["Metadata_Site"] == site]
            outside = [r["gradcamo_adjusted"] for r in here if r["Metadata_Site"] != site]
            if inside and outside:
                differences.append(np.mean(inside) - np.mean(outside))
        assert row["wells_up"] + row["wells_down"] == len(differences)
        assert row["verdict"] == sign_test([d > 0 for d in differences], "higher", "lower")
        assert row["difference"] == (pytest.approx(np.median(differences)) if differences else None)
    assert found["P3", 2][0]["verdict"] == "higher" and found["P3", 1][0]["verdict"] == "lower"
    assert found["P4", 1][0]["verdict"] == "no clear difference"
    assert len(found) == 2 * len(PLATES) - 1


def test_has_the_new_model_helped(home: Path, scores: Rows) -> None:
    pairs: dict[tuple, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in scores:
        if row["gradcamo_adjusted"] is not None:
            pairs[row["Metadata_CellID"], row["mask_version"], row["crop_version"]][row["model_version"]] = row
    both = [pair for pair in pairs.values() if len(pair) == 2]
    found = answer(home, "model_gain")
    assert [row["Metadata_Plate"] for row in found] == sorted(PLATES)
    for row in found:
        here = [pair for pair in both if pair[2]["Metadata_Plate"] == row["Metadata_Plate"]]
        assert (row["model_version"], row["previous_version"], row["n_cells"]) == (2, 1, len(here))
        for version, when in ((1, "before"), (2, "now")):
            assert row[f"on_target_{when}"] == pytest.approx(np.mean([pair[version]["on_target"] for pair in here]))
            mean = np.mean([pair[version]["gradcamo_adjusted"] for pair in here])
            assert row[f"adjusted_{when}"] == pytest.approx(mean)
        wells = defaultdict(list)
        for pair in here:
            gain = pair[2]["gradcamo_adjusted"] - pair[1]["gradcamo_adjusted"]
            wells[pair[2]["Metadata_Well"]].append(gain)
        gains = [np.mean(values) > 0 for values in wells.values()]
        assert (row["wells_up"], row["n_wells"]) == (sum(gains), len(gains))
        assert row["verdict"] == sign_test(gains, "helped", "harmed")
    assert "helped" in {row["verdict"] for row in found}
    assert all(pair[2]["Metadata_Site"] == 2 for pair in both if pair[2]["Metadata_Plate"] == "P5")


def test_which_cells_to_look_at(home: Path, scores: Rows) -> None:
    held = [row for row in scores if row["model_version"] == 2 and row["gradcamo_adjusted"] is not None]
    crops = {row["Metadata_CellID"]: row["crop_index"] for row in Lake(home / "lake").read("crops").to_dicts()}
    treated = ("Metadata_Plate", "Metadata_Compound", "Metadata_Dose")
    found = grouped(answer(home, "cells_to_look_at"), *treated)
    for key, here in grouped(held, *treated).items():
        worst = sorted(here, key=lambda row: row["gradcamo_adjusted"])[:3]
        shown = found.pop(key)
        assert [row["Metadata_CellID"] for row in shown] == [row["Metadata_CellID"] for row in worst]
        assert [row["crop_index"] for row in shown] == [crops[row["Metadata_CellID"]] for row in worst]
        assert [row["place"] for row in shown] == [1, 2, 3][: len(worst)]
    assert not found


@pytest.mark.parametrize("version", [1, 2])
def test_is_this_plate_like_earlier_ones(home: Path, scores: Rows, version: int) -> None:
    found = {
        row["Metadata_Plate"]: row
        for row in answer(home, "plate_drift", champion_only=False)
        if row["model_version"] == version
    }
    assert list(found) == INGESTED
    seen: dict[str, list[float]] = defaultdict(list)
    for number, plate in enumerate(INGESTED):
        here = [row for row in scores if row["model_version"] == version and row["Metadata_Plate"] == plate]
        controls = grouped([row for row in here if row["Metadata_pert_type"] == "negcon"], "Metadata_Well")
        values = {
            "on_target": np.mean([row["on_target"] for row in here if row["gradcamo"] is not None]),
            "adjusted": np.median(adjusted(here)),
            "control": np.median([np.median(adjusted(cells)) for cells in controls.values()]),
        }
        row, off = found[plate], []
        for name, value in values.items():
            if seen[name]:
                assert row[f"{name}_before"] == pytest.approx(np.median(seen[name]))
                off.append(deviation(float(value), seen[name]))
                assert row[f"{name}_deviation"] == pytest.approx(off[-1])
            seen[name].append(float(value))
        assert row["earlier_plates"] == number
        verdict = "too few earlier plates" if number < 8 else "differs" if max(map(abs, off)) > 4 else "as before"
        assert row["verdict"] == verdict
    assert found["P11"]["verdict"] == "differs"


def test_a_first_champion_has_no_comparison(tmp_path: Path) -> None:
    lake = rows.filled(tmp_path / "lake", plates=1, versions=1)
    publish(lake, tmp_path / "qc.duckdb")
    assert answer(tmp_path, "model_gain") == []
    assert [row["verdict"] for row in answer(tmp_path, "plate_drift")] == ["too few earlier plates"]


def test_every_choice_answers_on_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAMO_HOME", str(home))
    for by in QC_CHOICES:
        result = CliRunner().invoke(main, ["qc", "--by", by, "--format", "csv"])
        assert result.exit_code == 0 and len(result.output.splitlines()) > 1, by
    result = CliRunner().invoke(main, ["qc", "--by", "well", "--plate", "P7", "--format", "csv"])
    assert set(pl.read_csv(io.StringIO(result.output))["Metadata_Plate"]) == {"P7"}
    with pytest.raises(StoreError, match="over all plates"):
        qc_table(home / "qc.duckdb", "model", plate="P7")
