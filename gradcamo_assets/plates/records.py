"""Which plates are known: the record beside each ingested plate, and the signature that tells whether a source changed.

A plate without a record is not known, whatever else lies in the folder.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.names import plate_name
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.plates.hcs import BadField, Field, Plate, name_of

MAP_ENDINGS = (".csv", ".tsv", ".platemap.csv")
"""How the plate map beside a plate may end, after the plate's name."""
LABELS_ENDING = ".labels.csv"


def record_path(plates: Path, name: str) -> Path:
    """Where the record of a plate stands."""
    return plates / f"{plate_name(name)}.json"


def known_plate(plates: Path, name: str) -> dict[str, Any] | None:
    """The record of an ingested plate, or None where the plate is not known.

    Raises:
        PlateError: where there is a record that cannot be read.
    """
    path = record_path(plates, name)
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
    """The records of all ingested plates by name. A folder that is not there holds none."""
    names = sorted(path.stem for path in plates.glob("*.json") if not path.name.startswith("."))
    records = ((name, known_plate(plates, name)) for name in names)
    return {name: record for name, record in records if record is not None}


def load_plate(plates: Path, name: str) -> Plate:
    """An ingested plate, from its record alone; ``fields`` are those fit for use.

    Raises:
        PlateError: where the plate is not known or its folder is gone.
    """
    record = known_plate(plates, name)
    path = plates / f"{plate_name(name)}.zarr"
    if record is None or not path.is_dir():
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name, path=path)
    fields = [(Field(name, f["well"], f["site"], f["path"]), f["reason"]) for f in record["fields"]]
    z, y, x = record["voxel_size"]
    return Plate(
        name, path, record["ngff_version"], tuple(record["channels"]), (z, y, x),
        tuple(field for field, reason in fields if reason is None),
        tuple(BadField(field, reason) for field, reason in fields if reason is not None),
    )  # fmt: skip


def plate_statistics(plates: Path, name: str) -> dict[str, dict[str, float]]:
    """Robust intensities of an ingested plate: ``{channel: {"center": counts, "scale": counts}}``.

    Raises:
        PlateError: where the plate is not known.
    """
    record = known_plate(plates, name)
    if record is None:
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name)
    return record["statistics"]


def companions(source: Path) -> tuple[Path | None, Path | None]:
    """The plate map and the label table beside a plate's folder, each None where there is none.

    Raises:
        PlateError: where there are two plate maps.
    """
    name = name_of(source)
    maps = [path for ending in MAP_ENDINGS if (path := source.with_name(name + ending)).is_file()]
    if len(maps) > 1:
        raise PlateError(
            f"two plate maps, {maps[0].name} and {maps[1].name}", "Keep one of them.", plate=name, path=source
        )
    labels = source.with_name(name + LABELS_ENDING)
    return (maps[0] if maps else None), (labels if labels.is_file() else None)


def source_signature(source: Path) -> str:
    """A digest of the names, sizes and times of every file of a plate and of the tables beside it.

    Raises:
        PlateError: where a folder cannot be listed, or where anything is neither a file nor a folder; symbolic links
            are never followed.
    """
    return _signature(source, depth=None)


def quick_signature(source: Path) -> str:
    """As ``source_signature``, but down to the wells only: it sees wells and fields come and go, not their pixels."""
    return _signature(source, depth=2)


def _signature(source: Path, depth: int | None) -> str:
    entries = sorted(_entries(source, source, depth))
    beside = [p for e in (*MAP_ENDINGS, LABELS_ENDING) if (p := source.with_name(_plain_name(source) + e)).is_file()]
    entries += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in beside]
    return digest(entries)


def _plain_name(source: Path) -> str:
    return source.name.removesuffix(".zarr").removesuffix(".ome")


def _entries(folder: Path, root: Path, depth: int | None) -> Iterator[tuple[str, int, int]]:
    try:
        if folder.is_symlink():
            raise PlateError("it is a symbolic link", "Copy the plate itself.", path=folder)
        with os.scandir(folder) as listing:
            for entry in listing:
                info = entry.stat(follow_symlinks=False)
                path = Path(entry.path)
                if stat.S_ISDIR(info.st_mode):
                    yield str(path.relative_to(root)) + "/", 0, info.st_mtime_ns if depth is not None else 0
                    if depth is None or depth > 0:
                        yield from _entries(path, root, None if depth is None else depth - 1)
                elif stat.S_ISREG(info.st_mode):
                    yield str(path.relative_to(root)), info.st_size, info.st_mtime_ns
                else:
                    raise PlateError("it is a link or a special file", "Replace it by the file itself.", path=path)
    except OSError as error:
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=folder) from error
