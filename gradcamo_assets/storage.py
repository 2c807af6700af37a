"""How the platform writes, lists and removes what it stores. Readers never see half of a write.

Today all of it lies on a file system. Only this module calls the file system for what the platform stores; libraries
(Zarr, Delta Lake, DuckDB, MLflow) are given the places it makes.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; on success it takes ``path``'s place, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder to fill; on success it becomes ``path``, which never changes again.

    Where ``path`` is there by then, it was made by somebody else from the same things: the scratch folder is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _temporary(path)
    scratch.mkdir()
    try:
        yield scratch
        try:
            scratch.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all. NaN is refused, since JSON has none."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def create_marker(path: Path) -> None:
    """Write an empty file, whose name says all there is to say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None where there is none. OSError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_json(path: Path) -> Any:
    """The JSON in a file; None where there is no file. OSError or ValueError where it cannot be read."""
    content = read_bytes(path)
    return None if content is None else json.loads(content)


def list_visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder, sorted, but for hidden names (scratch files have them); empty where there is no folder.

    Args:
        pattern: as ``Path.glob`` has it; ``*/*`` looks into folders of the folder.
    """
    return sorted(
        path for path in folder.glob(pattern) if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def move(source: Path, target: Path) -> None:
    """Give a file or folder another place on the same file system, at once; a file that is there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def remove(*paths: Path) -> None:
    """Remove files and folders; what is not there is not missed. A link goes, what it leads to stays.

    Raises:
        OSError: for what cannot be removed.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
