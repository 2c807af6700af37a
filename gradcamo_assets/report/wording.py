"""What a report says first: the answers of the QC database's questions about one plate, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from gradcamo_assets.report.style import treatment_name

_REGIONS = {"target": "the cell", "neighbour": "its neighbours", "background": "the background"}
_INSTEAD = {"neighbour": ": neighbours draw the most", "background": ": the background draws the most", "none": ""}
_MOST_NAMED = 12


@dataclass(frozen=True)
class Verdict:
    """``headline``: the finding in a sentence. ``shares``: the figures behind it. ``answers``: question and answer."""

    headline: str
    shares: str
    answers: list[tuple[str, str]]


def verdict(scores: pl.DataFrame, views: Mapping[str, pl.DataFrame], model: Mapping[str, Any] | None) -> Verdict:
    """The verdict on a plate by one model version.

    Args:
        scores: cells the model was not trained on: ``looks_at``, ``gradcamo_adjusted``, ``on_target``.
        views: rows of this plate and version of ``trusted_doses``, ``wells_to_drop``, ``site_effect``, ``model_gain``,
            ``plate_drift`` and ``audit_by_plate``; a view that is missing or empty has nothing to say.
        model: the version's row: ``architecture``, ``train_plates``, ``train_wells``, ``created_at``, ``metrics``,
            ``swap``, ``regulariser``, ``regulariser_weight``.
    """
    looks = scores["looks_at"].drop_nulls()
    if not len(looks):
        return Verdict("The model has no score for a held-out cell of this plate", "", [])
    share = {where: (looks == where).sum() / len(looks) for where in (*_REGIONS, "none")}
    on_target = scores["on_target"].sum() / max(1, scores["on_target"].count())
    most = max((where for where in share if where != "target"), key=lambda where: share[where])
    rows = {name: frame.to_dicts() for name, frame in views.items()}
    favoured = on_target >= 0.5 or share["target"] >= 0.5
    survives = next((row.get("survives_swap") for row in rows.get("audit_by_plate", [])), None)
    if favoured and survives is not None and survives <= 0.5:
        headline = f"Most maps favour the cell, but only {survives:.0%} of the answers survive other surroundings"
    elif favoured and survives is None and _rewarded(model):
        headline = "Most maps favour the cell, as they were trained to, and no swap test says whether the answers do"
    elif on_target >= 0.5:
        headline = "Most profiles describe their cell: more than half of the model's map lies on it"
    elif share["target"] >= 0.5:
        headline = "Most maps favour the cell, but few lie mainly on it: profiles tell of its surroundings too"
    else:
        headline = "Most profiles do not look at the cell they describe" + _INSTEAD[most]
    unscored = len(scores) - len(looks)
    shares = (
        f"Of {len(looks)} profiles of held-out cells {share['target']:.0%} look at their own cell, "
        f"{share['neighbour']:.0%} at neighbouring cells, {share['background']:.0%} at the background and "
        f"{share['none']:.0%} nowhere in particular; {on_target:.0%} have more than half of their map on the cell "
        f"(on target). The median adjusted score is "
        f"{_number(scores['gradcamo_adjusted'].median())}: 0 is chance, 1 the best the maps allow."
        + f" {unscored} more have no score."
        * (unscored > 0)
    )
    answers = [
        ("Which doses can be trusted?", _doses(rows.get("trusted_doses", []))),
        ("Which wells should be dropped?", _wells(rows.get("wells_to_drop", []))),
        ("Does the site matter?", _sites(rows.get("site_effect", []))),
        ("What does the model rest on?", _audit(rows.get("audit_by_plate", []))),
        ("Do its answers come from the cell?", _swap_test(rows.get("audit_by_plate", []), favoured)),
        ("Has the new model helped?", _gain(rows.get("model_gain", []))),
        ("Is the plate like earlier ones?", _drift(rows.get("plate_drift", []))),
        ("How was the model trained?", _training(model)),
    ]
    return Verdict(headline, shares, [(question, answer) for question, answer in answers if answer])


def _doses(rows: list[dict[str, Any]]) -> str:
    """Treatments by what is said of them; the controls' verdict counts like any other."""
    kinds = ("trusted", "undecided", "fails the swap", "trained for", "not trusted", "too few wells")
    named: dict[str, list[str]] = {kind: [] for kind in kinds}
    for row in rows:
        share = "" if row["on_target_fraction"] is None else f" ({row['on_target_fraction']:.0%})"
        named[row["verdict"]].append(f"{treatment_name(row) or 'untreated'}{share}")
    parts = [f"{kind.capitalize()}: {_list(names)}." for kind, names in named.items() if names]
    if parts and not named["trusted"]:
        parts.insert(0, "None for sure.")
    meaning = (
        "In brackets the share of cells on target; a dose is trusted where its 95% interval over wells lies above 50%, "
        "and the plate does not fail the swap test, which a score that was trained for must have passed."
    )
    return " ".join([*parts, meaning] if parts else [])


def _wells(rows: list[dict[str, Any]]) -> str:
    reasons = dict.fromkeys(row["reason"] for row in rows)
    named = [f"{_list(row['Metadata_Well'] for row in rows if row['reason'] == why)} ({why})" for why in reasons]
    return f"{'; '.join(named)}." if named else "None: no well stands out, none is at chance."


