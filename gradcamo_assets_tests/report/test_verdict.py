from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
import pytest

from gradcamo_assets.report import verdict

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
        (["target"] * 4 + ["background"] * 6, 0.1, "the background draws the most"),
        (["target"] * 4 + ["neighbour"] * 6, 0.1, "neighbours draw the most"),
        (["none"] * 10, 0.0, "Most profiles do not look at the cell they describe"),
        ([None], 0.0, "no score"),
        ([], 0.0, "no score"),
    ],
)
def test_the_finding_is_said_first(looks: list[str | None], on_target: float, headline: str) -> None:
    assert headline in verdict(scores(looks, on_target), {}, None).headline


def test_shares_are_of_cells_with_a_score_and_the_others_are_counted() -> None:
    said = verdict(scores(["target", "target", "neighbour", "background", None], 0.4), {}, None).shares
    assert said.startswith(
        "Of 4 profiles of held-out cells 50% look at their own cell, 25% at neighbouring cells, 25% at"
    )
    assert "50% have more than half of their map on the cell" in said
    assert "median adjusted score is 0.25" in said and "1 more have no score" in said


def test_doses_stand_under_what_is_said_of_them() -> None:
    rows = [
        {**DOSE, "Metadata_Dose": dose, "verdict": kind, "on_target_fraction": share}
        for dose, kind, share in [(0.1, "trusted", 0.9), (1.0, "undecided", 0.5), (10.0, "too few wells", None)]
    ]
    said = answers(trusted_doses=rows)["Which doses can be trusted?"]
    assert said.startswith("Trusted: cpd-A 0.1 uM (90%). Undecided: cpd-A 1 uM (50%). Too few wells: cpd-A 10 uM. ")
    many = [{**rows[0], "Metadata_Dose": float(n), "verdict": "not trusted"} for n in range(1, 21)]
    said = answers(trusted_doses=many)["Which doses can be trusted?"]
    assert said.startswith("None for sure. Not trusted: cpd-A 1 uM") and "and 8 more." in said


def test_wells_sites_drift_and_gain_are_answered() -> None:
    assert answers()["Which wells should be dropped?"].startswith("None")
    wells = [{"Metadata_Well": well, "reason": "no better than chance"} for well in ("A01", "B02")]
    assert answers(wells_to_drop=wells)["Which wells should be dropped?"] == "A01, B02 (no better than chance)."

    site = {"Metadata_Site": 1, "verdict": "no clear difference", "difference": 0.01}
    question = "Does the site matter?"
    assert answers(site_effect=[site])[question] == "There is one site only."
    assert answers(site_effect=[site, site])[question].startswith("No: none of the 2 sites")
    lower = {"Metadata_Site": 3, "verdict": "lower", "difference": -0.12}
    assert answers(site_effect=[site, lower])[question].startswith("Yes: site 3 is lower (-0.12)")

    drift = {"verdict": "differs", "earlier_plates": 9}
    far = {"on_target_deviation": -6.25, "adjusted_deviation": 0.5, "control_deviation": None}
    said = answers(plate_drift=[{**drift, **far}])["Is the plate like earlier ones?"]
    assert said == (
        "No: it differs. Robust deviations from 9 earlier plates: share on target (-6.2), adjusted score (+0.5)."
    )
    few = {"verdict": "too few earlier plates", "earlier_plates": 1}
    assert "1 earlier plates" not in answers(plate_drift=[{**drift, **far, **few}])["Is the plate like earlier ones?"]

    gain = {"verdict": "helped", "previous_version": 1, "n_cells": 50, "on_target_before": 0.2, "on_target_now": 0.6}
    said = answers(model_gain=[{**gain, "adjusted_before": 0.1, "adjusted_now": 0.4}])["Has the new model helped?"]
    assert said.startswith("Helped: 20% of 50 cells were on target by version 1, 60% are now")


