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


@pytest.mark.parametrize(
    ("looks", "on_target", "headline"),
    [
        (["target"] * 9 + ["background"], 0.9, "Most profiles describe their cell"),
        (["target"] * 9 + ["background"], 0.1, "Most maps favour the cell, but few lie mainly on it"),
        (["target"] * 4 + ["background"] * 6, 0.1, "the most frequent alternative is the background"),
        (["target"] * 4 + ["neighbour"] * 6, 0.1, "the most frequent alternative is neighbouring cells"),
        (["none"] * 10, 0.0, "Most maps do not look at their cell"),
        ([None], 0.0, "No held-out cell of this plate has a score"),
        ([], 0.0, "No held-out cell of this plate has a score"),
    ],
)
def test_the_headline_states_the_finding(looks: list[str | None], on_target: float, headline: str) -> None:
    assert headline in verdict(scores(looks, on_target), {}, None).headline


def test_shares_are_of_scored_cells_and_the_others_are_counted() -> None:
    text = verdict(scores(["target", "target", "neighbour", "background", None], 0.4), {}, None).shares
    assert text.startswith(
        "Of the maps of 4 held-out cells, 50% look at their own cell, 25% at neighbouring cells, 25% at the background"
    )
    assert "50% lie more than half on the cell" in text
    assert "median adjusted score is 0.25" in text and text.endswith("Cells without a score: 1.")


def test_doses_are_listed_by_their_verdict() -> None:
    rows = [
        {**DOSE, "Metadata_Dose": dose, "verdict": kind, "on_target_fraction": share}
        for dose, kind, share in [(0.1, "trusted", 0.9), (1.0, "undecided", 0.5), (10.0, "too few wells", None)]
    ]
    text = answers(trusted_doses=rows)["Which doses can be trusted?"]
    assert text.startswith("Trusted: cpd-A 0.1 uM (90%). Undecided: cpd-A 1 uM (50%). Too few wells: cpd-A 10 uM. ")
    many = [{**rows[0], "Metadata_Dose": float(n), "verdict": "not trusted"} for n in range(1, 21)]
    text = answers(trusted_doses=many)["Which doses can be trusted?"]
    assert text.startswith("No dose is trusted. Not trusted: cpd-A 1 uM") and "and 8 more." in text


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
    assert text == "Unknown: 1 earlier plate so far, eight are needed."

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
    text = answers(audit_by_plate=[{**drops, "n_cells": 32, "score_effect_correlation": 0.7}])
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


def swap_test(survives: float | None, trusted: float = 0.25) -> dict[str, Any]:
    drops = dict.fromkeys(f"logit_drop_{region}" for region in ("target", "neighbour", "background"))
    return {**drops, "n_cells": 32, "score_effect_correlation": None, "survives_swap": survives, "trusted": trusted}


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
        (trained_model(regulariser="gradcamo"), "a high score alone is no evidence; see the swap test."),
        (trained_model() | {"swap": None, "regulariser": None}, "It is not known"),
    ],
)
def test_swap_and_penalty_are_described(model: dict[str, Any], text: str) -> None:
    text = dict(verdict(scores(["target"]), {}, model).answers)["How was the model trained?"]
    assert text in text and ("no evidence" in text) == (model["regulariser"] not in (None, "none"))


@pytest.mark.parametrize("looks", ["target", "background"])
@pytest.mark.parametrize("survives", [None, 0.1, 0.5, 0.6])
@pytest.mark.parametrize("regulariser", [None, "none", "gradcamo"])
def test_the_headline_is_good_only_if_predictions_can_come_from_the_cell(
    looks: str, survives: float | None, regulariser: str | None
) -> None:
    written = verdict(
        scores([looks] * 10, float(looks == "target")), {"audit_by_plate": pl.DataFrame([swap_test(survives)])},
        trained_model() | {"regulariser": regulariser},
    )  # fmt: skip
    good = looks == "target" and survives in (None, 0.6) and not (regulariser == "gradcamo" and survives is None)
    assert written.headline.startswith("Most profiles describe their cell") == good
    assert written.headline.startswith("Most maps favour the cell") == (looks == "target" and not good)
    text = dict(written.answers).get("Do the predictions come from the cell?")
    assert (text is None) == (survives is None)
    if text:
        assert f"Of 32 audited cells, {survives:.0%} survive the swap" in text and "25% survive and have a map" in text
        assert ("depend on its surroundings" in text) == ("neighbours" in text) == (survives in (0.1, 0.5))


def test_doses_that_fail_the_swap_test_are_not_trusted() -> None:
    row = {**DOSE, "Metadata_Dose": 1.0, "on_target_fraction": 0.9}
    for kind in ("fails the swap", "trained for"):
        text = answers(trusted_doses=[{**row, "verdict": kind}])["Which doses can be trusted?"]
        assert text.startswith(f"No dose is trusted. {kind.capitalize()}: cpd-A 1 uM (90%).")
