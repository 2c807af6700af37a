"""Write the sentences at the top of a report: the answers to the QC database's questions about one plate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from gradcamo_assets.report.style import treatment_name

_REGIONS = {"target": "the cell", "neighbour": "neighbouring cells", "background": "the background"}
_MAX_NAMES = 12


@dataclass(frozen=True)
class Verdict:
    """``headline``: the finding in a sentence. ``shares``: the figures behind it. ``answers``: question and answer."""

    headline: str
    shares: str
    answers: list[tuple[str, str]]


def verdict(scores: pl.DataFrame, views: Mapping[str, pl.DataFrame], model: Mapping[str, Any] | None) -> Verdict:
    """Write the verdict on a plate by one model version.

    Args:
        scores: cells the model was not trained on: ``looks_at``, ``gradcamo_adjusted``, ``on_target``.
        views: rows of this plate and version from ``trusted_doses``, ``wells_to_drop``, ``site_effect``,
            ``model_gain``, ``plate_drift`` and ``audit_by_plate``, by view. A view may be missing or empty.
            And ``left_out``: numbers ``n`` of segmented cells (``part`` is ``cell``) and of fields (``field``) by
            ``qc_flag`` (NULL: kept).
        model: the version's row: ``architecture``, ``train_plates``, ``train_wells``, ``created_at``, ``metrics``,
            ``swap``, ``regulariser``, ``regulariser_weight``.
    """
    looks = scores["looks_at"].drop_nulls()
    if not len(looks):
        return Verdict("No held-out cell of this plate has a score", "", [])
    shares = {region: int((looks == region).sum()) / len(looks) for region in (*_REGIONS, "none")}
    on_target = int(scores["on_target"].sum()) / max(1, scores["on_target"].count())
    rows = {name: frame.to_dicts() for name, frame in views.items()}
    maps_favour_cell = on_target >= 0.5 or shares["target"] >= 0.5
    survival = next((row.get("survives_swap") for row in rows.get("audit_by_plate", [])), None)
    answers = [
        ("Which doses can be trusted?", _doses(rows.get("trusted_doses", []))),
        ("Which wells should be dropped?", _wells(rows.get("wells_to_drop", []))),
        ("Which cells were left out?", _left_out(rows.get("left_out", []))),
        ("Does the site matter?", _sites(rows.get("site_effect", []))),
        ("What do the predictions depend on?", _audit(rows.get("audit_by_plate", []))),
        ("Do the predictions come from the cell?", _swap_test(rows.get("audit_by_plate", []), maps_favour_cell)),
        ("Is the new model better?", _gain(rows.get("model_gain", []))),
        ("Is the plate like earlier plates?", _drift(rows.get("plate_drift", []))),
        ("How was the model trained?", _training(model)),
    ]
    return Verdict(
        headline=_headline(shares, on_target, survival, _is_penalised(model)),
        shares=_describe_shares(scores, shares, on_target),
        answers=[(question, answer) for question, answer in answers if answer],
    )


def _headline(shares: Mapping[str, float], on_target: float, survival: float | None, is_penalised: bool) -> str:
    if on_target >= 0.5 or shares["target"] >= 0.5:
        if survival is not None and survival <= 0.5:
            return f"Most maps favour the cell, but only {survival:.0%} of the predictions survive the swap test"
        if survival is None and is_penalised:
            return "Most maps favour the cell, but training rewarded this, and no swap test confirms it"
        if on_target >= 0.5:
            return "Most profiles describe their cell: more than half of the model's map lies on it"
        return "Most maps favour the cell, but few lie mainly on it: profiles also describe its surroundings"
    headline = "Most maps do not look at their cell"
    region = max((region for region in shares if region != "target"), key=lambda region: shares[region])
    if region in _REGIONS:
        headline += f"; the most frequent alternative is {_REGIONS[region]}"
    return headline


def _describe_shares(scores: pl.DataFrame, shares: Mapping[str, float], on_target: float) -> str:
    scored = scores["looks_at"].count()
    text = (
        f"Of the maps of {scored} held-out cells, {shares['target']:.0%} look at their own cell, "
        f"{shares['neighbour']:.0%} at neighbouring cells, {shares['background']:.0%} at the background and "
        f"{shares['none']:.0%} at no particular region. {on_target:.0%} lie more than half on the cell (on target). "
        f"The median adjusted score is {_number(scores['gradcamo_adjusted'].median())}: 0 is chance, 1 the best the "
        "maps allow."
    )
    if unscored := len(scores) - scored:
        text += f" Cells without a score: {unscored}."
    return text


def _doses(rows: list[dict[str, Any]]) -> str:
    """List treatments by their verdict; controls are included."""
    verdicts = ("trusted", "undecided", "fails the swap", "trained for", "not trusted", "too few wells")
    names: dict[str, list[str]] = {kind: [] for kind in verdicts}
    for row in rows:
        share = "" if row["on_target_fraction"] is None else f" ({row['on_target_fraction']:.0%})"
        names[row["verdict"]].append(f"{treatment_name(row) or 'untreated'}{share}")
    parts = [f"{kind.capitalize()}: {_join(treatments)}." for kind, treatments in names.items() if treatments]
    if not parts:
        return ""
    if not names["trusted"]:
        parts.insert(0, "No dose is trusted.")
    explanation = (
        "In brackets: share of cells on target. A dose is trusted if the 95% confidence interval over its wells lies "
        "above 50% and the plate does not fail the swap test. If training rewarded the score, the plate must also have "
        "passed that test."
    )
    return " ".join([*parts, explanation])


def _wells(rows: list[dict[str, Any]]) -> str:
    wells: dict[str, list[str]] = {}
    for row in rows:
        wells.setdefault(row["reason"], []).append(row["Metadata_Well"])
    if not wells:
        return "None: no well is an outlier or at chance."
    return f"{'; '.join(f'{_join(names)} ({reason})' for reason, names in wells.items())}."


def _left_out(rows: list[dict[str, Any]]) -> str:
    sentences = []
    for part, noun in (("cell", "segmented cells"), ("field", "fields")):
        counts: dict[str, int] = {}
        total = sum(row["n"] for row in rows if row["part"] == part)
        for row in rows:
            if row["part"] == part and row["qc_flag"]:
                # Flags with a number, such as a cell probability, differ from cell to cell.
                reason = re.sub(r"\d+(\.\d+)?", "...", row["qc_flag"])
                counts[reason] = counts.get(reason, 0) + row["n"]
        if not counts:
            sentences += [f"None of the {total} {noun}."] if total else []
            continue
        reasons = (f"{reason} ({n})" for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        left_out = sum(counts.values())
        sentences.append(f"{left_out} of {total} {noun} ({left_out / total:.0%}): {_join(reasons)}.")
    return " ".join(sentences)


def wells_with_cells(wells: Sequence[str], plate_size: int) -> str:
    """Say how many wells of a plate have cells, and which if they are few."""
    text = f"{len(wells)} of {plate_size} wells have cells"
    return f"{text}: {', '.join(wells)}." if 0 < len(wells) <= _MAX_NAMES else f"{text}."


def _sites(rows: list[dict[str, Any]]) -> str:
    if len(rows) < 2:
        return "The plate has only one site." if rows else ""
    differing = [row for row in rows if row["verdict"] in ("higher", "lower")]
    if not differing:
        return f"No: none of the {len(rows)} sites differs clearly from the other sites of the same wells."
    names = _join(f"site {row['Metadata_Site']} is {row['verdict']} ({row['difference']:+.2f})" for row in differing)
    return f"Yes: {names} in adjusted score than the other sites of the same wells."


def _audit(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    (row,) = rows
    drops = {name: row[f"logit_drop_{region}"] for region, name in _REGIONS.items()}
    drops = {name: drop for name, drop in drops.items() if drop is not None}
    if not drops:
        return ""
    largest = max(drops, key=lambda name: drops[name])
    text = f"Mostly on {largest}. " if drops[largest] > 0 else "On no single region. "
    text += (
        "When other background replaces a region, the model's output for its predicted class (logit) falls by "
        f"{', '.join(f'{_number(drop)} for {name}' for name, drop in drops.items())} "
        f"(medians over {row['n_cells']} cells)."
    )
    if (agreement := row["score_effect_correlation"]) is not None:
        text += f" The rank correlation between score and measured effect is {agreement:.2f}."
    return text


def _swap_test(rows: list[dict[str, Any]], maps_favour_cell: bool) -> str:
    if not rows or rows[0].get("survives_swap") is None:
        return ""
    (row,) = rows
    survives = row["survives_swap"] > 0.5
    finding = {
        (True, True): "Yes. The maps lie on the cell, and most predictions stay with it.",
        (True, False): "No. The maps lie on the cell, but most predictions depend on its surroundings.",
        (False, True): "Mostly. Most predictions stay with the cell, although the maps do not lie on it.",
        (False, False): "No. The maps do not lie on the cell, and most predictions depend on its surroundings.",
    }[maps_favour_cell, survives]
    text = (
        f"{finding} Of {row['n_cells']} audited cells, {row['survives_swap']:.0%} survive the swap: they keep their "
        "class in other cells' surroundings, and it is more probable for them than for another cell in their place. "
        f"{row['trusted']:.0%} survive and have a map that looks at the cell (trusted)."
    )
    if not survives:
        text += " If each well has one treatment, neighbours show it too, and the model may read it from them."
    return text


def _gain(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "This is the first champion model that has scored this plate."
    (row,) = rows
    return (
        f"{row['verdict'].capitalize()}: of {row['n_cells']} cells, {row['on_target_before']:.0%} were on target with "
        f"version {row['previous_version']} and {row['on_target_now']:.0%} are now. The mean adjusted score changed "
        f"from {_number(row['adjusted_before'])} to {_number(row['adjusted_now'])}."
    )


def _drift(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    (row,) = rows
    if row["verdict"] == "too few earlier plates":
        return f"Unknown: {_count(row['earlier_plates'], 'earlier plate')} so far, eight are needed."
    names = {"on_target": "share on target", "adjusted": "adjusted score", "control": "adjusted score of controls"}
    deviations = [f"{text} {row[f'{name}_deviation']:+.1f}" for name, text in names.items() if row[f"{name}_deviation"]]
    answer = "No, it differs." if row["verdict"] == "differs" else "Yes."
    return (
        f"{answer} Difference from {row['earlier_plates']} earlier plates, in robust standard deviations: "
        f"{', '.join(deviations) or 'none'}."
    )


def _training(model: Mapping[str, Any] | None) -> str:
    if not model:
        return ""
    plates, metrics = model["train_plates"] or [], model["metrics"] or {}
    text = f"{model['architecture'] or 'An encoder'}"
    if plates:
        text += f", trained on {_count(len(model['train_wells'] or []), 'well')} of {_join(plates, 3)}"
    if model["created_at"]:
        text += f", registered {model['created_at']:%Y-%m-%d}"
    parts = {"test_accuracy": "in held-out wells", "unseen_accuracy": "on plates outside the training"}
    accuracies = [
        f"{metrics[name]:.0%} of the cells {cells}" for name, cells in parts.items() if metrics.get(name) is not None
    ]
    text += f". It predicts the class of {' and '.join(accuracies)} correctly." if accuracies else "."
    return f"{text} {_swap_and_penalty(model)}"


def _is_penalised(model: Mapping[str, Any] | None) -> bool:
    """Tell whether training penalised maps outside the cell, so that maps alone are no evidence."""
    return model is not None and model.get("regulariser") not in (None, "none")


def _swap_and_penalty(model: Mapping[str, Any]) -> str:
    if model.get("swap") is None:
        return "It is not known whether training swapped surroundings or penalised maps outside the cell."
    text = "Training did not swap surroundings."
    if model["swap"]:
        text = f"Training gave {model['swap']:.0%} of the crops the surroundings of another crop."
    if not _is_penalised(model):
        return f"{text} Maps outside the cell were not penalised."
    return (
        f"{text} Maps outside the cell were penalised ({model['regulariser']}, weight "
        f"{model['regulariser_weight']:g}), so a high score alone is no evidence; see the swap test."
    )


def _join(names: Iterable[str], max_names: int = _MAX_NAMES) -> str:
    names = list(names)
    hidden = len(names) - max_names
    return ", ".join(names[:max_names]) + (f" and {hidden} more" if hidden > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{value:.2f}"