def test_the_audit_says_what_the_model_rests_on() -> None:
    drops = {"logit_drop_target": 0.1, "logit_drop_neighbour": None, "logit_drop_background": 2.0}
    said = answers(audit_by_plate=[{**drops, "n_cells": 32, "score_effect_correlation": 0.7}])
    assert said["What does the model rest on?"].startswith("Mostly the background. ")
    assert "0.10 for the cell, 2.00 for the background" in said["What does the model rest on?"]
    assert "correlation of 0.70" in said["What does the model rest on?"]


def test_the_training_is_told() -> None:
    model = {
        "architecture": "resnet", "train_plates": ["P1"], "train_wells": ["P1/A01", "P1/A02"],
        "created_at": datetime(2026, 1, 2), "metrics": {"test_accuracy": 0.875},
    }  # fmt: skip
    said = dict(verdict(scores(["target"]), {}, model).answers)["How was the model trained?"]
    assert said == (
        "resnet, on 2 wells of P1, registered 2026-01-02. It tells the class of 88% of the cells of wells held out. "
        "Whether surroundings were swapped in training, or maps on the cell rewarded, is not known."
    )


def cured(swap: float = 0.5, regulariser: str = "none") -> dict[str, Any]:
    told = dict.fromkeys(("architecture", "train_plates", "train_wells", "created_at", "metrics"))
    cure = {"swap": swap, "regulariser": regulariser, "regulariser_weight": 3.0}
    return {**told, **cure}


def swap_test(survives: float | None, trusted: float = 0.25) -> dict[str, Any]:
    drops = dict.fromkeys(f"logit_drop_{region}" for region in ("target", "neighbour", "background"))
    return {**drops, "n_cells": 32, "score_effect_correlation": None, "survives_swap": survives, "trusted": trusted}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (cured(), "50% of its crops had the surroundings of another crop. Maps beside the cell were not penalised."),
        (cured(0), "No surroundings were swapped. Maps beside the cell were not penalised."),
        (cured(0, "gradcamo"), "were swapped. Maps beside the cell were penalised (gradcamo, weight 3). "),
        (cured(regulariser="gradcamo"), "the score alone is no evidence; read the swap test."),
        (cured() | {"swap": None, "regulariser": None}, "is not known."),
    ],
)
def test_how_the_model_was_cured_is_told(model: dict[str, Any], said: str) -> None:
    text = dict(verdict(scores(["target"]), {}, model).answers)["How was the model trained?"]
    assert said in text and ("no evidence" in text) == (model["regulariser"] not in (None, "none"))


@pytest.mark.parametrize("looks", ["target", "background"])
@pytest.mark.parametrize("survives", [None, 0.1, 0.5, 0.6])
@pytest.mark.parametrize("regulariser", [None, "none", "gradcamo"])
def test_a_good_score_is_called_good_only_where_answers_may_come_from_the_cell(
    looks: str, survives: float | None, regulariser: str | None
) -> None:
    found = verdict(
        scores([looks] * 10, float(looks == "target")), {"audit_by_plate": pl.DataFrame([swap_test(survives)])},
        cured() | {"regulariser": regulariser},
    )  # fmt: skip
    good = looks == "target" and survives in (None, 0.6) and not (regulariser == "gradcamo" and survives is None)
    assert found.headline.startswith("Most profiles describe their cell") == good
    assert found.headline.startswith("Most maps favour the cell") == (looks == "target" and not good)
    said = dict(found.answers).get("Do its answers come from the cell?")
    assert (said is None) == (survives is None)
    if said:
        assert f"Of 32 audited cells {survives:.0%} survive the swap" in said and "25% do and have a map" in said
        assert ("hang on what surrounds it" in said) == ("neighbours" in said) == (survives in (0.1, 0.5))


def test_doses_that_fail_the_swap_are_not_called_trusted() -> None:
    row = {**DOSE, "Metadata_Dose": 1.0, "on_target_fraction": 0.9}
    for kind in ("fails the swap", "trained for"):
        said = answers(trusted_doses=[{**row, "verdict": kind}])["Which doses can be trusted?"]
        assert said.startswith(f"None for sure. {kind.capitalize()}: cpd-A 1 uM (90%).")
