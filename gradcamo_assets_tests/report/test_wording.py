from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
import pytest

from gradcamo_assets.report import verdict
from gradcamo_assets.report.wording import wells_with_cells

DOSE = {"Metadata_Compound": "cpd-A", "Metadata_Dose_Unit": "uM"}


def scores(looks: list[str | None], on_target: float = 0.0) -> pl.DataFrame:
    hits = round(on_target * len(looks))
    return pl.DataFrame(
        {
            "looks_at": looks,
            "gradcamo_adjusted": [None if where is None else 0.25 for where in looks],
            "on_target": [None if where is None else n < hits for n, where in enumerate(looks)],
        },
        schema={"looks_at": pl.String, "gradcamo_adjusted": pl.Float64, "on_target": pl.Boolean},
    )


def answers(**views: list[dict[str, Any]]) -> dict[str, str]:
    frames = {name: pl.DataFrame(rows) for name, rows in views.items()}
    return dict(verdict(scores(["target"] * 4, 1.0), frames, None).answers)


def dose(verdict: str, dose: float = 1.0, score: float | None = 0.3, **changes: Any) -> dict[str, Any]:
    """A row of ``trusted_doses``."""
    row = {**DOSE, "Metadata_Dose": dose, "verdict": verdict, "mean_adjusted": score, "adjusted_threshold": 0.17}
    row |= {"survives_swap": 0.21, "swap_threshold": 0.43, "one_treatment_per_well": True, "trained_for_score": False}
    return row | {"paper_verdict": "not trusted"} | changes


@pytest.mark.parametrize(
    ("verdicts", "looks", "headline"),
    [
        (["trusted", "trusted", "undecided"], "target", "Most profiles describe their cell (2 of 3 doses)"),
        (["fails the swap"] * 2, "target", "Too few predictions come from the cell: 21% survive the swap test (2 of 2"),
        (["not trusted"] * 3, "background", "the most frequent alternative is the background (3 of 3 doses)"),
        (["not trusted"] * 3, "neighbour", "the most frequent alternative is neighbouring cells (3 of 3 doses)"),
        (["not trusted"] * 3, "none", "Most maps do not look at their cell (3 of 3 doses)"),
        (["not audited"], "target", "no swap test confirms it (1 of 1 dose)"),
        (["too few wells", "trusted", "too few wells"], "target", "doses have too few wells (2 of 3 doses)"),
        ([], "target", "No dose of this plate has a verdict"),
        (["trusted"], None, "No held-out cell of this plate has a score"),
    ],
)
def test_the_headline_states_the_most_frequent_verdict(verdicts: list[str], looks: str | None, headline: str) -> None:
    frames = {"trusted_doses": pl.DataFrame([dose(kind) for kind in verdicts])}
    written = verdict(scores([looks] * 4), frames, None).headline
    assert headline in written
    assert written.startswith("Most profiles describe their cell") == (verdicts.count("trusted") > 1)


def test_shares_are_of_scored_cells_and_the_others_are_counted() -> None:
    text = verdict(scores(["target", "target", "neighbour", "background", None], 0.4), {}, None).shares
    assert text.startswith(
        "Of the maps of 4 held-out cells, 50% look at their own cell, 25% at neighbouring cells, 25% at the background"
    )
    assert "50% have more than 50% on the cell" in text
    assert "median adjusted score is 0.25" in text and text.endswith("Cells without a score: 1.")


