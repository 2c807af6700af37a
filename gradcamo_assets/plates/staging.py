"""Stage a plate during ingestion, then publish it in one step. One process at a time ingests a plate.

``<plates>/.<name>.ingesting/`` holds the plate as it is written and a record of every finished field, so that an
interrupted ingestion resumes at the first unfinished field. The public files (``<name>.zarr`` and the files beside it)
change last.

In a bucket, each ingestion has a plate folder of its own, to which finished fields are moved, so that the scratch disk
need not hold a plate. The record, written last, names the folder. An interrupted ingestion starts again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.names import check_plate_name
from gradcamo_assets.plates.plate_records import (
    PLATE_FILE_ENDINGS,
    RECORD_ENDING,
    known_markers,
    mark_known,
    plate_folder,
)
from gradcamo_assets.storage import (
    atomic_file,
    is_in_bucket,
    list_visible,
    move,
    read_json,
    remove,
    upload_tree,
    write_bytes,
    write_json,
)

_LOCK_TIMEOUT = 1.0
"""Seconds to wait for the lock. ``ingestion_progress`` holds it for an instant, which must not stop an ingestion."""


class Staging:
    """The staging area of one ingestion; create it with ``open_staging``.

    Attributes:
        folder: the staging folder.
        plate: the folder inside it to which the plate is written.
        target: the folder of the plate when it is published.
    """

    def __init__(self, plates: Path, name: str):
        self.folder = plates / f".{name}.ingesting"
        self.plate = self.folder / "plate.zarr"
        self._plates, self._name = plates, name
        self._fields, self._files = self.folder / "fields", self.folder / "files"
        self._made_from, self._commit = self.folder / "made_from.json", self.folder / "commit.json"
        self._in_bucket, self._published = is_in_bucket(plates / name), False
        self.target = plates / (f"{name}.{uuid.uuid4().hex[:12]}.zarr" if self._in_bucket else f"{name}.zarr")

    @property
    def place(self) -> dict[str, str]:
        """What the record says about the folder of the plate, where its name does not follow from the plate's."""
        return {"folder": self.target.name} if self._in_bucket else {}

    @property
    def progress(self) -> tuple[int, int]:
        """Number of finished fields and of all fields; (0, 0) before the first field."""
        try:
            total = read_json(self._made_from)["fields"]
            return len(list_visible(self._fields, "*.json")), total
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def finished(self, key: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """The row and arrays passed to ``finish`` for the field ``key``, or None if the field is not finished."""
        if (row := read_json(self._fields / f"{key}.json")) is None:
            return None
        with np.load(self._fields / f"{key}.npz", allow_pickle=False) as arrays:
            return row, dict(arrays)

    def finish(self, key: str, path: str, row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Record that the field at ``path`` in the plate is complete, with its row (as JSON) and its arrays."""
        if self._in_bucket and (self.plate / path).exists():
            upload_tree(self.plate / path, self.target / path)
        with atomic_file(self._fields / f"{key}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        # Written last: this file marks the field as finished.
        write_json(self._fields / f"{key}.json", row)

    def publish(self, files: Mapping[str, bytes], signature: str) -> None:
        """Replace the public plate by the staged plate and ``files``.

        Args:
            files: contents by file name ending, including the record.
            signature: signature of the source, which marks the plate as known.
        """
        if self._in_bucket:
            self._publish_objects(files, signature)
            return
        for ending, content in files.items():
            write_bytes(self._files / f"{self._name}{ending}", content)
        write_json(self._commit, {"copied": self.plate.exists()})
        target = self.target
        remove(*known_markers(self._plates, self._name), self._plates / f"{self._name}{RECORD_ENDING}")
        if target.exists():
            remove(self.folder / "old.zarr")
            move(target, self.folder / "old.zarr")
        if self.plate.exists():
            move(self.plate, target)
        for ending in PLATE_FILE_ENDINGS:
            if ending in files:
                move(self._files / f"{self._name}{ending}", self._plates / f"{self._name}{ending}")
            else:
                remove(self._plates / f"{self._name}{ending}")
        mark_known(self._plates, self._name, signature)
        self.discard()

    def _publish_objects(self, files: Mapping[str, bytes], signature: str) -> None:
        record = self._plates / f"{self._name}{RECORD_ENDING}"
        before = plate_folder(self._plates, self._name, read_json(record))
        if self.plate.exists():
            upload_tree(self.plate, self.target)
        remove(*known_markers(self._plates, self._name))
        for ending in PLATE_FILE_ENDINGS:
            path = self._plates / f"{self._name}{ending}"
            if ending in files:
                write_bytes(path, files[ending])
            else:
                remove(path)
        mark_known(self._plates, self._name, signature)
        self._published = True
        if before != self.target:
            remove(before)
        self.discard()

    def discard(self) -> None:
        """Remove the staging area, beginning with the file that makes it resumable."""
        if self._in_bucket and not self._published:
            remove(self.target)
        with suppress(OSError):
            remove(self._made_from, self.folder)

    def resume(self, made_from: Mapping[str, Any]) -> None:
        """Keep the results of an interrupted ingestion of the same source, and remove anything else."""
        if self._commit.exists():
            published = not (self._files / f"{self._name}{RECORD_ENDING}").exists()
            if not published and read_json(self._commit)["copied"] and not self.plate.exists():
                move(self.target, self.plate)
            if published:
                remove(self._made_from)
            remove(self._commit)
        # In a bucket, the finished fields are in the folder of the interrupted ingestion.
        if self._in_bucket or read_json(self._made_from) != made_from:
            remove(*(path for path in list_visible(self.folder) if path.is_dir()))
            write_json(self._made_from, made_from)


@contextmanager
def open_staging(plates: Path, name: str, made_from: Mapping[str, Any]) -> Iterator[Staging]:
    """Open the staging area of a plate under its ingestion lock.

    The area is kept if the process is killed, the disk is full or the source unavailable. It is removed if the plate is
    rejected.

    Args:
        made_from: everything the result depends on, as JSON. Fields finished from other inputs are ingested again.

    Raises:
        PlateError: another process is ingesting this plate.
    """
    staging = Staging(plates, name)
    with ingestion_lock(plates, name):
        try:
            staging.folder.mkdir(parents=True, exist_ok=True)
            staging.resume(made_from)
            yield staging
        except GradcamoError as error:
            if not isinstance(error.__cause__, OSError):
                staging.discard()
            raise


@contextmanager
def ingestion_lock(plates: Path, name: str) -> Iterator[None]:
    """Hold the lock of a plate's ingestion. A thread that already holds it may acquire it again.

    Raises:
        PlateError: another process is ingesting this plate.
    """
    path = _lock_file(plates, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=0o666, is_singleton=True)
    try:
        lock.acquire(timeout=_LOCK_TIMEOUT, poll_interval=0.02)
    except Timeout as error:
        raise PlateError("another run is ingesting it", "Wait until that run ends.", plate=name) from error
    try:
        yield
    finally:
        lock.release()


def ingestion_progress(plates: Path, name: str) -> tuple[int, int] | None:
    """Number of ingested fields and of all fields if a process is ingesting the plate now, else None.

    The answer comes from the lock, which the operating system releases when a process is killed.
    """
    import fcntl

    try:
        with _lock_file(plates, name).open("rb") as file:
            # A shared lock, so that two concurrent calls do not mistake each other for an ingestion.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return Staging(plates, name).progress
    return None


def _lock_file(plates: Path, name: str) -> Path:
    """Outside the staging area, which is removed while the lock is held."""
    return plates / ".locks" / check_plate_name(name)
