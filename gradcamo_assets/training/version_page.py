"""Write what MLflow shows on the page of a registered version: the evidence that a promotion should rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gradcamo_assets.networks.bundle import BundleConfig
from gradcamo_assets.thresholds import THRESHOLDS

_ROWS = {
    "unseen_balanced_accuracy": "Accuracy on unseen plates",
    "test_balanced_accuracy": "Accuracy on test wells",
    "test_accuracy_swapped": "Accuracy in other surroundings",
    "test_survives_swap": "Cells that survive the swap",
    "test_median_adjusted": "Adjusted score",
    "test_looks_at_target": "Maps that look at the target",
}
"""The metrics that the page shows, with their titles. The accuracy on unseen plates is left out if there were none."""


def version_tags(config: BundleConfig, metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the tags of a version: metrics by their names in MLflow, as text with three digits, and facts.

    Unknown values have no tag.
    """
    tags = {name: f"{metrics[name]:.3f}" for name in _ROWS if math.isfinite(metrics.get(name, math.nan))}
    tags |= {"encoder": config.encoder, "test_wells": str(len(config.split.get("test", [])))}
    if config.objective:
        tags["objective"] = config.objective
    if config.cure:
        tags["trained_for_score"] = str(config.cure.regulariser != "none").lower()
    return tags


def version_description(config: BundleConfig, metrics: Mapping[str, float]) -> str:
    """Return the Markdown description of a version: one row per measure, and what to read first."""
    tags = version_tags(config, metrics)
    names = [name for name in _ROWS if name in tags or not name.startswith("unseen_")]
    rows = [f"| {_ROWS[name]} | {tags.get(name, 'not measured')} | {_meaning(name, metrics)} |" for name in names]
    trained_for_score = {"true": "yes", "false": "no"}.get(tags.get("trained_for_score", ""), "unknown")
    facts = {
        "Encoder": tags["encoder"],
        "Objective": tags.get("objective", "unknown"),
        "Trained for the score": trained_for_score,
        "Test wells": tags["test_wells"],
        "Classes": str(len(config.classes)),
    }
    text = ["| Measure | Value | Meaning |", "| --- | --- | --- |", *rows, ""]
    text += ["| Training | |", "| --- | --- |", *(f"| {name} | {_escape(value)} |" for name, value in facts.items())]
    tested, trained = ({well.split("/")[0] for well in config.split.get(part, [])} for part in ("test", "train"))
    if tested and not tested & trained:
        text += ["", f"All test wells are on plates that were not trained on: {', '.join(sorted(tested))}."]
    elif "unseen_balanced_accuracy" not in tags:
        text += ["", "This version was not tested on unseen plates; its accuracy is that on test wells."]
    if trained_for_score == "yes":
        text += ["", "Training rewarded the score, so the score is no evidence. The swap test is."]
    return "\n".join(text)


def _meaning(name: str, metrics: Mapping[str, float]) -> str:
    from gradcamo_assets.training.evaluation import METRICS

    meaning = METRICS[name.partition("_")[2]]
    if name == "test_survives_swap" and (one_treatment := metrics.get("test_one_treatment_per_well")) is not None:
        meaning += f"; a plate needs {THRESHOLDS.swap_share(one_treatment == 1):g}"
    return meaning


def _escape(text: str) -> str:
    """Escape what would break a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
