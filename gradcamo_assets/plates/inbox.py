"""What lies in the inbox, and what of it is to be ingested. Nothing here ingests."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.plates.hcs import name_of
from gradcamo_assets.plates.records import quick_signature, source_signature

UNREADABLE = "unreadable: "
"""What stands before the reason, in place of a signature, for a plate whose files cannot be listed."""


@dataclass(frozen=True)
class InboxState:
    """``ready``: plates to ingest, by name. ``problems``: what a person must see to, by plate (or folder) name."""

    ready: list[Path]
    problems: dict[str, str]


def plates_to_ingest(found: Mapping[Path, str], known: Mapping[str, Mapping[str, Any]]) -> InboxState:
    """What is found less what is known.

    Args:
        found: signature of every plate folder in the inbox, as ``list_inbox`` gives them.
        known: record of every ingested plate by name; its ``signature`` is compared.

    A name that two folders share makes neither ready, and a known plate that changed is a problem rather than a new
    plate: what was computed from it would silently lose its ground.
    """
    folders: dict[str, list[Path]] = defaultdict(list)
    problems: dict[str, str] = {}
    for path in sorted(found):
        try:
            folders[name_of(path)].append(path)
        except PlateError as error:
            problems[path.name] = f"{error.problem}. {error.remedy}"
    ready = []
    for name, paths in folders.items():
        if len(paths) > 1:
            listed = " and ".join(str(path) for path in paths)
            problems[name] = f"{len(paths)} folders have this name: {listed}. Rename or remove all but one."
        elif found[paths[0]].startswith(UNREADABLE):
            problems[name] = found[paths[0]]
        elif name not in known:
            ready.append(paths[0])
        elif known[name].get("signature") != found[paths[0]]:
            problems[name] = f"changed after ingestion; re-ingest on request ({paths[0]})"
    return InboxState(ready, problems)


def list_inbox(inbox: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> dict[Path, str]:
    """The plate folders directly in ``inbox``, each with its signature.

    A plate folder ends in ``.zarr`` or holds plate metadata; names that begin with a dot are skipped.

    Args:
        known: records of ingested plates. A plate whose folders look as they did then, down to its wells, is taken to
            be unchanged and its files are not walked. Leave it out to look at every file.

    Raises:
        PlateError: where the inbox cannot be listed; an inbox out of reach is never an empty one. A single plate that
            cannot be listed (or holds links) has ``unreadable: <reason>`` for its signature.
    """
    try:
        folders = sorted(path for path in inbox.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise PlateError(
            f"the inbox cannot be listed: {error.strerror}", "Check that the folder is there and its disk is mounted.",
            path=inbox,
        ) from error  # fmt: skip
    return {path: _signature(path, known or {}) for path in folders if _is_plate(path)}


def _signature(path: Path, known: Mapping[str, Mapping[str, Any]]) -> str:
    record = known.get(path.name.removesuffix(".zarr").removesuffix(".ome"))
    try:
        if record and record.get("signature") and record.get("quick_signature") == quick_signature(path):
            return str(record["signature"])
        return source_signature(path)
    except PlateError as error:
        return f"{UNREADABLE}{error}"


def _is_plate(path: Path) -> bool:
    if path.name.endswith(".zarr"):
        return True
    for file, keys in (("zarr.json", ("attributes", "ome")), (".zattrs", ())):
        try:
            metadata = json.loads((path / file).read_text())
            for key in keys:
                metadata = metadata[key]
            if "plate" in metadata:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False
