"""Writes that happen whole or not at all: a temporary name beside the target, then a rename."""

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
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; on success it takes ``path``'s place, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all. NaN is refused, since JSON has none."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