def test_doses_are_listed_by_their_verdict_with_the_rule() -> None:
    rows = [dose("trusted", 0.1, 0.9), dose("undecided", 1.0, 0.25), dose("too few wells", 10.0, None)]
    text = answers(trusted_doses=rows)["Which doses can be trusted?"]
    assert text == (
        "Trusted: cpd-A 0.1 uM (0.90). Undecided: cpd-A 1 uM (0.25). Too few wells: cpd-A 10 uM. In brackets: mean "
        "adjusted score. A dose is trusted if the 95% confidence interval of its score over wells lies above 0.17; "
        "also, at least 43% of the audited cells of the plate must survive the swap test (each well has one treatment)."
        " By the rule of the paper (interval of the share of cells on target), 0 doses would be trusted."
    )
    many = [dose("not trusted", float(n), paper_verdict="trusted") for n in range(1, 21)]
    text = answers(trusted_doses=many)["Which doses can be trusted?"]
    assert text.startswith("No dose is trusted. Not trusted: cpd-A 1 uM") and "and 8 more." in text
    assert text.endswith("20 doses would be trusted.")


def test_the_swap_test_alone_decides_if_training_rewarded_the_score() -> None:
    rows = [dose("trusted", trained_for_score=True, one_treatment_per_well=False)]
    text = answers(trusted_doses=rows)["Which doses can be trusted?"]
    assert "Training rewarded the score, so the swap test alone decides: at least 43%" in text and "0.17" not in text
    assert "(wells have several treatments)" in text


def test_wells_sites_drift_and_gain_are_answered() -> None:
    assert answers()["Which wells should be dropped?"].startswith("None")
    wells = [{"Metadata_Well": well, "reason": "no better than chance"} for well in ("A01", "B02")]
    assert answers(wells_to_drop=wells)["Which wells should be dropped?"] == "A01, B02 (no better than chance)."

    site = {"Metadata_Site": 1, "verdict": "no clear difference", "difference": 0.01}
    question = "Does the site matter?"
    assert answers(site_effect=[site])[question] == "The plate has only one site."
    assert answers(site_effect=[site, site])[question].startswith("No: none of the 2 sites")
    lower = {"Metadata_Site": 3, "verdict": "lower", "difference": -0.12}
    assert answers(site_effect=[site, lower])[question].startswith("Yes: site 3 is lower (-0.12)")

    drift = {"verdict": "differs", "earlier_plates": 9}
    far = {"on_target_deviation": -6.25, "adjusted_deviation": 0.5, "control_deviation": None}
    text = answers(plate_drift=[{**drift, **far}])["Is the plate like earlier plates?"]
    assert text == (
        "No, it differs. Difference from 9 earlier plates, in robust standard deviations: share on target -6.2, "
        "adjusted score +0.5."
    )
    few = {"verdict": "too few earlier plates", "earlier_plates": 1}
    text = answers(plate_drift=[{**drift, **far, **few}])["Is the plate like earlier plates?"]
    assert text == "Unknown: 1 earlier plate so far, 8 are needed."

    gain = {"verdict": "helped", "previous_version": 1, "n_cells": 50, "on_target_before": 0.2, "on_target_now": 0.6}
    text = answers(model_gain=[{**gain, "adjusted_before": 0.1, "adjusted_now": 0.4}])["Is the new model better?"]
    assert text.startswith("Helped: of 50 cells, 20% were on target with version 1 and 60% are now.")


def test_cells_and_fields_that_were_left_out_are_counted_by_reason() -> None:
    rows = [
        {"part": "cell", "qc_flag": None, "n": 150},
        {"part": "cell", "qc_flag": "no nucleus", "n": 30},
        {"part": "cell", "qc_flag": "touches the field's border", "n": 15},
        {"part": "cell", "qc_flag": "no nucleus", "n": 3},
        {"part": "cell", "qc_flag": "cell probability 0.25", "n": 1},
        {"part": "cell", "qc_flag": "cell probability 0.125", "n": 1},
        {"part": "field", "qc_flag": None, "n": 12},
    ]
    assert answers(left_out=rows)["Which cells were left out?"] == (
        "50 of 200 segmented cells (25%): no nucleus (33), touches the field's border (15), cell probability ... (2). "
        "None of the 12 fields."
    )
    assert "Which cells were left out?" not in answers()


