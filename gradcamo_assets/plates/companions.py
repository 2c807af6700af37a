"""The files of a plate in the inbox: what lies beside it, by its name or through Broad's barcode table, and whether any
changed, told by names, sizes and samples of contents, never by times.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.names import check_name
from gradcamo_assets.plates.formats.configuration import CONFIGURATION_ENDING
from gradcamo_assets.plates.omezarr import name_of
from gradcamo_assets.plates.spreadsheets import read_table
from gradcamo_assets.provenance import digest

_MAP_ENDINGS = (".csv", ".tsv", ".xlsx", ".platemap.csv", ".platemap.tsv", ".platemap.txt", ".platemap.xlsx")
"""How the plate map beside a plate may end, after the plate's name."""
LABELS_ENDING = ".labels.csv"
BARCODES = "barcode_platemap.csv"
_BROAD_ENDINGS = ("", ".txt", ".csv", ".tsv", ".xlsx")
_BROAD_FOLDERS = ("platemap", "platemaps", ".")
_IMAGES = (".tif", ".tiff")
_SAMPLED = 256
"""Images of a plate, and files of its metadata, whose contents are looked at."""
_IMAGE_ENDS, _METADATA_ENDS = 1 << 12, 1 << 16
"""Bytes at the beginning and at the end of a file that are looked at."""


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
    named = {
        check_name(map_name, "plate map name") for barcode, map_name in pairs if barcode.replace(" ", "_") == plate
    }
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
    """A digest of a plate's files and of the tables beside it, ``<of names and sizes>-<of contents>``.

    Names are relative, so that a copy has the signature of its original, whatever the times of its files. Contents are
    the tables beside the plate, whole; 64 KiB at either end of up to 256 files of metadata, which are those other than
    TIFF in the folder or one below (an index, the zarr.json of plate and rows); and 4 KiB at either end of up to 256
    other files, evenly spread over their sorted names. So a plate that was exported again with the sizes it had has
    another signature, but one image of many that was rewritten in place may go unseen. Of 20,000 files at most 512 are
    opened, which costs less than to ask 20,000 for their sizes.

    Raises:
        PlateError: an unusable name, a folder that cannot be listed, a file that cannot be read, or anything that is
            neither a file nor a folder; symbolic links are never followed.
    """
    return walk(source)[0]


def walk(source: Path, contents: bool = True) -> tuple[str, float]:
    """The signature of a plate, and when anything of it changed last, in seconds since 1970.

    Writers that preserve times set those of modification, never those of the inode, so the newer of both counts.

    Args:
        contents: whether files are opened; without, the signature ends at its ``-``.
    """
    tables = companions(source).files
    for path in (source, *tables):
        if path.is_symlink():
            raise PlateError("it is a symbolic link", "Copy the plate or the file itself.", path=path)
    try:
        beside = [(path.name, path.stat()) for path in tables]
        newest = max(max(info.st_mtime, info.st_ctime) for info in (source.stat(), *(info for _, info in beside)))
        files: list[tuple[str, int]] = []
        folders, start = [str(source)], len(str(source)) + 1
        while folders:
            for entry in _entries(folders.pop()):
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_mtime, info.st_ctime)
                if stat.S_ISDIR(info.st_mode):
                    folders.append(entry.path)
                elif stat.S_ISREG(info.st_mode):
                    files.append((entry.path[start:], info.st_size))
                else:
                    problem = "it is a link or a special file"
                    raise PlateError(problem, "Replace it by the file itself.", path=entry.path)
        files.sort()
        names = digest([files, [(name, info.st_size) for name, info in beside]])
        return f"{names}-{_contents(source, [name for name, _ in files], tables) if contents else ''}", newest
    except OSError as error:
        place = error.filename or source
        raise PlateError(f"unreadable: {error.strerror}", "Check that the disk is there.", path=place) from error


def _contents(source: Path, names: Sequence[str], tables: Sequence[Path]) -> str:
    metadata = [name for name in names if name.count("/") < 2 and not name.lower().endswith(_IMAGES)]
    others = sorted(set(names).difference(metadata))
    found = hashlib.sha256()
    for path in tables:
        found.update(hashlib.sha256(path.read_bytes()).digest())
    for sampled, ends in ((metadata, _METADATA_ENDS), (others, _IMAGE_ENDS)):
        for name in sampled[:: max(1, -(-len(sampled) // _SAMPLED))]:
            found.update(hashlib.sha256(_ends(source / name, ends)).digest())
    return found.hexdigest()[:16]


def _ends(path: Path, most: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        first = file.read(most)
        file.seek(max(len(first), file.seek(0, os.SEEK_END) - most))
        return first + file.read(most)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return list(listing)
