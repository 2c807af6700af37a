"""Write, list and remove stored files. Writes are atomic: readers never see a partial file or folder.

This is the only module that accesses the file system for stored data. Libraries (Zarr, Delta Lake, DuckDB, MLflow)
write to the paths that it provides.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success the file replaces ``path``; on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder to fill. On success it is renamed to ``path``, which never changes again.

    If ``path`` exists by then, another process has produced the same content, and the scratch folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _temporary_path(path)
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
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. NaN is refused, since JSON does not define it."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def create_marker(path: Path) -> None:
    """Create an empty file whose name is the information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def read_bytes(path: Path) -> bytes | None:
    """Read a file; return None if it does not exist.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_range(path: Path, start: int, size: int) -> bytes:
    """Read ``size`` bytes of a file, fewer where it ends.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        return file.read(size)


def read_json(path: Path) -> Any:
    """Read JSON from a file; return None if the file does not exist.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not JSON.
    """
    content = read_bytes(path)
    return None if content is None else json.loads(content)


def list_visible(folder: Path, pattern: str = "*") -> list[Path]:
    """List a folder, sorted, without hidden names such as scratch files. A missing folder gives an empty list.

    Args:
        pattern: as in ``Path.glob``; ``*/*`` lists the contents of subfolders.
    """
    return sorted(
        path for path in folder.glob(pattern) if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def move(source: Path, target: Path) -> None:
    """Move a file or folder atomically within a file system. An existing target file is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def remove(*paths: Path) -> None:
    """Remove files and folders. Missing paths are ignored. A link is removed, its target is not.

    Raises:
        OSError: if a path cannot be removed.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
