"""Write, list and remove stored files. Writes are atomic: readers never see a partial file or folder.

This is the only module that accesses stored data, on a file system or in a bucket (see ``buckets``). Libraries (Zarr,
Delta Lake, DuckDB, MLflow) read and write the paths that it provides. Where a home is in a bucket, a path that a
library reads must be fetched first; see ``local_copies``.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gradcamo_assets import buckets
from gradcamo_assets.buckets import Bucket, StoredObject

_SCRATCH_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

MANIFEST = "manifest.json"
"""The object that makes a folder in a bucket exist: it names the objects of the folder."""


def temporary_path(path: Path) -> Path:
    """A hidden path beside ``path`` that no other call returns."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success the file replaces ``path``; on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which is removed at the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = temporary_path(path)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder to fill. On success it becomes ``path``, which never changes again.

    If ``path`` exists by then, another process has produced the same content, and the scratch folder is removed.
    """
    with _scratch_folder(path) as scratch:
        yield scratch
        if place := buckets.find(path):
            bucket, key = place
            if not _commit_folder(bucket, key, scratch) or path.exists():
                return
            bucket.note_copy(path)
        try:
            scratch.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def _commit_folder(bucket: Bucket, key: str, folder: Path) -> bool:
    """Upload a folder under a name of its own, then create its manifest. Of several processes, one succeeds."""
    name = uuid.uuid4().hex[:12]
    uploaded = _upload(bucket, folder, f"{key}/{name}")
    manifest = {"folder": name, "files": [file.removeprefix(f"{key}/{name}/") for file in uploaded]}
    if bucket.create(f"{key}/{MANIFEST}", json.dumps(manifest, sort_keys=True).encode()):
        return True
    bucket.delete(uploaded)
    return False


def _upload(bucket: Bucket, folder: Path, prefix: str) -> list[str]:
    """Upload the files below a folder; return their keys."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    keys = [f"{prefix}/{file.relative_to(folder).as_posix()}" for file in files]
    buckets.in_parallel(bucket.write, zip(keys, files, strict=True))
    return keys


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder to fill, whose content replaces that of ``path``; readers may find neither meanwhile."""
    with _scratch_folder(path) as scratch:
        yield scratch
        remove(path)
        if buckets.find(path):
            upload_tree(scratch, path)
        else:
            scratch.rename(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    if place := buckets.find(path):
        bucket, key = place
        bucket.write(key, content)
        bucket.forget_copies(path)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. NaN is refused, since JSON does not define it."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def create_marker(path: Path) -> None:
    """Create an empty file whose name is the information."""
    if buckets.find(path):
        write_bytes(path, b"")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def read_bytes(path: Path) -> bytes | None:
    """Read a file; return None if it does not exist.

    Raises:
        OSError: if the file cannot be read.
    """
    if (place := buckets.find(path)) and not place[0].is_copied(path.parent):
        bucket, key = place
        return bucket.read(key)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_range(path: Path, start: int, size: int) -> bytes:
    """Read ``size`` bytes of a file, fewer where it ends. In a bucket, the file must be fetched before.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        return file.read(size)


def read_start(path: Path, size: int) -> tuple[int, bytes]:
    """Read the size of a file and its first ``size`` bytes.

    Raises:
        OSError: if the file does not exist (``FileNotFoundError``) or cannot be read.
    """
    if place := buckets.find(path):
        bucket, key = place
        return bucket.read_start(key, size)
    return path.stat().st_size, read_range(path, 0, size)


def read_json(path: Path) -> Any:
    """Read JSON from a file; return None if the file does not exist.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not JSON.
    """
    content = read_bytes(path)
    return None if content is None else json.loads(content)


def exists(path: Path) -> bool:
    """Whether there is a file or a folder."""
    if place := buckets.find(path):
        bucket, key = place
        return bucket.exists(key) or bool(any(bucket.list_level(key)))
    return path.exists()


def folder_exists(path: Path) -> bool:
    """Whether there is a folder that ``atomic_folder`` wrote."""
    if place := buckets.find(path):
        bucket, key = place
        return bucket.exists(f"{key}/{MANIFEST}")
    return path.is_dir()


