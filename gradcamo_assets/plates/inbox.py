"""List the plates in the inbox and decide the state of each: which to ingest, which to leave, and why."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.names import is_system_name, printable
from gradcamo_assets.plates.companions import TABLE_FOLDERS, fetch_tables, scan_source
from gradcamo_assets.plates.failures import Failures
from gradcamo_assets.plates.formats import detect_format
from gradcamo_assets.plates.formats.proposals import propose_configuration
from gradcamo_assets.plates.formats.schemes import SCHEMES, describe_scheme
from gradcamo_assets.plates.omezarr import plate_name_of
from gradcamo_assets.settings import Amount, section, setting
from gradcamo_assets.storage import is_in_bucket, list_files

State = Literal["ready", "copying", "ingesting", "known", "changed", "waiting", "quarantined", "unreadable"]
Depth = Literal["new", "names", "contents"]
"""How to check known plates for changes: not at all, by the names and sizes of their files, or by contents too."""
_MAX_METADATA_BYTES = 50_000_000
_PLATE_FILES = (".tif", ".tiff", ".png", "zarr.json", ".zattrs")


@section
class InboxConfig:
    """When a plate counts as complete: section ``[inbox]`` of ``gradcamo.toml``."""

    settle_seconds: Amount = setting(120.0, "Seconds without any change after which a plate is complete.")
    marker: str | None = setting(
        None,
        "Name of a file that marks a plate as complete instead: in the plate's folder, or beside it as "
        "<plate>.<marker>.",
        max_length=128,
        pattern=r"^[A-Za-z0-9](\.?[A-Za-z0-9_-])*$",
    )


@dataclass(frozen=True)
class FolderSnapshot:
    """The content of a plate folder at one moment.

    Attributes:
        signature: as from ``compute_signature``. It lacks the contents if names or sizes of a known plate changed, and
            is empty if files vanished during the scan.
        newest: time of the latest change, in seconds since 1970 (0 if a known plate is unchanged).
        marked: whether the completion marker exists.
        problem: why the folder cannot be listed or read, or None.
        contents: what was recognised by the names of the images alone; empty if an index lists them.
        is_plate: False for images that no reader understands.
    """

    signature: str = ""
    newest: float = 0
    marked: bool = False
    problem: str | None = None
    contents: str = ""
    is_plate: bool = True

    @property
    def token(self) -> str:
        """Equal in two snapshots if nothing changed between them."""
        return f"{self.signature} {self.newest}"


@dataclass(frozen=True)
class PlateState:
    """One folder of the inbox and its state. ``reason`` is written for people and may be empty."""

    name: str
    path: Path
    state: State
    reason: str = ""


def plate_states(
    snapshots: Mapping[Path, FolderSnapshot | None],
    known: Mapping[str, str],
    failures: Mapping[str, Failures],
    previous: Mapping[str, tuple[str, float]],
    now: datetime,
    settings: InboxConfig,
    ingesting: Mapping[str, tuple[int, int]] | None = None,
) -> list[PlateState]:
    """Decide the state of each folder in the inbox; sorted by name.

    Two folders that give the same plate name are both rejected. A plate that changed after ingestion is ingested again
    only on request, because results computed from it would no longer match it.

    Args:
        snapshots: as from ``list_inbox``.
        known: signature of every ingested plate, by name.
        failures: failed attempts, by name. Attempts at another signature do not count.
        previous: by name, ``FolderSnapshot.token`` at the previous check and the time (seconds since 1970) since which
            it has not changed.
        now: with a time zone.
        ingesting: ingested fields and all fields of each plate that a process is ingesting now, by name.
    """
    names = plate_names(snapshots)
    plates = {path for path, snapshot in snapshots.items() if snapshot is not None and snapshot.is_plate}
    name_counts = Counter(name for path, name in names.items() if isinstance(name, str) and path in plates)

    def decide(path: Path, name: str, snapshot: FolderSnapshot | None) -> tuple[State, str]:
        if snapshot is None or not snapshot.is_plate:
            problem = "unknown format: neither an OME-Zarr plate nor an export of a supported microscope"
            return "unreadable", f"{problem}. {snapshot.problem}" if snapshot and snapshot.problem else problem
        if name_counts[name] > 1:
            same_name = sorted(other.name for other, its in names.items() if its == name and other in plates)
            folders = " and ".join(same_name)
            return "unreadable", f"{len(same_name)} folders give this plate name: {folders}. Rename or remove one."
        if snapshot.problem is not None:
            return "unreadable", snapshot.problem
        failed = failures.get(name)
        if failed is not None and failed.signature != snapshot.signature:
            failed = None
        last = failed.last if failed and failed.attempts else None
        if ingesting and name in ingesting:
            done, total = ingesting[name]
            start = f" since {last.at:%Y-%m-%d %H:%M} UTC" if last and last.reason is None else ""
            return "ingesting", f"a run is ingesting it{start}{f', {done} of {total} fields are done' if total else ''}"
        if name in known and known[name] != snapshot.signature:
            note = f" The last {last}." if last else ""
            return "changed", f"it changed after ingestion. To ingest it again, materialise its plate_images.{note}"
        # A known plate with a record of failures has no rows yet, also if a user has reset the attempts.
        if name in known and failed is None:
            return "known", ""
        if failed is not None and not (retry := failed.decide_retry(now)).due:
            if retry.at is None:
                count = f"it failed {len(failed.attempts)} times; the last {last}"
                return "quarantined", f"{count}. To try again: gradcamo inbox --retry {name}"
            return "waiting", f"{last}; next try at {retry.at:%Y-%m-%d %H:%M} UTC"
        state, reason = _decide_completeness(snapshot, previous.get(name), now, settings)
        return state, "; ".join(filter(None, (reason, snapshot.contents)))

    states = []
    for path, name in names.items():
        if isinstance(name, PlateError):
            state: State = "unreadable"
            reason = f"{name.problem}. {name.remedy}"
        else:
            state, reason = decide(path, name, snapshots[path])
        states.append(
            PlateState(printable(path.name if isinstance(name, PlateError) else name), path, state, printable(reason))
        )
    return sorted(states, key=lambda state: (state.name, state.path))


def _decide_completeness(
    snapshot: FolderSnapshot, previous: tuple[str, float] | None, now: datetime, settings: InboxConfig
) -> tuple[State, str]:
    if not snapshot.signature:
        return "copying", "its files changed during the check"
    if settings.marker is not None:
        return ("ready", "") if snapshot.marked else ("copying", f"waiting for its marker {settings.marker}")
    age = now.timestamp() - snapshot.newest
    # If the clock of a share runs ahead, or ours was set back, only two of our own checks show that nothing changes.
    unchanged = now.timestamp() - previous[1] if previous is not None and previous[0] == snapshot.token else 0
    if max(age, unchanged) >= settings.settle_seconds:
        return "ready", ""
    return "copying", f"changed {max(age, 0):.0f} s ago; ready after {settings.settle_seconds:g} s without change"


def plate_names(folders: Iterable[Path]) -> dict[Path, str | PlateError]:
    """The plate name of each folder of the inbox, or the error of its name."""
    names: dict[Path, str | PlateError] = {}
    for path in folders:
        try:
            names[path] = plate_name_of(path)
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
) -> dict[Path, FolderSnapshot | None]:
    """Take a snapshot of each folder in ``inbox``; None for folders that are no plate in a supported format.

    Hidden folders, those of the operating system, and folders of plate maps or metadata are skipped.

    Args:
        known: signature of ingested plates, by name.
        depth: how to check known plates. What is not checked is assumed unchanged.
        only: a plate name; other plates are skipped.

    Raises:
        PlateError: the inbox cannot be listed. An unavailable inbox never counts as empty. If a single plate cannot be
            listed, its snapshot has a ``problem``.
    """
    settings, known = settings or InboxConfig(), known or {}
    try:
        folders, files = _list_objects(inbox) if is_in_bucket(inbox) else _list_folder(inbox)
    except OSError as error:
        remedy = "Check that the folder exists and its disk is mounted."
        raise PlateError(f"the inbox cannot be listed: {error.strerror}", remedy, path=inbox) from error
    names = plate_names(inbox / folder for folder in sorted(folders) if folder.lower() not in TABLE_FOLDERS)
    name_counts = Counter(name for name in names.values() if isinstance(name, str))
    beside = {name.casefold() for name in (*folders, *files)}
    snapshots: dict[Path, FolderSnapshot | None] = {}
    for path, name in names.items():
        if only not in (None, name):
            continue
        signature = known.get(name) if isinstance(name, str) else None
        # If two folders have one name, one of them may not be a plate, so both are checked.
        if signature is not None and depth == "new" and name_counts[str(name)] == 1:
            snapshots[path] = FolderSnapshot(signature)
        else:
            snapshots[path] = _take_snapshot(path, signature, depth, settings, beside)
    return snapshots


def _list_folder(inbox: Path) -> tuple[list[str], list[str]]:
    """The names of folders and of other files in the inbox."""
    with os.scandir(inbox) as listing:
        entries = [entry for entry in listing if not entry.name.startswith(".") and not is_system_name(entry.name)]
        folders = [entry.name for entry in entries if entry.is_dir()]
    return folders, [entry.name for entry in entries if entry.name not in folders]


def _list_objects(inbox: Path) -> tuple[list[str], list[str]]:
    """As ``_list_folder``, in a bucket."""
    folders, files = ([name for name in names if not name.startswith(".")] for names in fetch_tables(inbox))
    return folders, files


def _take_snapshot(
    path: Path, signature: str | None, depth: Depth, settings: InboxConfig, beside: Set[str]
) -> FolderSnapshot | None:
    """``signature``: of the plate when it was ingested, or None; ``beside``: as in ``find_companions``."""
    try:
        if is_in_bucket(path):
            return _take_object_snapshot(path, signature, depth, settings, beside)
        if (format := _detect_format(path)) is None:
            proposal = propose_configuration(path, plate_name_of(path))
            return FolderSnapshot(problem=proposal, is_plate=False) if proposal else None
        if signature is not None and depth == "names":
            names_digest, newest = scan_source(path, contents=False, beside=beside)
            if signature.startswith(names_digest):
                return FolderSnapshot(signature)
            return FolderSnapshot(names_digest, newest)
        current, newest = scan_source(path, beside=beside)
        markers = (path.with_name(f"{name}.{settings.marker}") for name in (plate_name_of(path), path.name))
        marked = settings.marker is not None and any(file.is_file() for file in (path / settings.marker, *markers))
        contents = describe_scheme(path, format) if format in SCHEMES else ""
        return FolderSnapshot(current, newest, marked, contents=contents)
    except (GradcamoError, OSError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return FolderSnapshot(newest=math.inf)
        return FolderSnapshot(problem=str(error))


def _take_object_snapshot(
    path: Path, signature: str | None, depth: Depth, settings: InboxConfig, beside: Set[str]
) -> FolderSnapshot:
    """As ``_take_snapshot``, from the listing of a bucket alone: the format is detected when the plate is ingested."""
    files = list_files(path)
    if not any(name.lower().endswith(_PLATE_FILES) for name in files):
        problem = f"None of its {len(files)} files has a name that ends in {', '.join(_PLATE_FILES)}."
        return FolderSnapshot(problem=problem, is_plate=False)
    names_only = signature is not None and depth == "names"
    current, newest = scan_source(path, contents=not names_only, beside=beside)
    if names_only and str(signature).startswith(current):
        return FolderSnapshot(signature or "")
    markers = {f"{name}.{settings.marker}".casefold() for name in (plate_name_of(path), path.name)}
    return FolderSnapshot(current, newest, settings.marker in files or bool(markers & beside))


def _detect_format(path: Path) -> str | None:
    if path.name.endswith(".zarr"):
        return "OME-Zarr"
    for file in ("zarr.json", ".zattrs"):
        with suppress(OSError, ValueError, AttributeError, TypeError):
            info = (path / file).lstat()
            if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_METADATA_BYTES:
                continue
            metadata = json.loads((path / file).read_text())
            if "plate" in metadata.get("attributes", {}).get("ome", metadata):
                return "OME-Zarr"
    return detect_format(path)
