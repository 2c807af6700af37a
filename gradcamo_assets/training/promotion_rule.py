"""Decide whether a challenger becomes champion, from the metrics logged with both versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gradcamo_assets.networks.bundle import ShortcutMitigation, read_config
from gradcamo_assets.settings import section, setting
from gradcamo_assets.thresholds import THRESHOLDS
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion


@section
class PromotionConfig:
    """When a challenger may become champion: section ``[promotion]`` of ``gradcamo.toml``."""

    accuracy_tolerance: float = setting(0.02, "How far its accuracy may lie below the champion's.")
    adjusted_tolerance: float = setting(0.05, "How far its median adjusted Grad-CAMO may lie below the champion's.")
    least_over_chance: float = setting(0.1, "How far its balanced accuracy must lie above chance.")
    least_from_the_cell: float = setting(
        0.5, "Share of its accuracy above chance that must remain in other cells' surroundings."
    )


@dataclass(frozen=True)
class Evidence:
    """Evidence logged with a version: metrics, number of classes, test wells, and measures against shortcuts."""

    version: int
    metrics: Mapping[str, float]
    classes: int | None = None
    test_wells: frozenset[str] = field(default_factory=frozenset)
    mitigation: ShortcutMitigation | None = None

    def get(self, metric: str) -> float | None:
        """Return a metric; None if it was not logged or is not finite."""
        value = self.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None


def read_evidence(registry: ModelRegistry, version: ModelVersion) -> Evidence:
    """Read a version's evidence from MLflow.

    Raises:
        BundleError: if its bundle cannot be read.
    """
    config = read_config(registry.fetch(version))
    metrics = registry.client.get_run(version.run_id).data.metrics
    wells = frozenset(config.split.get("test", []))
    return Evidence(
        version=version.version, metrics=metrics, classes=len(config.classes), test_wells=wells, mitigation=config.cure
    )


@dataclass(frozen=True)
class CheckResult:
    """The result of one of ``CHECKS``, with an explanation."""

    name: str
    passed: bool
    text: str


CHECKS = {
    "better_than_chance": "Balanced accuracy on test wells is above chance.",
    "accuracy_comes_from_the_cell": "Balanced accuracy on test cells remains in other cells' surroundings.",
    "accuracy_on_test_wells": "Balanced accuracy on test wells is not below the champion's.",
    "accuracy_on_unseen_plates": "Accuracy on unseen plates is not below the champion's, where both have it.",
    "adjusted_gradcamo": "The median adjusted Grad-CAMO on test wells is not below the champion's.",
}


def judge_challenger(challenger: Evidence, champion: Evidence | None, config: PromotionConfig) -> list[CheckResult]:
    """Run all ``CHECKS``; every one must pass for a promotion. A missing metric fails its check.

    Accuracy on test wells is balanced (mean recall over classes), because half of a plate may be controls.
    """
    accuracy, chance = challenger.get("test_balanced_accuracy"), 1 / challenger.classes if challenger.classes else None
    test_wells = f" on {len(challenger.test_wells)} test wells" if challenger.test_wells else ""
    passed = accuracy is not None and chance is not None and accuracy >= chance + config.least_over_chance
    above_chance = CheckResult(
        "better_than_chance",
        passed,
        f"version {challenger.version} has {_number(accuracy)}{test_wells}; chance is {_number(chance)}, and at least "
        f"{config.least_over_chance:g} above chance is required.",
    )
    test_accuracy = _compare(
        "accuracy_on_test_wells", "test_balanced_accuracy", config.accuracy_tolerance, challenger, champion
    )
    unseen_accuracy = _compare(
        "accuracy_on_unseen_plates", "unseen_accuracy", config.accuracy_tolerance, challenger, champion
    )
    adjusted = _compare("adjusted_gradcamo", "test_median_adjusted", config.adjusted_tolerance, challenger, champion)
    adjusted = replace(adjusted, text=adjusted.text + _penalty_warning(challenger, champion))
    from_the_cell = _check_swapped_accuracy(challenger, chance, config.least_from_the_cell)
    return [above_chance, from_the_cell, test_accuracy, unseen_accuracy, adjusted]


def _penalty_warning(*versions: Evidence | None) -> str:
    return "".join(
        f" Version {version.version} was trained for this score (penalty {version.mitigation.regulariser}, weight "
        f"{version.mitigation.regulariser_weight:g}): its score is no evidence by itself."
        for version in versions if version and version.mitigation and version.mitigation.regulariser != "none"
    )  # fmt: skip


def _check_swapped_accuracy(challenger: Evidence, chance: float | None, required_share: float) -> CheckResult:
    """Check that accuracy above chance remains in other cells' surroundings, with or without a champion."""
    name, subject = "accuracy_comes_from_the_cell", f"version {challenger.version}"
    intact, swapped = challenger.get("test_accuracy_audited"), challenger.get("test_accuracy_swapped")
    if intact is None or swapped is None or chance is None:
        return CheckResult(
            name, False, f"no test_accuracy_swapped was logged with {subject}: train it again, or promote by hand."
        )
    text = (
        f"{subject} has {_number(intact)} on a sample of test cells and {_number(swapped)} on the same cells in other "
        f"cells' surroundings; chance is {_number(chance)}"
    )
    above_chance, remaining = intact - chance, swapped - chance
    if above_chance <= 0:
        return CheckResult(name, False, f"{text}, so its accuracy is not above chance.")
    passed = remaining >= required_share * above_chance
    text += (
        f"; {max(remaining, 0) / above_chance:.0%} of the accuracy above chance remains, "
        f"at least {required_share:.0%} is required"
    )
    text += "." if passed else ": its answers come from the cells' surroundings."
    return CheckResult(name, passed, text + _survival_note(challenger))


