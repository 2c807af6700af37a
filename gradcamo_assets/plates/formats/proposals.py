"""Propose the configuration of a plate whose image names follow no known scheme."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gradcamo_assets.plates.formats.schemes import sample_names

_HINTS = {
    "s": "site", "f": "site", "fld": "site", "field": "site", "site": "site", "pos": "site", "xy": "site",
    "w": "channel", "c": "channel", "ch": "channel", "wv": "channel", "channel": "channel", "wave": "channel",
    "z": "z", "slice": "z", "plane": "z", "p": "z",
}  # fmt: skip
"""What a number means, by the letters before it."""
_PARTS = re.compile("([A-Za-z]*)([0-9]*)")


def propose_configuration(folder: Path, name: str) -> str:
    """The text of ``<plate>.toml`` to fill in for a folder of images; empty if it has none.

    Args:
        name: of the plate.
    """
    if not (sample := sample_names(folder)):
        return ""
    pattern = _propose_pattern(sample)
    matched = [file for file in sample if re.fullmatch(pattern, file)]
    groups = re.compile(pattern).groupindex
    missing = [group for group in ("well", "site", "channel") if group not in groups]
    to_do = f" Mark {' and '.join(missing)} in it, as (?P<{missing[0]}>...)." if missing else ""
    return (
        f"Its image names follow no known scheme, for example {sample[0]}. Write this into {name}.toml beside the "
        f"plate, and correct it: pattern = '{pattern}' (it matches {len(matched)} of the first {len(sample)} names)."
        + to_do
    )


def _propose_pattern(sample: Sequence[str]) -> str:
    """Turn the first name into a pattern. Words that other names lack, and numbers, become groups."""
    folder, _, file = sample[0].rpartition("/")
    stem, _, ending = file.rpartition(".")
    used: set[str] = set()
    text, before = "", ""
    for token in re.split("([^A-Za-z0-9]+)", stem):
        if re.fullmatch("[A-Za-z0-9]+", token):
            text += _propose_word(token, before, sample, used)
            before = token
        else:  # A literal string of TOML cannot contain a quote.
            text += re.escape(token).replace(r"\ ", " ").replace("'", ".")
    return ("(?:.*/)?" if folder else "") + text + re.escape(f".{ending}")


def _propose_word(word: str, before: str, sample: Sequence[str], used: set[str]) -> str:
    """The pattern of one word, which adds its groups to ``used``; ``before`` is the word before it."""
    text = ""
    if "well" not in used and (well := re.match("[A-P][0-9]{2}(?![0-9])|[A-P][1-9]$", word)):
        used.add("well")
        text, word = r"(?P<well>[A-P]\d+)", word[well.end() :]
    varies = not all(word in file for file in sample)
    parts = [part for part in _PARTS.findall(word) if any(part)]
    groups = [_HINTS.get((letters or before).lower()) if digits else None for letters, digits in parts]
    if varies and not any(groups) and word:
        whole = "site" if word.isdigit() else "channel"
        if whole not in used:
            used.add(whole)
            return text + (r"(?P<site>\d+)" if whole == "site" else "(?P<channel>[A-Za-z0-9]+)")
    for (letters, digits), group in zip(parts, groups, strict=True):
        text += letters
        if digits:
            text += rf"(?P<{group}>\d+)" if group and group not in used else r"\d+"
            used.add(group or "")
    return text
