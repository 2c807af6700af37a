"""The files of a plate in the inbox: what lies beside it, by its name or through Broad's barcode table, and whether any
changed, told from all files, or cheaply from the times of the folders.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import GradcamoError, PlateError
from gradcamo_assets.common.names import slug
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.plates.hcs import name_of
from gradcamo_assets.plates.readers.configuration import CONFIGURATION_ENDING
from gradcamo_assets.plates.tables import read_table

_MAP_ENDINGS = (".csv", ".tsv", ".xlsx", ".platemap.csv", ".platemap.tsv", ".platemap.txt", ".platemap.xlsx")
"""How the plate map beside a plate may end, after the plate's name."""
LABELS_ENDING = ".labels.csv"
BARCODES = "barcode_platemap.csv"
_BROAD_ENDINGS = ("", ".txt", ".csv", ".tsv", ".xlsx")
_BROAD_FOLDERS = ("platemap", "platemaps", ".")
_MOST_FOLDERS = 2000


@dataclass(frozen=True)
class Companions:
    """``maps``: the plate maps; there should be one. ``labels``: the label table of a pooled screen. ``metadata``: what
    Broad's samples are, for all plates of the inbox. ``files``: those that are the plate's own. Tables that all plates
    of an inbox share are not among them: a row for a new plate would make every plate look changed."""

    maps: tuple[Path, ...]
    labels: Path | None
    metadata: tuple[Path, ...]
    files: tuple[Path, ...]


def companions(source: Path) -> Companions:
    """What lies beside the plate folder ``source``.

    A map of the plate's own name comes first. Without one, ``barcode_platemap.csv`` beside the plate (columns
    Assay_Plate_Barcode, the plate's name, and Plate_Map_Name) names a map in ``platemap/``, ``platemaps/`` or here, and
    ``external_metadata*.tsv`` here says what its samples are (layout of Broad's image-based profiling recipe).

    Raises:
        PlateError: where the folder's name is no usable plate name, or the barcode table is unreadable, gives the plate
            two maps, an unusable name, or a map that is not there.
    """
    name = name_of(source)
    stems = dict.fromkeys((name, source.name.removesuffix(".zarr").removesuffix(".ome")))
    maps = [path for stem in stems for end in _MAP_ENDINGS if (path := source.with_name(stem + end)).is_file()]
    metadata: list[Path] = []
    if not maps and (barcodes := source.with_name(BARCODES)).is_file():
        try:
            maps = _broad_maps(barcodes, name)
        except GradcamoError as error:
            raise error.at(PlateError, plate=name, path=barcodes) from error
        metadata = sorted(source.parent.glob("external_metadata*.tsv")) if maps else []
    labels, configuration = (source.with_name(name + end) for end in (LABELS_ENDING, CONFIGURATION_ENDING))
    files = (*maps, *(path for path in (labels, configuration) if path.is_file()))
    return Companions(tuple(maps), labels if labels in files else None, tuple(metadata), files)


def _broad_maps(barcodes: Path, plate: str) -> list[Path]:
    table, _ = read_table(barcodes)
    columns = {name.lower().replace("_", ""): name for name in table.columns}
    if not {"assayplatebarcode", "platemapname"} <= columns.keys():
        raise GradcamoError("no columns Assay_Plate_Barcode and Plate_Map_Name", "Give the table these two columns.")
    pairs = table.select(columns["assayplatebarcode"], columns["platemapname"]).iter_rows()
    named = {slug(map_name, "plate map name") for barcode, map_name in pairs if barcode.replace(" ", "_") == plate}
    if len(named) > 1:
        raise GradcamoError(f"it has two plate maps, {' and '.join(sorted(named))}", "Keep one of them.")
    found = [
        path
        for name in named
        for folder in _BROAD_FOLDERS
        for end in _BROAD_ENDINGS
        if (path := barcodes.parent / folder / f"{name}{end}").is_file()
    ]
    if named and not found:
        raise GradcamoError(f"its plate map {min(named)} is not there", f"Put it into {_BROAD_FOLDERS[0]}/.")
    return found


def source_signature(source: Path) -> str:
    """A digest of the names, sizes and times of the files of a plate and of the tables beside it.

    Raises:
        PlateError: an unusable name, a folder that cannot be listed, or anything that is neither a file nor a folder;
            symbolic links are never followed.
    """
    return walk(source)[0]


def walk(source: Path) -> tuple[str, float]:
    """The signature of a plate, and when anything of it changed last.

    Writers that preserve times set those of modification, never those of the inode, so the newer of both counts.
    """
    tables = companions(source).files
    for path in (source, *tables):
        if path.is_symlink():
            raise PlateError("it is a symbolic link", "Copy the plate or the file itself.", path=path)
    beside = [(path.name, path.stat()) for path in tables]
    try:
        infos = [source.stat(), *(info for _, info in beside)]
        newest = max(max(info.st_mtime, info.st_ctime) for info in infos)
        files: list[tuple[str, int, int]] = []
        folders, start = [str(source)], len(str(source)) + 1
        while folders:
            for entry in _entries(folders.pop()):
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_mtime, info.st_ctime)
                if stat.S_ISDIR(info.st_mode):
                    folders.append(entry.path)
                    files.append((entry.path[start:] + "/", 0, 0))
                elif stat.S_ISREG(info.st_mode):
                    files.append((entry.path[start:], info.st_size, info.st_mtime_ns))
                else:
                    problem = "it is a link or a special file"
                    raise PlateError(problem, "Replace it by the file itself.", path=entry.path)
    except OSError as error:
        place = error.filename or source
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=place) from error
    return digest(sorted(files) + [(name, info.st_size, info.st_mtime_ns) for name, info in beside]), newest


def folder_times(source: Path) -> dict[str, int]:
    """What tells cheaply that a plate is as it was: when its folders and the tables beside it changed.

    Modification times in nanoseconds by path relative to ``source``: of the folder itself and of up to two levels of
    folders below, 2,000 at most; of the tables (their paths begin with ``..``) sizes too. Take it before
    ``source_signature``, or a change in between stays unseen.

    Raises:
        PlateError: as ``source_signature``.
    """
    try:
        folders = level = [str(source)]
        for _ in range(2):
            level = sorted(
                entry.path for folder in level for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)
            )
            folders = [*folders, *level][:_MOST_FOLDERS]
        times = {os.path.relpath(folder, source): Path(folder).stat().st_mtime_ns for folder in folders}
        return times | _beside(source)
    except OSError as error:
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=source) from error


def as_recorded(source: Path, record: Mapping[str, Any]) -> bool:
    """Whether a known plate's folders look as at ingestion. Each is asked for its time, none is listed."""
    recorded = record.get("folders")
    if not record.get("signature") or not isinstance(recorded, dict):
        return False
    try:
        now = {name: Path(f"{source}/{name}").stat().st_mtime_ns for name in recorded if not name.startswith("..")}
        return now | _beside(source) == recorded
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return list(listing)


def _beside(source: Path) -> dict[str, int]:
    files = {os.path.relpath(path, source): path.stat() for path in companions(source).files}
    sizes = {f"{name} (bytes)": info.st_size for name, info in files.items()}
    return {name: info.st_mtime_ns for name, info in files.items()} | sizes