def _survival_note(version: Evidence) -> str:
    """Say what verdicts on plates, which rest on single cells, would make of the version."""
    survives, one_treatment = version.get("test_survives_swap"), version.get("test_one_treatment_per_well")
    if survives is None or one_treatment is None:
        return ""
    required = THRESHOLDS.swap_share(one_treatment == 1)
    note = f" {survives:.0%} of these cells survive the swap; doses are trusted from {required:.0%} on"
    return note + ("." if survives >= required else ", so its plates are likely to fail the swap.")


def _compare(name: str, metric: str, tolerance: float, challenger: Evidence, champion: Evidence | None) -> CheckResult:
    """Check that the challenger's metric is at most ``tolerance`` below the champion's."""
    if champion is None:
        return CheckResult(name, True, "there is no champion to compare with.")
    new, old = challenger.get(metric), champion.get(metric)
    lacking = " and ".join(str(one.version) for one in (challenger, champion) if one.get(metric) is None)
    if lacking and name == "accuracy_on_unseen_plates":
        return CheckResult(name, True, f"not compared: version {lacking} was not tested on unseen plates.")
    values = (
        f"version {challenger.version} has {_number(new)}, the champion, version {champion.version}, {_number(old)}"
    )
    if new is None or old is None:
        remedy = f"no {metric} was logged with version {lacking}: train it again, or promote by hand"
        return CheckResult(name, False, f"{values}; {remedy}.")
    notes = [f"{tolerance:g} less is allowed"]
    if name != "accuracy_on_unseen_plates":
        notes.append(_test_wells_note(challenger, champion))
    if challenger.classes != champion.classes and name != "adjusted_gradcamo":
        notes.append(f"over {challenger.classes} classes against {champion.classes}")
    return CheckResult(name, new >= old - tolerance, f"{values}; {', '.join(notes)}.")


def _test_wells_note(challenger: Evidence, champion: Evidence) -> str:
    if challenger.test_wells and challenger.test_wells == champion.test_wells:
        return f"both on the same {len(challenger.test_wells)} test wells"
    new, old = (len(one.test_wells) or "an unknown number of" for one in (challenger, champion))
    return f"on {new} and {old} test wells, which differ, so part of the difference is due to the choice of wells"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
