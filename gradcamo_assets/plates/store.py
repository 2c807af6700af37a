"""Ingested plates on disk: where one grows before it is known, how it becomes public, and the record of what is known.

``<plates>/.<name>.ingesting/`` holds the growing plate and a record of every finished field, so that a killed ingestion
goes on where it was. What others see (``<name>.zarr`` and the files beside it) changes at the very end, and a plate is
known once ``<name>.json``, its record, is there.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gradcamo_assets.common.errors import GradcamoError, PlateError
from gradcamo_assets.common.files import replaced_file, write_json
from gradcamo_assets.common.names import plate_name
from gradcamo_assets.plates.companions import LABELS_ENDING
from gradcamo_assets.plates.hcs import Field, Plate

ILLUMINATION_ENDING, MAP_ENDING, RECORD_ENDING = ".illumination.npy", ".platemap.csv", ".json"
ENDINGS = (MAP_ENDING, LABELS_ENDING, ILLUMINATION_ENDING, RECORD_ENDING)
"""What lies beside an ingested plate. The record comes last."""


class Staging:
    """The growing plate of one ingestion; ``staged`` makes one. ``plate`` is the folder to fill, in ``folder``."""

    def __init__(self, plates: Path, name: str):
        self.folder = plates / f".{name}.ingesting"
        self.plate = self.folder / "plate.zarr"
        self._plates, self._name = plates, name
        self._fields, self._files = self.folder / "fields", self.folder / "files"
        self._made_from, self._commit = self.folder / "made_from.json", self.folder / "commit.json"

    def finished(self, key: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """What ``finish`` was given for the field ``key``, or None where it is still to be done."""
        try:
            row = json.loads((self._fields / f"{key}.json").read_text())
            with np.load(self._fields / f"{key}.npz", allow_pickle=False) as arrays:
                return row, dict(arrays)
        except FileNotFoundError:
            return None

    def finish(self, key: str, row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Record that a field is complete: its row, as JSON, and its arrays."""
        with replaced_file(self._fields / f"{key}.npz") as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        # Last, since this is what makes the field finished.
        write_json(self._fields / f"{key}.json", row)

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Put the plate and ``files`` (contents by ending, the record among them) in the place of what was there."""
        self._files.mkdir(exist_ok=True)
        for ending, content in files.items():
            (self._files / f"{self._name}{ending}").write_bytes(content)
        write_json(self._commit, {"copied": self.plate.exists()})
        target = self._plates / f"{self._name}.zarr"
        (self._plates / f"{self._name}{RECORD_ENDING}").unlink(missing_ok=True)
        if target.exists():
            shutil.rmtree(self.folder / "old.zarr", ignore_errors=True)
            target.rename(self.folder / "old.zarr")
        if self.plate.exists():
            self.plate.rename(target)
        for ending in ENDINGS:
            if ending in files:
                (self._files / f"{self._name}{ending}").replace(self._plates / f"{self._name}{ending}")
            else:
                (self._plates / f"{self._name}{ending}").unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind. What says that anything is worth keeping goes first."""
        self._made_from.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def take_up(self, made_from: Mapping[str, Any]) -> None:
        """Keep what an ingestion of the same source that was killed has left, and nothing else."""
        if self._commit.exists():
            target = self._plates / f"{self._name}.zarr"
            published = not (self._files / f"{self._name}{RECORD_ENDING}").exists()
            if not published and json.loads(self._commit.read_text())["copied"] and not self.plate.exists():
                target.rename(self.plate)
            if published:
                self._made_from.unlink(missing_ok=True)
            self._commit.unlink()
        if not self._made_from.exists() or json.loads(self._made_from.read_text()) != made_from:
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
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
    # Not in the staging area, which is removed while the lock is held.
    lock = FileLock(plates / ".locks" / name, mode=0o666)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PlateError("another run is ingesting it", "Wait for that one.", plate=name) from error
    try:
        staging.folder.mkdir(exist_ok=True)
        staging.take_up(made_from)
        yield staging
    except GradcamoError as error:
        if not isinstance(error.__cause__, OSError):
            staging.discard()
        raise
    finally:
        lock.release()


def known_plate(plates: Path, name: str) -> dict[str, Any] | None:
    """The record of an ingested plate, or None where the plate is not known; PlateError where it cannot be read."""
    path = plates / f"{plate_name(name)}{RECORD_ENDING}"
    try:
        record = json.loads(path.read_text())
        if record["name"] != name:
            raise ValueError(f"it is the record of {record['name']}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlateError(f"unreadable record: {error}", "Ingest the plate again.", plate=name, path=path) from error
    return record


def known_plates(plates: Path) -> dict[str, dict[str, Any]]:
    """The records of all ingested plates by name. A folder that is not there holds none.

    A record that cannot be read is told of in the log and counts as none: its plate is taken in again.
    """
    known = {}
    for path in sorted(plates.glob(f"[!.]*{RECORD_ENDING}")):
        try:
            record = known_plate(plates, path.stem)
        except PlateError as error:
            logging.getLogger(__name__).warning(str(error))
            continue
        if record is not None:
            known[path.stem] = record
    return known


def load_plate(plates: Path, name: str, illumination: bool = False) -> Plate:
    """An ingested plate, from its record alone; ``fields`` are those fit for use.

    ``illumination``: whether pixels are to be read as under even light, where the plate's illumination is known.
    PlateError where the plate is not known or its folder is gone.
    """
    record = known_plate(plates, name)
    path = plates / f"{name}.zarr"
    if record is not None and record.get("by_reference"):
        path = Path(record["source"])
    if record is None or not path.is_dir():
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name, path=path)
    reasons = {Field(name, f["well"], f["site"], f["path"]): f["reason"] for f in record["fields"]}
    z, y, x = record["voxel_size"]
    light = plates / f"{name}{ILLUMINATION_ENDING}"
    return Plate(
        name, path, record["ngff_version"], tuple(record["channels"]), (z, y, x),
        tuple(field for field, reason in reasons.items() if reason is None),
        {field: reason for field, reason in reasons.items() if reason is not None},
        illumination=light if illumination and light.is_file() else None,
        camera_offset=record.get("camera_offset", 0.0),
    )  # fmt: skip