def _sites(rows: list[dict[str, Any]]) -> str:
    if len(rows) < 2:
        return "There is one site only." if rows else ""
    differ = [row for row in rows if row["verdict"] in ("higher", "lower")]
    named = [f"site {row['Metadata_Site']} is {row['verdict']} ({row['difference']:+.2f})" for row in differ]
    if not named:
        return f"No: none of the {len(rows)} sites differs clearly from the others of the same wells."
    return f"Yes: {_list(named)} than the other sites of the same wells, in adjusted score."


def _audit(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    (row,) = rows
    drops = {what: row[f"logit_drop_{region}"] for region, what in _REGIONS.items()}
    known = {what: drop for what, drop in drops.items() if drop is not None}
    if not known:
        return ""
    first = max(known, key=lambda what: known[what])
    falls = ", ".join(f"{_number(drop)} for {what}" for what, drop in known.items())
    text = f"Mostly {first}. " if known[first] > 0 else "No one region. "
    text += (
        f"Put other background in a region's place and the logit falls by: {falls} (medians of {row['n_cells']} cells)."
    )
    if (agreement := row["score_effect_correlation"]) is not None:
        text += f" Score and measured effect agree with a rank correlation of {agreement:.2f}."
    return text


def _swap_test(rows: list[dict[str, Any]], favoured: bool) -> str:
    if not rows or rows[0].get("survives_swap") is None:
        return ""
    (row,) = rows
    stays = row["survives_swap"] > 0.5
    meaning = {
        (True, True): "Its maps lie on the cell, and most of its answers stay with it.",
        (True, False): "Its maps lie on the cell, but its answers hang on what surrounds it.",
        (False, True): "Most of its answers stay with the cell, though its maps do not lie on it.",
        (False, False): "Its maps do not lie on the cell, and its answers hang on what surrounds it.",
    }[favoured, stays]
    return (
        f"{meaning} Of {row['n_cells']} audited cells {row['survives_swap']:.0%} survive the swap: their class stays "
        "in other cells' surroundings, more probable there than with another cell in their place. "
        f"{row['trusted']:.0%} do and have a map that looks at the cell (trusted)."
        + " Where a well has one treatment, its neighbours show it too, and may be what the model reads."
        * (not stays)
    )


def _gain(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "It is the first champion that has scored this plate."
    (row,) = rows
    return (
        f"{row['verdict'].capitalize()}: {row['on_target_before']:.0%} of {row['n_cells']} cells were on target by "
        f"version {row['previous_version']}, {row['on_target_now']:.0%} are now; the mean adjusted score went from "
        f"{_number(row['adjusted_before'])} to {_number(row['adjusted_now'])}."
    )


def _drift(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    (row,) = rows
    if row["verdict"] == "too few earlier plates":
        return f"Too early to say: {_count(row['earlier_plates'], 'earlier plate')}, and it takes eight."
    names = {"on_target": "share on target", "adjusted": "adjusted score", "control": "adjusted score of controls"}
    far = [f"{text} ({row[f'{name}_deviation']:+.1f})" for name, text in names.items() if row[f"{name}_deviation"]]
    said = "No: it differs" if row["verdict"] == "differs" else "Yes"
    return f"{said}. Robust deviations from {row['earlier_plates']} earlier plates: {', '.join(far) or 'none'}."


def _training(model: Mapping[str, Any] | None) -> str:
    if not model:
        return ""
    plates, metrics = model["train_plates"] or [], model["metrics"] or {}
    text = f"{model['architecture'] or 'An encoder'}"
    if plates:
        text += f", on {_count(len(model['train_wells'] or []), 'well')} of {_list(plates, 3)}"
    if model["created_at"]:
        text += f", registered {model['created_at']:%Y-%m-%d}"
    parts = {"test_accuracy": "wells held out", "unseen_accuracy": "plates not trained on"}
    known = [f"{metrics[name]:.0%} of the cells of {of}" for name, of in parts.items() if metrics.get(name) is not None]
    text += f". It tells the class of {' and '.join(known)}." if known else "."
    return f"{text} {_cure(model)}"


def _rewarded(model: Mapping[str, Any] | None) -> bool:
    """Whether training asked for maps on the cell, so that they are no evidence by themselves."""
    return model is not None and model.get("regulariser") not in (None, "none")


def _cure(model: Mapping[str, Any]) -> str:
    if model.get("swap") is None:
        return "Whether surroundings were swapped in training, or maps on the cell rewarded, is not known."
    text = "No surroundings were swapped."
    if model["swap"]:
        text = f"{model['swap']:.0%} of its crops had the surroundings of another crop."
    if not _rewarded(model):
        return f"{text} Maps beside the cell were not penalised."
    return (
        f"{text} Maps beside the cell were penalised ({model['regulariser']}, weight {model['regulariser_weight']:g}). "
        "Its maps were rewarded for lying on the cell: the score alone is no evidence; read the swap test."
    )


def _list(names: Iterable[str], most: int = _MOST_NAMED) -> str:
    names = list(names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{value:.2f}"