def list_visible(folder: Path, pattern: str = "*") -> list[Path]:
    """List a folder, sorted, without hidden names such as scratch files. A missing folder gives an empty list.

    Args:
        pattern: as in ``Path.glob``, without ``**``; ``*/*`` lists the contents of subfolders.
    """
    if place := buckets.find(folder):
        return sorted(_list_objects(*place, pattern.split("/")))
    return sorted(
        path for path in folder.glob(pattern) if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def _list_objects(bucket: Bucket, key: str, pattern: list[str]) -> set[Path]:
    keys: Iterable[str]
    if len(pattern) == 1:
        folders, objects = bucket.list_level(key)
        keys = [*folders, *(found.key for found in objects)]
    else:
        # One request lists a thousand objects of all levels.
        keys = (found.key for found in bucket.iterate(key))
    start = len(f"{key}/") if key else 0
    # Some servers list the folder itself as an empty name.
    below = {tuple(found[start:].split("/")[: len(pattern)]) for found in keys}
    return {
        bucket.path(key).joinpath(*parts)
        for parts in below
        if len(parts) == len(pattern)
        and all(
            part[:1] not in ("", ".") and fnmatchcase(part, wanted) for part, wanted in zip(parts, pattern, strict=True)
        )
    }


def list_level(folder: Path) -> tuple[list[str], dict[str, StoredObject]]:
    """The names of the folders in a folder of a bucket, and its files by name.

    Raises:
        OSError: if the folder cannot be listed.
        ValueError: if the folder is not in a bucket.
    """
    bucket, key = place_in_bucket(folder)
    folders, objects = bucket.list_level(key)
    return [name.rpartition("/")[2] for name in folders], {item.key.rpartition("/")[2]: item for item in objects}


def names_after(folder: Path, name: str) -> list[str]:
    """The files in a folder of a bucket whose names come after ``name``, sorted.

    Raises:
        OSError: if the folder cannot be listed.
        ValueError: if the folder is not in a bucket.
    """
    bucket, key = place_in_bucket(folder)
    return [found.key.removeprefix(f"{key}/") for found in bucket.list_all(key, f"{key}/{name}")]


def list_files(folder: Path) -> dict[str, StoredObject]:
    """All files below a folder of a bucket, by their path in it.

    Raises:
        ValueError: if the folder is not in a bucket.
    """
    bucket, key = place_in_bucket(folder)
    return {found.key.removeprefix(f"{key}/"): found for found in bucket.list_all(key)}


def file_sizes(path: Path) -> list[int]:
    """The sizes of a file, or of the files below a folder, in bytes."""
    if place := buckets.find(path):
        bucket, key = place
        beside = bucket.list_level(key.rpartition("/")[0])[1]
        return [found.size for found in (*bucket.list_all(key), *(item for item in beside if item.key == key))]
    files = path.rglob("*") if path.is_dir() else [path]
    return [file.stat().st_size for file in files if file.is_file()]


def list_scratch(folder: Path, pattern: str) -> list[Path]:
    """List the scratch files and folders, sorted, that killed processes have left in subfolders matching ``pattern``.

    Those of running processes are listed too.
    """
    return sorted(path for path in folder.glob(f"{pattern}/.*.tmp") if _SCRATCH_NAME.fullmatch(path.name))


def move(source: Path, target: Path) -> None:
    """Move a file or folder atomically within a file system. An existing target file is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def publish_file(source: Path, target: Path) -> None:
    """Move a finished scratch file to ``target`` in one step. Readers keep the earlier file that they opened."""
    if place := buckets.find(target):
        bucket, key = place
        bucket.write(key, source)
        bucket.forget_copies(target)
        source.unlink()
    else:
        source.replace(target)


def upload_tree(source: Path, target: Path) -> None:
    """Move the files of a scratch folder to a folder of a bucket, one by one; what reads them must not know it yet."""
    bucket, key = place_in_bucket(target)
    _upload(bucket, source, key)
    shutil.rmtree(source)


def place_in_bucket(path: Path) -> tuple[Bucket, str]:
    """The bucket and key of a path.

    Raises:
        ValueError: if the path is not in a bucket.
    """
    if (place := buckets.find(path)) is None:
        raise ValueError(f"{path} is not in a bucket")
    return place


def remove(*paths: Path) -> None:
    """Remove files and folders. Missing paths are ignored. A link is removed, its target is not.

    A folder is renamed first: if the process is killed, no part of the folder is left under its name.

    Raises:
        OSError: if a path cannot be removed.
    """
    for path in paths:
        if place := buckets.find(path):
            bucket, key = place
            found = [item.key for item in bucket.list_all(key)]
            # The manifest first: without it, nobody reads the folder.
            bucket.delete([key, f"{key}/{MANIFEST}"])
            bucket.delete(found)
            bucket.forget_copies(path)
        elif path.is_dir() and not path.is_symlink():
            scratch = temporary_path(path)
            path.rename(scratch)
            shutil.rmtree(scratch)
        else:
            path.unlink(missing_ok=True)


def address(path: Path) -> str:
    """A path as other machines know it: the absolute path, or the address of an object."""
    place = buckets.find(path)
    return f"{place[0].address}/{place[1]}".rstrip("/") if place else str(path.absolute())


def path_of(address: str) -> Path:
    """The path with this ``address``; in a bucket, its home must be open in this process."""
    return next((found for bucket in buckets.mounted() if (found := bucket.path_of(address))), Path(address))


def delta_options(path: Path) -> dict[str, str]:
    """The options with which Delta Lake opens the ``address`` of a path."""
    return dict(buckets.DELTA_OPTIONS) if buckets.find(path) else {}


def is_in_bucket(path: Path) -> bool:
    """Whether a path stands for objects, not for a file or folder of this machine."""
    return buckets.find(path) is not None
