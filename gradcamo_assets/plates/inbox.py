"""What lies in the inbox, what of it is to be ingested, and whether it changed. Nothing here ingests."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.plates.companions import companions
from gradcamo_assets.plates.hcs import name_of

_UNREADABLE = "unreadable: "
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
        elif found[paths[0]].startswith(_UNREADABLE):
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


def source_signature(source: Path, depth: float = math.inf) -> str:
    """A digest of the names, sizes and times of the files of a plate and of the tables beside it.

    Args:
        depth: how many levels of folders to look into. With 2 it reaches the wells: cheap, it sees wells and fields
            come and go (by the times of their folders), not their pixels.

    Raises:
        PlateError: an unusable name, a folder that cannot be listed, or anything that is neither a file nor a folder;
            symbolic links are never followed.
    """
    beside = [(path.name, path.stat()) for path in companions(source).files]
    return digest(sorted(_entries(source, source, depth)) + [(n, s.st_size, s.st_mtime_ns) for n, s in beside])


def _entries(folder: Path, root: Path, depth: float) -> Iterator[tuple[str, int, int]]:
    try:
        if folder.is_symlink():
            raise PlateError("it is a symbolic link", "Copy the plate itself.", path=folder)
        with os.scandir(folder) as listing:
            for entry in listing:
                info = entry.stat(follow_symlinks=False)
                path = Path(entry.path)
                if stat.S_ISDIR(info.st_mode):
                    yield str(path.relative_to(root)) + "/", 0, 0 if depth == math.inf else info.st_mtime_ns
                    if depth > 0:
                        yield from _entries(path, root, depth - 1)
                elif stat.S_ISREG(info.st_mode):
                    yield str(path.relative_to(root)), info.st_size, info.st_mtime_ns
                else:
                    raise PlateError("it is a link or a special file", "Replace it by the file itself.", path=path)
    except OSError as error:
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=folder) from error


def _signature(path: Path, known: Mapping[str, Mapping[str, Any]]) -> str:
    try:
        record = known.get(name_of(path), {})
        if record.get("signature") and record.get("quick_signature") == source_signature(path, depth=2):
            return str(record["signature"])
        return source_signature(path)
    except PlateError as error:
        return f"{_UNREADABLE}{error}"


def _is_plate(path: Path) -> bool:
    if path.name.endswith(".zarr"):
        return True
    for file in ("zarr.json", ".zattrs"):
        with suppress(OSError, ValueError, AttributeError, TypeError):
            metadata = json.loads((path / file).read_text())
            if "plate" in metadata.get("attributes", {}).get("ome", metadata):
                return True
    return False
