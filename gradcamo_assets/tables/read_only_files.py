"""Give DuckDB read access to a fixed set of files, and write access to nothing.

DuckDB's own settings cannot do this: a folder or file that ``allowed_directories`` or ``allowed_paths`` opens for
reading is open for writing too.
"""

from __future__ import annotations

import errno
import glob
import os
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from gradcamo_assets.local_copies import fetch_unchanging
from gradcamo_assets.storage import exists, path_of

PROTOCOL = "gradcamo-read-only"
ADDRESS_VARIABLE = "gradcamo_file_address"
"""The DuckDB variable that views put before each path: ``gradcamo-read-only://``, or not set (the local disk)."""


class SharedFile(FileIO):
    """A file for reading with a position of its own for each thread.

    DuckDB shares one file between threads. Each moves to a position and then reads; with a common position, another
    thread could move it in between.
    """

    def __init__(self, path: Path):
        super().__init__(path, "rb")
        self._thread = threading.local()

    def tell(self) -> int:
        """This thread's position."""
        return getattr(self._thread, "position", 0)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move this thread's position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: os.fstat(self.fileno()).st_size}[whence]
        self._thread.position = start + offset
        return self.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at this thread's position."""
        start = self.tell()
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - start)
        data = os.pread(self.fileno(), size, start)
        self._thread.position = start + len(data)
        return data


class ReadOnlyFiles(AbstractFileSystem):
    """A file system that holds the given stored files and cannot be changed.

    Args:
        paths: their addresses (``storage.address``). DuckDB escapes them as glob patterns.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, paths: Iterable[str] = ()):
        super().__init__()
        self._paths: dict[str, str] = {}
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Add files."""
        self._paths |= {glob.escape(path): path for path in paths}

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file with this escaped path, if there is one. Patterns match nothing."""
        found = self._paths.get(self._strip_protocol(path))
        return [found] if found is not None and exists(path_of(found)) else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, type and size (bytes) of a file."""
        return {"name": self._strip_protocol(path), "type": "file", "size": self._find(path).stat().st_size}

    def modified(self, path: str) -> datetime:
        """The time of the last change of a file, UTC."""
        return datetime.fromtimestamp(self._find(path).stat().st_mtime, UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> FileIO:
        if mode != "rb":
            raise PermissionError(errno.EACCES, "queries cannot write files", path)
        return SharedFile(self._find(path))

    def _find(self, path: str) -> Path:
        address = self._strip_protocol(path)
        if self._paths.get(glob.escape(address)) != address:
            raise FileNotFoundError(errno.ENOENT, "not a file of the QC database", address)
        fetch_unchanging([path_of(address)])
        return path_of(address)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{PROTOCOL}://")
