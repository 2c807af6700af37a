"""Where a plate grows before it is known, and how it becomes public: for one ingestion at a time, whole or not at all.

``<plates>/.<name>.ingesting/`` holds the growing plate and a record of every finished field, so that a killed ingestion
goes on where it was. What others see (``<name>.zarr`` and the files beside it) changes at the very end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.names import check_plate_name
from gradcamo_assets.plates.plate_records import ENDINGS, RECORD_ENDING, known_files, mark_known
from gradcamo_assets.storage import atomic_file, list_visible, move, read_json, remove, write_bytes, write_json

_ACQUIRE_SECONDS = 1.0
"""An ingestion waits so long for its lock, since whoever asks whether it is held holds it for an instant."""


class Staging:
    """The growing plate of one ingestion; ``staged`` makes one. ``plate`` is the folder to fill, in ``folder``."""

    def __init__(self, plates: Path, name: str):
        self.folder = plates / f".{name}.ingesting"
        self.plate = self.folder / "plate.zarr"
        self._plates, self._name = plates, name
        self._fields, self._files = self.folder / "fields", self.folder / "files"
        self._made_from, self._commit = self.folder / "made_from.json", self.folder / "commit.json"

    @property
    def progress(self) -> tuple[int, int]:
        """Fields that are finished, and of how many; zeros where the first is not begun."""
        try:
            of = read_json(self._made_from)["fields"]
            return len(list_visible(self._fields, "*.json")), of
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def finished(self, key: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """What ``finish`` was given for the field ``key``, or None where it is still to be done."""
        if (row := read_json(self._fields / f"{key}.json")) is None:
            return None
        with np.load(self._fields / f"{key}.npz", allow_pickle=False) as arrays:
            return row, dict(arrays)

    def finish(self, key: str, row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Record that a field is complete: its row, as JSON, and its arrays."""
        with atomic_file(self._fields / f"{key}.npz") as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        # Last, since this is what makes the field finished.
        write_json(self._fields / f"{key}.json", row)

    def publish(self, files: Mapping[str, bytes], signature: str) -> None:
        """Put the plate and ``files`` (contents by ending, the record among them) in the place of what was there.

        Args:
            signature: of its source, by which it is known.
        """
        for ending, content in files.items():
            write_bytes(self._files / f"{self._name}{ending}", content)
        write_json(self._commit, {"copied": self.plate.exists()})
        target = self._plates / f"{self._name}.zarr"
        remove(*known_files(self._plates, self._name), self._plates / f"{self._name}{RECORD_ENDING}")
        if target.exists():
            remove(self.folder / "old.zarr")
            move(target, self.folder / "old.zarr")
        if self.plate.exists():
            move(self.plate, target)
        for ending in ENDINGS:
            if ending in files:
                move(self._files / f"{self._name}{ending}", self._plates / f"{self._name}{ending}")
            else:
                remove(self._plates / f"{self._name}{ending}")
        mark_known(self._plates, self._name, signature)
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind. What says that anything is worth keeping goes first."""
        with suppress(OSError):
            remove(self._made_from, self.folder)

    def take_up(self, made_from: Mapping[str, Any]) -> None:
        """Keep what an ingestion of the same source that was killed has left, and nothing else."""
        if self._commit.exists():
            target = self._plates / f"{self._name}.zarr"
            published = not (self._files / f"{self._name}{RECORD_ENDING}").exists()
            if not published and read_json(self._commit)["copied"] and not self.plate.exists():
                move(target, self.plate)
            if published:
                remove(self._made_from)
            remove(self._commit)
        if read_json(self._made_from) != made_from:
            remove(*(path for path in list_visible(self.folder) if path.is_dir()))
            write_json(self._made_from, made_from)


@contextmanager
def staged(plates: Path, name: str, made_from: Mapping[str, Any]) -> Iterator[Staging]:
    """The staging area of a plate, for one ingestion at a time.

    It is kept where the process is killed, the disk is full or the source out of reach, and emptied where the plate is
    refused.

    ``made_from``: what the result depends on, as JSON; fields finished from anything else are done again. PlateError
    where another process is ingesting this plate.
    """
    staging = Staging(plates, name)
    with ingestion_lock(plates, name):
        try:
            staging.folder.mkdir(exist_ok=True)
            staging.take_up(made_from)
            yield staging
        except GradcamoError as error:
            if not isinstance(error.__cause__, OSError):
                staging.discard()
            raise


@contextmanager
def ingestion_lock(plates: Path, name: str) -> Iterator[None]:
    """What one process holds while it takes a plate in; a thread that holds it may ask for it again.

    PlateError where another process is ingesting this plate.
    """
    path = _lock_file(plates, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=0o666, is_singleton=True)
    try:
        lock.acquire(timeout=_ACQUIRE_SECONDS, poll_interval=0.02)
    except Timeout as error:
        raise PlateError("another run is ingesting it", "Wait for that one.", plate=name) from error
    try:
        yield
    finally:
        lock.release()


def ingesting(plates: Path, name: str) -> tuple[int, int] | None:
    """How many fields of a plate are taken in, and of how many, where a process is at it now; else None.

    It is known from the lock, which the system takes from a process that is killed.
    """
    import fcntl

    try:
        with _lock_file(plates, name).open("rb") as file:
            # Shared: two that ask at once must not take each other for an ingestion.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return Staging(plates, name).progress
    return None


def _lock_file(plates: Path, name: str) -> Path:
    """Not in the staging area, which is removed while the lock is held."""
    return plates / ".locks" / check_plate_name(name)
