"""Recognise the naming schemes that microscopes use, for image files without an index."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.formats.files import find_images, is_image, list_names
from gradcamo_assets.plates.formats.planes import well_from_indices

SCHEMES = {
    "MetaXpress names": r"(?i)(?:.*/)?(?:[^/]*?_)?(?P<well>[a-z]{1,2}\d{1,2})(?:_s(?P<site>\d+))?_(?P<channel>w\d)"
    r"(?:_?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?\.tiff?",
    "Phenix names": r"(?:.*/)?r(?P<row>\d\d)c(?P<column>\d\d)f(?P<site>\d+)p(?P<z>\d+)-(?P<channel>ch\d+)"
    r"(?:sk\d+)?(?:fk\d+)?(?:fl\d+)?\.(?:tiff?|png)",
    "ScanR names": r"(?:.*/)?(?P<well>[A-Z]{1,2}\d{1,2})--W\d+--P(?P<site>\d+)--Z(?P<z>\d+)--T\d+--(?P<channel>[^/]+)"
    r"\.tiff?",
    "IN Cell names": r"(?:.*/)?(?P<row>[A-Z]{1,2}) - (?P<column>\d+)\(fld (?P<site>\d+) wv (?P<channel>[^/()]+?)"
    r"(?: z (?P<z>\d+))?\)\.tiff?",
    "CellVoyager names": r"(?:.*/)?[^/]*_(?P<well>[A-Z]{1,2}\d\d)_T\d+F(?P<site>\d+)L\d+A\d+Z(?P<z>\d+)"
    r"(?P<channel>C\d+)\.tiff?",
    "ArrayScan names": r"(?:.*/)?[^/]*_(?P<well>[A-P]\d\d)f(?P<site>\d\d)(?P<channel>d\d)\.(?i:tiff?)",
}
"""Patterns of the names that microscopes give, as in the configuration of a plate (see ``pattern``)."""
_MAX_SAMPLED_NAMES, _MAX_SEARCHED_FOLDERS, _MAX_LISTED = 200, 20, 6


def recognise_scheme(folder: Path) -> str | None:
    """The name of the scheme that most of the first image names in a folder follow; None if there is none."""
    sample = sample_names(folder)
    counts = {name: sum(bool(re.fullmatch(scheme, file)) for file in sample) for name, scheme in SCHEMES.items()}
    best = max(counts, key=counts.__getitem__)
    return best if 2 * counts[best] > len(sample) else None


def describe_scheme(folder: Path, name: str) -> str:
    """What the scheme ``name`` finds in a folder: ``MetaXpress names: 2 wells, sites 1 and 4, channels w1 and w3``."""
    matches = [match for file in find_images(folder) if (match := re.fullmatch(SCHEMES[name], file))]
    found: dict[str, set[str]] = {group: set() for group in ("well", "site", "channel")}
    for match in matches:
        groups = match.groupdict()
        well = groups.get("well")
        with_names = groups | {"well": well if well else well_from_indices(groups["row"], groups["column"])}
        for group, values in found.items():
            values.add(with_names[group] or "1")
    wells = len(found["well"])
    sites = _enumerate("site", {site.lstrip("0") or "0" for site in found["site"]})
    return f"{name}: {wells} well{'s' * (wells != 1)}, {sites}, {_enumerate('channel', found['channel'])}"


def sample_names(folder: Path) -> list[str]:
    """The first image names in a folder, or in one of the folders below it if it has none; relative to ``folder``."""
    folders = [""]
    for depth in range(3):
        below: list[str] = []
        for parent in folders[:_MAX_SEARCHED_FOLDERS]:
            names = list_names(folder / parent)
            if images := [parent + name for name in names if is_image(name)]:
                return images[:_MAX_SAMPLED_NAMES]
            if depth < 2:
                below += [f"{parent}{name}/" for name in names if _is_folder(folder / parent / name)]
        folders = below
    return []


def _is_folder(path: Path) -> bool:
    return "." not in path.name and path.is_dir() and not path.is_symlink()


def _enumerate(noun: str, values: Collection[str]) -> str:
    ordered: Sequence[str] = sorted(values, key=natural_key)
    if len(ordered) > _MAX_LISTED:
        return f"{len(ordered)} {noun}s"
    *first, last = ordered
    return f"{noun}s {', '.join(first)} and {last}" if first else f"{noun} {last}"
