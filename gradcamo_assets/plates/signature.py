"""Whether a plate is the same as before: from all of its files, or cheaply from the times of its folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.plates.companions import companions

_MOST_FOLDERS = 2000


def source_signature(source: Path) -> str:
    """A digest of the names, sizes and times of the files of a plate and of the tables beside it.

    Raises:
        PlateError: an unusable name, a folder that cannot be listed, or anything that is neither a file nor a folder;
            symbolic links are never followed.
    """
    return walk(source)[0]


def folder_times(source: Path) -> dict[str, int]:
    """What tells cheaply that a plate is as it was: when its folders and the tables beside it changed.

    Modification times in nanoseconds by path relative to ``source``: of the folder itself and of up to two levels of
    folders below, 2,000 at most; of the tables (their paths begin with ``..``) sizes too. Take it before
    ``source_signature``, or a change in between stays unseen.

    Raises:
        PlateError: as ``source_signature``.
    """
    try:
        folders = level = [str(source)]
        for _ in range(2):
            level = sorted(
                entry.path for folder in level for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)
            )
            folders = [*folders, *level][:_MOST_FOLDERS]
        times = {os.path.relpath(folder, source): Path(folder).stat().st_mtime_ns for folder in folders}
        return times | _beside(source)
    except OSError as error:
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=source) from error


def as_recorded(source: Path, record: Mapping[str, Any]) -> bool:
    """Whether a known plate's folders look as at ingestion. Each is asked for its time, none is listed."""
    recorded = record.get("folders")
    if not record.get("signature") or not isinstance(recorded, dict):
        return False
    try:
        now = {name: Path(f"{source}/{name}").stat().st_mtime_ns for name in recorded if not name.startswith("..")}
        return now | _beside(source) == recorded
    except OSError:
        return False


def walk(source: Path) -> tuple[str, float]:
    """The signature of a plate, and when anything of it changed last.

    Writers that preserve times set those of modification, never those of the inode, so the newer of both counts.
    """
    if source.is_symlink():
        raise PlateError("it is a symbolic link", "Copy the plate itself.", path=source)
    tables = companions(source).files
    for path in tables:
        if path.is_symlink():
            raise PlateError("it is a symbolic link", "Copy the file itself.", path=path)
    beside = [(path.name, path.stat()) for path in tables]
    try:
        infos = [source.stat(), *(info for _, info in beside)]
        newest = max(max(info.st_mtime, info.st_ctime) for info in infos)
        files: list[tuple[str, int, int]] = []
        folders, start = [str(source)], len(str(source)) + 1
        while folders:
            for entry in _entries(folders.pop()):
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_mtime, info.st_ctime)
                if stat.S_ISDIR(info.st_mode):
                    folders.append(entry.path)
                    files.append((entry.path[start:] + "/", 0, 0))
                elif stat.S_ISREG(info.st_mode):
                    files.append((entry.path[start:], info.st_size, info.st_mtime_ns))
                else:
                    problem = "it is a link or a special file"
                    raise PlateError(problem, "Replace it by the file itself.", path=entry.path)
    except OSError as error:
        place = error.filename or source
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=place) from error
    return digest(sorted(files) + [(name, info.st_size, info.st_mtime_ns) for name, info in beside]), newest


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return list(listing)


def _beside(source: Path) -> dict[str, int]:
    files = {os.path.relpath(path, source): path.stat() for path in companions(source).files}
    sizes = {f"{name} (bytes)": info.st_size for name, info in files.items()}
    return {name: info.st_mtime_ns for name, info in files.items()} | sizes
