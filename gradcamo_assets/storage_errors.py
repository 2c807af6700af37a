"""Recognise errors of the disk, and say what to do when it is full, over quota, read-only, or without permission.

Only the outermost code, an asset or a command, explains such an error. Below, it must stay an ``OSError``: a full disk
says nothing about the plate or field that was being processed, while a ``GradcamoError`` there marks it as bad.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from gradcamo_assets.errors import GradcamoError, one_line

F = TypeVar("F", bound=Callable[..., Any])

_STORAGE_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip

# What libraries without error numbers say (SQLite, DuckDB, Delta Lake, polars), and problem and remedy.
_KINDS = {
    errno.ENOSPC: (
        "No space left on device|database or disk is full",
        "the disk is full",
        "Free space (`gradcamo prune` deletes what can be made again) or move GRADCAMO_HOME to a larger disk, then "
        "start again: finished results are kept.",
    ),
    errno.EDQUOT: (
        "Disk quota exceeded",
        "the disk quota of this user is used up",
        "Free space (`gradcamo prune` deletes what can be made again) or ask for a larger quota, then start again.",
    ),
    errno.EROFS: (
        "Read-only file system|attempt to write a readonly database",
        "the file system is read-only",
        "Mount it for writing, or set GRADCAMO_HOME to a folder on another one.",
    ),
    errno.EACCES: (
        "Permission denied|unable to open database file",
        "this user may not open the file",
        "Give the user that runs gradcamo the right to read and write it.",
    ),
}


def is_storage_failure(error: Exception) -> bool:
    """Whether the disk or network share failed, rather than the data on it. Such a field may be readable later."""
    return isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS


@contextmanager
def explained_storage_errors() -> Iterator[None]:
    """Raise errors of the disk as a ``GradcamoError`` with the remedy; other errors pass."""
    try:
        yield
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        raise explained from error


def explain_storage_errors(function: F) -> F:
    """Decorate a function, or a generator function, with ``explained_storage_errors``."""
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with explained_storage_errors():
                yield from function(*args, **kwargs)

        return generate  # type: ignore[return-value]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with explained_storage_errors():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def explain(error: BaseException) -> GradcamoError | None:
    """The explanation of an error that the disk caused, directly or as the cause of another; else None."""
    cause: BaseException | None = error
    while cause is not None:
        number = _error_number(cause)
        # A GradcamoError names the file that may not be opened already, with its plate.
        if number is not None and not (number == errno.EACCES and isinstance(error, GradcamoError)):
            path = getattr(cause, "filename", None)
            _, problem, remedy = _KINDS[number]
            if number == errno.ENOSPC and path is not None and not _has_inodes(Path(path)):
                problem, remedy = "the file system has no inodes left for new files", f"Delete small files. {remedy}"
            return GradcamoError(f"{problem} ({one_line(cause, 300)})", remedy, path=path)
        cause = cause.__cause__
    return None


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return errno.EACCES if error.errno == errno.EPERM else error.errno if error.errno in _KINDS else None
    text = str(error)
    return next((number for number, (said, *_) in _KINDS.items() if re.search(said, text)), None)


def _has_inodes(path: Path) -> bool:
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return True
    # Some file systems have no fixed number of inodes and report 0 of 0.
    return found.f_files == 0 or found.f_favail > 0
