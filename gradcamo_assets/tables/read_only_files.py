"""Give DuckDB read access to a fixed set of files, and write access to nothing.

DuckDB's own settings cannot do this: a folder or file that ``allowed_directories`` or ``allowed_paths`` opens for
reading is open for writing too.
"""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterable
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

PROTOCOL = "gradcamo-read-only"
ADDRESS_VARIABLE = "gradcamo_file_address"
"""The DuckDB variable that views put before each path: ``gradcamo-read-only://``, or not set (the local disk)."""


class ReadOnlyFiles(AbstractFileSystem):
    """A file system that holds the given local files and cannot be changed.

    Args:
        paths: absolute paths. DuckDB escapes them as glob patterns.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, paths: Iterable[str]):
        super().__init__()
        self._paths = {glob.escape(path): path for path in paths}
        self._known = frozenset(self._paths.values())

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file with this escaped path, if there is one. Patterns match nothing."""
        found = self._paths.get(self._strip_protocol(path))
        return [found] if found is not None and Path(found).exists() else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, type and size (bytes) of a file."""
        path = self._find(path)
        return {"name": path, "type": "file", "size": Path(path).stat().st_size}

    def modified(self, path: str) -> datetime:
        """The time of the last change of a file, UTC."""
        return datetime.fromtimestamp(Path(self._find(path)).stat().st_mtime, UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BufferedReader:
        if mode != "rb":
            raise PermissionError(errno.EACCES, "queries cannot write files", path)
        return Path(self._find(path)).open("rb")

    def _find(self, path: str) -> str:
        path = self._strip_protocol(path)
        if path not in self._known:
            raise FileNotFoundError(errno.ENOENT, "not a file of the QC database", path)
        return path

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{PROTOCOL}://")