def test_wells_with_cells_are_named_if_they_are_few() -> None:
    few = ["A01", "A13", "J18", "P13"]
    assert wells_with_cells(few, 384) == "4 of 384 wells have cells: A01, A13, J18, P13."
    assert wells_with_cells([f"A{n:02d}" for n in range(1, 25)], 384) == "24 of 384 wells have cells."
    assert wells_with_cells([], 96) == "0 of 96 wells have cells."


def test_the_audit_names_the_region_with_the_largest_effect() -> None:
    drops = {"logit_drop_target": 0.1, "logit_drop_neighbour": None, "logit_drop_background": 2.0}
    audit = {**drops, "n_cells": 32, "score_effect_correlation": 0.7, "survives_swap": None}
    text = answers(audit_by_plate=[audit])
    assert text["What do the predictions depend on?"].startswith("Mostly on the background. ")
    assert "0.10 for the cell, 2.00 for the background" in text["What do the predictions depend on?"]
    assert "measured effect is 0.70" in text["What do the predictions depend on?"]


def test_the_training_is_described() -> None:
    model = {
        "architecture": "resnet", "train_plates": ["P1"], "train_wells": ["P1/A01", "P1/A02"],
        "created_at": datetime(2026, 1, 2), "metrics": {"test_accuracy": 0.875},
    }  # fmt: skip
    text = dict(verdict(scores(["target"]), {}, model).answers)["How was the model trained?"]
    assert text == (
        "resnet, trained on 2 wells of P1, registered 2026-01-02. "
        "It predicts the class of 88% of the cells in held-out wells correctly. "
        "It is not known whether training swapped surroundings or penalised maps outside the cell."
    )


def trained_model(swap: float = 0.5, regulariser: str = "none") -> dict[str, Any]:
    unknown = dict.fromkeys(("architecture", "train_plates", "train_wells", "created_at", "metrics"))
    return {**unknown, "swap": swap, "regulariser": regulariser, "regulariser_weight": 3.0}


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            trained_model(),
            "50% of the crops the surroundings of another crop. Maps outside the cell were not penalised.",
        ),
        (trained_model(0), "Training did not swap surroundings. Maps outside the cell were not penalised."),
        (
            trained_model(0, "gradcamo"),
            "Training did not swap surroundings. Maps outside the cell were penalised (gradcamo, weight 3)",
        ),
        (trained_model(regulariser="gradcamo"), "a high score alone is no evidence; the swap test decides."),
        (trained_model() | {"swap": None, "regulariser": None}, "It is not known"),
    ],
)
def test_swap_and_penalty_are_described(model: dict[str, Any], text: str) -> None:
    text = dict(verdict(scores(["target"]), {}, model).answers)["How was the model trained?"]
    assert text in text and ("no evidence" in text) == (model["regulariser"] not in (None, "none"))


@pytest.mark.parametrize(
    ("judged", "finding"),
    [("survives the swap", "Yes, "), ("fails the swap", "No, "), ("not audited", "Unknown: too few cells")],
)
@pytest.mark.parametrize("one_treatment", [False, True])
def test_the_swap_test_is_answered_by_its_verdict(judged: str, finding: str, one_treatment: bool) -> None:
    drops = dict.fromkeys(f"logit_drop_{region}" for region in ("target", "neighbour", "background"))
    row = {**drops, "n_cells": 32, "score_effect_correlation": None, "survives_swap": 0.6, "trusted": 0.25}
    row |= {"swap_threshold": 0.43, "verdict": judged, "one_treatment_per_well": one_treatment}
    text = answers(audit_by_plate=[row])["Do the predictions come from the cell?"]
    assert text.startswith(finding) and "Of 32 audited cells, 60% survive the swap" in text
    assert "At least 43% is required. 25% survive and have a map" in text
    assert ("neighbours show it too" in text) == one_treatment
    assert "Do the predictions come from the cell?" not in answers(audit_by_plate=[row | {"survives_swap": None}])
