"""What lies in the inbox, what of it is to be ingested, and whether it changed. Nothing here ingests."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.plates.companions import walk
from gradcamo_assets.plates.failures import Failures
from gradcamo_assets.plates.formats import format_of
from gradcamo_assets.plates.omezarr import name_of
from gradcamo_assets.settings import Amount, section, setting

State = Literal["ready", "copying", "ingesting", "known", "changed", "waiting", "quarantined", "unreadable"]
Depth = Literal["new", "names", "contents"]
"""How closely plates that are known are looked at: not at all, at the names and sizes of their files, or into these."""
_NO_PLATES = ("platemap", "platemaps", "metadata")
_LARGEST_METADATA = 50_000_000


@section
class InboxConfig:
    """When a plate counts as complete: section ``[inbox]`` of ``gradcamo.toml``."""

    settle_seconds: Amount = setting(120.0, "Seconds in which nothing of it has changed.")
    marker: str | None = setting(
        None,
        "Name of a file that says so instead, in the plate's folder, or beside it as <plate>.<marker>.",
        max_length=128,
        pattern=r"^[A-Za-z0-9](\.?[A-Za-z0-9_-])*$",
    )


@dataclass(frozen=True)
class Look:
    """What was seen of a plate folder.

    ``signature``: as ``source_signature`` gives it, without contents where a known plate's names or sizes changed, and
    empty where files vanished under the look. ``newest``: when any of it changed last, in seconds since 1970 (0 where
    the plate is as it was ingested). ``problem``: why it cannot be listed.
    """

    signature: str = ""
    newest: float = 0
    marked: bool = False
    problem: str | None = None

    @property
    def token(self) -> str:
        """What is equal at two looks between which nothing changed."""
        return f"{self.signature} {self.newest}"


@dataclass(frozen=True)
class PlateState:
    """One folder of the inbox and what is to become of it. ``reason`` is for people, empty where there is none."""

    name: str
    path: Path
    state: State
    reason: str = ""


def plate_states(
    found: Mapping[Path, Look | None],
    known: Mapping[str, str],
    failures: Mapping[str, Failures],
    before: Mapping[str, tuple[str, float]],
    now: datetime,
    settings: InboxConfig,
    ingesting: Mapping[str, tuple[int, int]] | None = None,
) -> list[PlateState]:
    """One state for each folder found, sorted by name: what is there, less what is known, less what has to wait.

    Args:
        found: as ``list_inbox`` gives it.
        known: signature of every ingested plate by name.
        failures: attempts that did not succeed, by name; those of another signature do not count.
        before: ``Look.token`` at the previous look and since when (seconds since 1970) it has been that, by name.
        now: with a time zone.
        ingesting: fields done, and of how many, by name of each plate that a process is taking in.

    Two plates of one name are both held back. A plate that changed after ingestion is taken in again on request only:
    what was computed from it would silently lose its ground.
    """
    names = plate_names(found)
    shared = Counter(name for path, name in names.items() if isinstance(name, str) and found[path] is not None)

    def state_of(path: Path, name: str, look: Look | None) -> tuple[State, str]:
        if look is None:
            return "unreadable", "no format that is read: neither an OME-Zarr plate nor an export of a known microscope"
        if shared[name] > 1:
            folders = " and ".join(sorted(other.name for other, its in names.items() if its == name and found[other]))
            return "unreadable", f"{shared[name]} folders have this name: {folders}. Rename or remove all but one."
        if look.problem is not None:
            return "unreadable", look.problem
        failed = failures.get(name)
        if failed is not None and (failed.signature != look.signature or not failed.attempts):
            failed = None
        if ingesting and name in ingesting:
            done, of = ingesting[name]
            begun = f" since {failed.last.at:%Y-%m-%d %H:%M} UTC" if failed and failed.last.reason is None else ""
            return "ingesting", f"a run takes it in{begun}{f', {done} of {of} fields are done' if of else ''}"
        if name in known and known[name] != look.signature:
            tried = f" The last attempt: {failed.last}." if failed else ""
            return "changed", f"it changed after ingestion. To take it in again, materialise its plate_images.{tried}"
        if name in known and not failed:
            return "known", ""
        if failed is not None and not (then := failed.decide_retry(now)).due:
            if then.at is None:
                told = f"failed {len(failed.attempts)} times, the last time {failed.last}"
                return "quarantined", f"{told}. gradcamo inbox --retry {name} forgets the failures."
            return "waiting", f"{failed.last}; next try at {then.at:%Y-%m-%d %H:%M} UTC"
        return _complete(look, before.get(name), now, settings)

    states = [
        PlateState(path.name, path, "unreadable", f"{name.problem}. {name.remedy}")
        if isinstance(name, PlateError)
        else PlateState(name, path, *state_of(path, name, found[path]))
        for path, name in names.items()
    ]
    return sorted(states, key=lambda state: (state.name, state.path))


def _complete(look: Look, before: tuple[str, float] | None, now: datetime, settings: InboxConfig) -> tuple[State, str]:
    if not look.signature:
        return "copying", "it is changing at this moment"
    if settings.marker is not None:
        return ("ready", "") if look.marked else ("copying", f"waits for its marker {settings.marker}")
    age = now.timestamp() - look.newest
    # Where the clock of a share runs ahead of ours, or ours was set back, only looks of our own can tell.
    unchanged = now.timestamp() - before[1] if before is not None and before[0] == look.token else 0
    if max(age, unchanged) >= settings.settle_seconds:
        return "ready", ""
    return "copying", f"changed {max(age, 0):.0f} s ago; waits until nothing has for {settings.settle_seconds:g} s"


def plate_names(found: Iterable[Path]) -> dict[Path, str | PlateError]:
    """The plate that each folder of the inbox is by its name, or why it is none."""
    names: dict[Path, str | PlateError] = {}
    for path in found:
        try:
            names[path] = name_of(path)
        except PlateError as error:
            names[path] = error
    return names


def list_inbox(
    inbox: Path,
    settings: InboxConfig | None = None,
    known: Mapping[str, str] | None = None,
    depth: Depth = "new",
    *,
    only: str | None = None,
) -> dict[Path, Look | None]:
    """The folders directly in ``inbox``, each as it looks now; None where it is no plate in a format that is read.

    Names that begin with a dot are skipped, and folders of plate maps or metadata.

    Args:
        known: signature of ingested plates by name.
        depth: how closely these are looked at; what is not looked at is taken to be as it was.
        only: a plate's name, to look at no other.

    Raises:
        PlateError: where the inbox cannot be listed; an inbox out of reach is never an empty one. A single plate that
            cannot be listed has a ``problem``.
    """
    settings, known = settings or InboxConfig(), known or {}
    try:
        with os.scandir(inbox) as listing:
            folders = [entry.name for entry in listing if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        remedy = "Check that the folder is there and its disk is mounted."
        raise PlateError(f"the inbox cannot be listed: {error.strerror}", remedy, path=inbox) from error
    names = plate_names(inbox / folder for folder in sorted(folders) if folder.lower() not in _NO_PLATES)
    shared = Counter(name for name in names.values() if isinstance(name, str))
    found = {}
    for path, name in names.items():
        signature = known.get(name) if isinstance(name, str) else None
        if only in (None, name):
            # Of two folders of one name, one may be no plate.
            unlooked = signature is not None and depth == "new" and shared[str(name)] == 1
            found[path] = Look(str(signature)) if unlooked else _look(path, signature, depth, settings)
    return found


def _look(path: Path, signature: str | None, depth: Depth, settings: InboxConfig) -> Look | None:
    """``signature``: what the plate had when it was ingested."""
    try:
        if not _is_plate(path):
            return None
        if signature is not None and depth == "names":
            seen, newest = walk(path, contents=False)
            return Look(signature) if signature.startswith(seen) else Look(seen, newest)
        seen, newest = walk(path)
        beside = (path.with_name(f"{name}.{settings.marker}") for name in (name_of(path), path.name))
        marked = settings.marker is not None and any(file.is_file() for file in (path / settings.marker, *beside))
        return Look(seen, newest, marked)
    except (GradcamoError, OSError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Look(newest=math.inf)
        return Look(problem=str(error))


def _is_plate(path: Path) -> bool:
    if path.name.endswith(".zarr"):
        return True
    for file in ("zarr.json", ".zattrs"):
        with suppress(OSError, ValueError, AttributeError, TypeError):
            info = (path / file).lstat()
            if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_METADATA:
                continue
            metadata = json.loads((path / file).read_text())
            if "plate" in metadata.get("attributes", {}).get("ome", metadata):
                return True
    return format_of(path) is not None
