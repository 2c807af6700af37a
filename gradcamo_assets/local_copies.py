"""Copy what is stored in a bucket to this machine, for libraries that read files. Elsewhere, nothing is copied."""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradcamo_assets.buckets import Bucket, blocks_of_this_thread, find, in_parallel, mounted
from gradcamo_assets.storage import MANIFEST, list_level, place_in_bucket, temporary_path


def fetch_folder(path: Path) -> Path:
    """Copy a folder that ``atomic_folder`` wrote to this machine, if it is in a bucket; return ``path``.

    Raises:
        OSError: if it does not exist (``FileNotFoundError``) or cannot be read.
    """
    if place := find(path):
        bucket, key = place
        with bucket.lock:
            if path not in bucket.copied:  # A copy of its parent may be older.
                manifest = bucket.read(f"{key}/{MANIFEST}")
                if manifest is None:
                    raise FileNotFoundError(errno.ENOENT, "there is no such folder", f"{bucket.address}/{key}")
                contents = json.loads(manifest)
                _download(bucket, path, {name: f"{key}/{contents['folder']}/{name}" for name in contents["files"]})
    return path


def fetch_tree(path: Path) -> Path:
    """Copy all files below a folder to this machine, if it is in a bucket; return ``path``.

    Raises:
        OSError: if a file cannot be read.
    """
    if place := find(path):
        bucket, key = place
        with bucket.lock:
            if not bucket.is_copied(path):
                found = [item.key for item in bucket.list_all(key)]
                _download(bucket, path, {name.removeprefix(f"{key}/"): name for name in found})
    return path


def fetch_file(path: Path) -> Path:
    """Copy a file to this machine, if it is in a bucket and differs from the last copy; return ``path``.

    Raises:
        OSError: if it does not exist (``FileNotFoundError``) or cannot be read.
    """
    if place := find(path):
        bucket, key = place
        with bucket.lock:
            temporary = temporary_path(path)
            tag = bucket.download(key, temporary, bucket.copied.get(path))
            if temporary.exists():
                temporary.replace(path)
            bucket.note_copy(path, tag)
    return path


def fetch_level(folder: Path) -> None:
    """Copy the files in a folder of a bucket, but not its subfolders, to this machine. Copies of deleted files vanish.

    Raises:
        OSError: if a file cannot be read.
    """
    bucket, _ = place_in_bucket(folder)
    files = list_level(folder)[1]
    with bucket.lock:
        for path in [path for path in bucket.copied if path.parent == folder and path.name not in files]:
            bucket.forget_copies(path)
        for name, item in files.items():
            if bucket.copied.get(folder / name) != item.tag:
                fetch_file(folder / name)


def fetch_unchanging(paths: Collection[Path]) -> None:
    """Copy files that never change to this machine, if they are in a bucket.

    Raises:
        OSError: if a file does not exist (``FileNotFoundError``) or cannot be read.
    """
    for bucket in mounted():
        with bucket.lock:
            below = (path for path in paths if path.is_relative_to(bucket.folder))
            missing = [path for path in below if not bucket.is_copied(path)]
            in_parallel(bucket.download, ((bucket.key(path), path) for path in missing))
            for path in missing:
                bucket.note_copy(path)


def _download(bucket: Bucket, folder: Path, keys: dict[str, str]) -> None:
    """Copy objects, by name, into a folder, and note that it is complete."""
    in_parallel(bucket.download, ((key, folder / name) for name, key in keys.items()))
    bucket.note_copy(folder)


@contextmanager
def temporary_copies() -> Iterator[None]:
    """Delete what this thread fetches from a bucket in this block at its end: a plate may exceed a scratch disk."""
    fetched: list[Path] = []
    blocks_of_this_thread().append(fetched)
    try:
        yield
    finally:
        blocks_of_this_thread().pop()
        for path in fetched:
            if place := find(path):
                place[0].forget_copies(path)
