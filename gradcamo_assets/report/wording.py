"""Write the sentences at the top of a report: the answers to the QC database's questions about one plate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from gradcamo_assets.report.style import treatment_name
from gradcamo_assets.thresholds import THRESHOLDS

_REGIONS = {"target": "the cell", "neighbour": "neighbouring cells", "background": "the background"}
_MAX_NAMES = 12
_VERDICTS = {
    "trusted": "Most profiles describe their cell",
    "undecided": "It is not decided whether profiles describe their cell",
    "fails the swap": "Too few predictions come from the cell",
    "not audited": "It is not known whether profiles describe their cell: no swap test confirms it",
    "not trusted": "Most maps do not look at their cell",
    "too few wells": "It is not known whether profiles describe their cell: doses have too few wells",
}
"""The verdicts of ``trusted_doses``, and what one says of a plate if no other is more frequent."""


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

    Thresholds stand in the rows; nothing is judged here.
    """
    looks = scores["looks_at"].drop_nulls()
    if not len(looks):
        return Verdict("No held-out cell of this plate has a score", "", [])
    shares = {region: int((looks == region).sum()) / len(looks) for region in (*_REGIONS, "none")}
    on_target = int(scores["on_target"].sum()) / max(1, scores["on_target"].count())
    rows = {name: frame.to_dicts() for name, frame in views.items()}
    doses = rows.get("trusted_doses", [])
    answers = [
        ("Which doses can be trusted?", _doses(doses)),
        ("Which wells should be dropped?", _wells(rows.get("wells_to_drop", []))),
        ("Which cells were left out?", _left_out(rows.get("left_out", []))),
        ("Does the site matter?", _sites(rows.get("site_effect", []))),
        ("What do the predictions depend on?", _audit(rows.get("audit_by_plate", []))),
        ("Do the predictions come from the cell?", _swap_test(rows.get("audit_by_plate", []))),
        ("Is the new model better?", _gain(rows.get("model_gain", []))),
        ("Is the plate like earlier plates?", _drift(rows.get("plate_drift", []))),
        ("How was the model trained?", _training(model)),
    ]
    return Verdict(
        headline=_headline(doses, shares),
        shares=_describe_shares(scores, shares, on_target),
        answers=[(question, answer) for question, answer in answers if answer],
    )


def _headline(doses: list[dict[str, Any]], shares: Mapping[str, float]) -> str:
    """State the most frequent verdict on doses."""
    count = Counter(row["verdict"] for row in doses)
    if not count:
        return "No dose of this plate has a verdict"
    kind = max(_VERDICTS, key=lambda kind: count[kind])
    finding = _VERDICTS[kind]
    if kind == "not trusted":
        region = max((region for region in shares if region != "target"), key=lambda region: shares[region])
        finding += f"; the most frequent alternative is {_REGIONS[region]}" if region in _REGIONS else ""
    elif kind == "fails the swap":
        finding += f": {doses[0]['survives_swap']:.0%} survive the swap test"
    return f"{finding} ({count[kind]} of {_count(len(doses), 'dose')})"


def _describe_shares(scores: pl.DataFrame, shares: Mapping[str, float], on_target: float) -> str:
    scored = scores["looks_at"].count()
    text = (
        f"Of the maps of {scored} held-out cells, {shares['target']:.0%} look at their own cell, "
        f"{shares['neighbour']:.0%} at neighbouring cells, {shares['background']:.0%} at the background and "
        f"{shares['none']:.0%} at no particular region. {on_target:.0%} have more than "
        f"{THRESHOLDS.paper:.0%} on the cell (on target). "
        f"The median adjusted score is {_number(scores['gradcamo_adjusted'].median())}: 0 is chance, 1 the best the "
        "maps allow."
    )
    if unscored := len(scores) - scored:
        text += f" Cells without a score: {unscored}."
    return text


def _doses(rows: list[dict[str, Any]]) -> str:
    """List treatments by their verdict; controls are included."""
    names: dict[str, list[str]] = {kind: [] for kind in _VERDICTS}
    for row in rows:
        score = "" if row["mean_adjusted"] is None else f" ({row['mean_adjusted']:.2f})"
        names[row["verdict"]].append(f"{treatment_name(row) or 'untreated'}{score}")
    parts = [f"{kind.capitalize()}: {_join(treatments)}." for kind, treatments in names.items() if treatments]
    if not parts:
        return ""
    if not names["trusted"]:
        parts.insert(0, "No dose is trusted.")
    return " ".join([*parts, "In brackets: mean adjusted score.", _rule(rows)])


def _rule(rows: list[dict[str, Any]]) -> str:
    """Say what decided, and what the paper's rule would say."""
    row = rows[0]
    layout = "each well has one treatment" if row["one_treatment_per_well"] else "wells have several treatments"
    swap = f"at least {row['swap_threshold']:.0%} of the audited cells of the plate must survive the swap test"
    if row["trained_for_score"]:
        rule = f"Training rewarded the score, so the swap test alone decides: {swap}"
    else:
        rule = (
            f"A dose is trusted if the 95% confidence interval of its score over wells lies above "
            f"{row['adjusted_threshold']:g}; also, {swap}"
        )
    paper = sum(row["paper_verdict"] == "trusted" for row in rows)
    return (
        f"{rule} ({layout}). By the rule of the paper (interval of the share of cells on target), "
        f"{_count(paper, 'dose')} would be trusted."
    )


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


def _swap_test(rows: list[dict[str, Any]]) -> str:
    if not rows or rows[0]["survives_swap"] is None:
        return ""
    (row,) = rows
    finding = {
        "survives the swap": "Yes, for enough of the cells.",
        "fails the swap": "No, for too many cells they depend on the surroundings.",
        "not audited": "Unknown: too few cells were tested.",
    }[row["verdict"]]
    text = (
        f"{finding} Of {row['n_cells']} audited cells, {row['survives_swap']:.0%} survive the swap: they keep their "
        "class in other cells' surroundings, and it is more probable for them than for another cell in their place. "
        f"At least {row['swap_threshold']:.0%} is required. "
        f"{row['trusted']:.0%} survive and have a map that looks at the cell (trusted)."
    )
    if row["one_treatment_per_well"]:
        text += " Each well has one treatment: neighbours show it too, and the model may read it from them."
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
        number, needed = _count(row["earlier_plates"], "earlier plate"), THRESHOLDS.earlier_plates
        return f"Unknown: {number} so far, {needed} are needed."
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
        f"{model['regulariser_weight']:g}), so a high score alone is no evidence; the swap test decides."
    )


def _join(names: Iterable[str], max_names: int = _MAX_NAMES) -> str:
    names = list(names)
    hidden = len(names) - max_names
    return ", ".join(names[:max_names]) + (f" and {hidden} more" if hidden > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{value:.2f}"
