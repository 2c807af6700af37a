"""Whether a challenger should become champion: what was logged with both versions, held against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gradcamo_assets.networks.bundle import Cure, read_config
from gradcamo_assets.settings import section, setting
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion


@section
class PromotionConfig:
    """When a challenger may become champion: section ``[promotion]`` of ``gradcamo.toml``."""

    accuracy_tolerance: float = setting(0.02, "How much lower its accuracy may be.")
    adjusted_tolerance: float = setting(0.05, "How much lower its median adjusted Grad-CAMO may be.")
    least_over_chance: float = setting(0.1, "How far above chance its balanced accuracy must be.")
    least_from_the_cell: float = setting(
        0.5, "Share of its accuracy above chance that must be left in other cells' surroundings."
    )


@dataclass(frozen=True)
class Evidence:
    """What was logged with a version: metrics, number of classes, the wells it was tested on, how it was cured."""

    version: int
    metrics: Mapping[str, float]
    classes: int | None = None
    test_wells: frozenset[str] = field(default_factory=frozenset)
    cure: Cure | None = None

    def get(self, metric: str) -> float | None:
        """A metric; None where it was not logged or is no number."""
        value = self.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None


def evidence(registry: ModelRegistry, version: ModelVersion) -> Evidence:
    """Read a version's evidence from MLflow.

    Raises:
        BundleError: if its bundle cannot be read.
    """
    config = read_config(registry.fetch(version))
    metrics = registry.client.get_run(version.run_id).data.metrics
    wells = frozenset(config.split.get("test", []))
    return Evidence(version.version, metrics, len(config.classes), wells, config.cure)


@dataclass(frozen=True)
class Verdict:
    """One question of ``CHECKS``, and its answer in words."""

    name: str
    passed: bool
    text: str


CHECKS = {
    "better_than_chance": "Balanced accuracy on test wells is above chance.",
    "accuracy_comes_from_the_cell": "Balanced accuracy on test cells stays when they stand in other surroundings.",
    "accuracy_on_test_wells": "Balanced accuracy on test wells is not below the champion's.",
    "accuracy_on_unseen_plates": "Accuracy on unseen plates is not below the champion's, where both have it.",
    "adjusted_gradcamo": "The median adjusted Grad-CAMO on test wells is not below the champion's.",
}


def verdict(challenger: Evidence, champion: Evidence | None, config: PromotionConfig) -> list[Verdict]:
    """One answer to each of ``CHECKS``; all must pass. What was not measured is no ground to promote.

    Balanced accuracy (mean recall over classes), since half of a plate may be controls.
    """
    accuracy, chance = challenger.get("test_balanced_accuracy"), 1 / challenger.classes if challenger.classes else None
    least = f"version {challenger.version} has {_number(accuracy)}{_wells(challenger)}; chance is {_number(chance)}"
    passed = accuracy is not None and chance is not None and accuracy >= chance + config.least_over_chance
    answers = [Verdict("better_than_chance", passed, f"{least}, asked for is {config.least_over_chance:g} above it.")]
    answers.append(_from_the_cell(challenger, chance, config.least_from_the_cell))
    for name, metric, tolerance in (
        ("accuracy_on_test_wells", "test_balanced_accuracy", config.accuracy_tolerance),
        ("accuracy_on_unseen_plates", "unseen_accuracy", config.accuracy_tolerance),
    ):
        answers.append(_compared(name, metric, tolerance, challenger, champion))
    adjusted = _compared("adjusted_gradcamo", "test_median_adjusted", config.adjusted_tolerance, challenger, champion)
    return [*answers, replace(adjusted, text=adjusted.text + _trained_for(challenger, champion))]


def _trained_for(*versions: Evidence | None) -> str:
    return "".join(
        f" Version {one.version} was trained for this score (penalty {one.cure.regulariser}, weight "
        f"{one.cure.regulariser_weight:g}): its score is no evidence by itself."
        for one in versions if one and one.cure and one.cure.regulariser != "none"
    )  # fmt: skip


def _from_the_cell(challenger: Evidence, chance: float | None, least: float) -> Verdict:
    """Whether accuracy above chance is left where cells stand in other surroundings, with and without a champion."""
    name, who = "accuracy_comes_from_the_cell", f"version {challenger.version}"
    intact, swapped = challenger.get("test_accuracy_audited"), challenger.get("test_accuracy_swapped")
    if intact is None or swapped is None or chance is None:
        missing = f"no test_accuracy_swapped was logged with {who}"
        return Verdict(name, False, f"{missing}: train it again, or promote by hand.")
    above, left = intact - chance, swapped - chance
    text = (
        f"{who} has {_number(intact)} on a sample of test cells and {_number(swapped)} where these stand in other "
        f"cells' surroundings; chance is {_number(chance)}"
    )
    if above <= 0:
        return Verdict(name, False, f"{text}, so that nothing is above it.")
    passed = left >= least * above
    text += f", {max(left, 0) / above:.0%} of what is above it is left, asked for is {least:.0%}"
    return Verdict(name, passed, text + ("." if passed else ": its answers come from what surrounds the cells."))


def _compared(name: str, metric: str, tolerance: float, challenger: Evidence, champion: Evidence | None) -> Verdict:
    if champion is None:
        return Verdict(name, True, "there is no champion to compare with.")
    ours, theirs = challenger.get(metric), champion.get(metric)
    if name == "accuracy_on_unseen_plates" and (ours is None or theirs is None):
        without = " and ".join(str(e.version) for e in (challenger, champion) if e.get(metric) is None)
        return Verdict(name, True, f"not compared: version {without} was tested on no unseen plate.")
    pair = (
        f"version {challenger.version} has {_number(ours)}, the champion, version {champion.version}, {_number(theirs)}"
    )
    if ours is None or theirs is None:
        without = " and ".join(str(e.version) for e in (challenger, champion) if e.get(metric) is None)
        remedy = f"no {metric} was logged with version {without}: train it again, or promote by hand"
        return Verdict(name, False, f"{pair}; {remedy}.")
    notes = [f"{tolerance:g} less would do"]
    if name != "accuracy_on_unseen_plates":
        notes.append(_paired(challenger, champion))
    if challenger.classes != champion.classes and name != "adjusted_gradcamo":
        notes.append(f"over {challenger.classes} classes against {champion.classes}")
    return Verdict(name, ours >= theirs - tolerance, f"{pair}; {', '.join(notes)}.")


def _paired(challenger: Evidence, champion: Evidence) -> str:
    if challenger.test_wells and challenger.test_wells == champion.test_wells:
        return f"both on the same {len(challenger.test_wells)} test wells"
    ours, theirs = (len(e.test_wells) or "an unknown number of" for e in (challenger, champion))
    return f"on {ours} and {theirs} test wells, not the same ones, so chance of the draw is in the difference"


def _wells(one: Evidence) -> str:
    return f" on {len(one.test_wells)} test wells" if one.test_wells else ""


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
