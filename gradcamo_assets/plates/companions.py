"""Find the files that belong to a plate in the inbox, and compute the signature that shows whether any of them changed.

Companion files lie beside the plate, under its name or listed in Broad's barcode table. Signatures use names, sizes and
samples of contents, never modification times.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.local_copies import fetch_level
from gradcamo_assets.names import check_name, is_system_name
from gradcamo_assets.plates.formats.configuration import CONFIGURATION_ENDING
from gradcamo_assets.plates.omezarr import plate_name_of
from gradcamo_assets.plates.spreadsheets import read_table
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import is_in_bucket, list_files, list_level

_MAP_ENDINGS = (".csv", ".tsv", ".xlsx", ".platemap.csv", ".platemap.tsv", ".platemap.txt", ".platemap.xlsx")
"""Endings of a plate map, after the plate's name."""
LABELS_ENDING = ".labels.csv"
BARCODE_TABLE = "barcode_platemap.csv"
_BROAD_ENDINGS = ("", ".txt", ".csv", ".tsv", ".xlsx")
_BROAD_FOLDERS = ("platemap", "platemaps", ".")
TABLE_FOLDERS = ("platemap", "platemaps", "metadata")
"""Folders of an inbox with plate maps or metadata."""
_MEASUREMENT = re.compile(r"__.*-measurement[ _-]?\d+", re.IGNORECASE)
"""What Harmony adds to a barcode in the name of a folder: ``BR00117010__2020-11-08T18_18_00-Measurement 1``."""
_IMAGE_ENDINGS = (".tif", ".tiff", ".png")
_MAX_SAMPLED_FILES = 256
"""Number of images of a plate whose contents are sampled, and of metadata files."""
_IMAGE_SAMPLE_BYTES, _METADATA_SAMPLE_BYTES = 1 << 12, 1 << 16
"""Bytes read at the beginning and at the end of a sampled file."""


@dataclass(frozen=True)
class Companions:
    """Files beside a plate.

    Attributes:
        maps: plate maps; there should be one at most.
        labels: the label table of a pooled screen.
        files: files of this plate alone. Tables shared by all plates of an inbox are excluded, because a row for a new
            plate would make every plate look changed.
        note: why there is no map, if there is a barcode table.
        inbox: the folder of Broad's sample tables, if the barcode table lists the map.
    """

    maps: tuple[Path, ...]
    labels: Path | None
    files: tuple[Path, ...]
    note: str | None = None
    inbox: Path | None = None

    @property
    def metadata(self) -> tuple[Path, ...]:
        """Broad's sample tables, shared by all plates of the inbox, which is listed when they are asked for."""
        return () if self.inbox is None else tuple(sorted(self.inbox.glob("external_metadata*.tsv")))


def fetch_tables(inbox: Path) -> tuple[list[str], list[str]]:
    """Copy the tables in the inbox to this machine, if it is in a bucket; return the names of its folders and files.

    Raises:
        OSError: if the inbox cannot be listed.
    """
    folders, files = list_level(inbox)
    for folder in (inbox, *(inbox / name for name in folders if name.lower() in TABLE_FOLDERS)):
        fetch_level(folder)
    return folders, list(files)


def find_companions(source: Path, beside: Set[str] | None = None) -> Companions:
    """Find the files beside the plate folder ``source``.

    A map named after the plate comes first. Without one, ``barcode_platemap.csv`` beside the plate (columns
    Assay_Plate_Barcode, the plate's name, and Plate_Map_Name) names a map in ``platemap/``, ``platemaps/`` or the inbox
    itself, and ``external_metadata*.tsv`` describes its samples (layout of Broad's image-based profiling recipe).

    Maps and rows of the table may have the barcode that Harmony puts before ``__<date>-Measurement 1``. In the table, a
    barcode of digits may have lost its leading zeros or end in ``.0``.

    Args:
        beside: the names in the inbox, casefolded, if they are known. This saves looking for each possible name.

    Raises:
        PlateError: the folder's name is not a valid plate name, or the barcode table is unreadable, lists two maps for
            the plate, or lists a map with an invalid name or without a file.
    """
    name = plate_name_of(source)
    barcode = _MEASUREMENT.sub("", name)
    stems = dict.fromkeys((name, source.name.removesuffix(".zarr").removesuffix(".ome")))

    def existing(names: Iterable[str]) -> list[Path]:
        return _existing(source.with_name(name) for name in names if beside is None or name.casefold() in beside)

    maps = existing(stem + end for stem in stems for end in _MAP_ENDINGS)
    maps = maps or existing(barcode + end for end in _MAP_ENDINGS)
    note, inbox = None, None
    if not maps and existing([BARCODE_TABLE]):
        barcodes = source.with_name(BARCODE_TABLE)
        try:
            maps = _find_broad_maps(barcodes, dict.fromkeys((name, barcode)))
        except GradcamoError as error:
            raise error.at(PlateError, plate=name, path=barcodes) from error
        if maps:
            inbox = source.parent
        else:
            note = f"{BARCODE_TABLE} has no row for {' or '.join(dict.fromkeys((name, barcode)))}"
    labels = existing([name + LABELS_ENDING])
    files = (*maps, *labels, *existing([name + CONFIGURATION_ENDING]))
    return Companions(tuple(maps), labels[0] if labels else None, files, note, inbox)


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file()]


def _find_broad_maps(barcodes: Path, plate_names: Iterable[str]) -> list[Path]:
    """Find the map that the barcode table lists for the first of ``plate_names`` that it has."""
    listed = _read_barcodes(barcodes, barcodes.read_bytes())
    if isinstance(listed, GradcamoError):
        raise listed
    found = (maps.get(spell(name)) for name in plate_names for spell, maps in zip(_SPELLINGS, listed, strict=True))
    names = {check_name(map_name, "plate map name") for map_name in next(filter(None, found), [])}
    if len(names) > 1:
        raise GradcamoError(f"it lists two plate maps, {' and '.join(sorted(names))}", "Keep one of them.")
    folders = [barcodes.parent / folder for folder in _BROAD_FOLDERS]
    maps = _existing(
        folder / f"{name}{end}" for name in names for folder in folders if folder.is_dir() for end in _BROAD_ENDINGS
    )
    if names and not maps:
        raise GradcamoError(f"the plate map {min(names)} does not exist", f"Put it into {_BROAD_FOLDERS[0]}/.")
    return maps


@lru_cache(maxsize=2)
def _read_barcodes(barcodes: Path, _content: bytes) -> list[dict[str, list[str]]] | GradcamoError:
    """The names of plate maps by barcode, for each of ``_SPELLINGS``; or the error, if the table is wrong.

    An inbox of 10,000 plates needs the same table 10,000 times, so it is parsed once as long as its content stays.
    """
    try:
        table, _ = read_table(barcodes)
    except GradcamoError as error:
        return error
    columns = {name.lower().replace("_", ""): name for name in table.columns}
    if not {"assayplatebarcode", "platemapname"} <= columns.keys():
        problem = "the columns Assay_Plate_Barcode and Plate_Map_Name are missing"
        return GradcamoError(problem, "Give the table these two columns.")
    listed: list[dict[str, list[str]]] = [{} for _ in _SPELLINGS]
    for barcode, map_name in table.select(columns["assayplatebarcode"], columns["platemapname"]).iter_rows():
        for spell, maps in zip(_SPELLINGS, listed, strict=True):
            maps.setdefault(spell(barcode.replace(" ", "_")), []).append(map_name)
    return listed


def _exactly(barcode: str) -> str:
    return barcode


def _bare_number(barcode: str) -> str:
    """Return a barcode of digits as spreadsheets write it: ``0012345`` and ``12345.0`` give ``12345``."""
    return re.sub(r"^0*(\d+?)(\.0+)?$", r"\1", barcode)


_SPELLINGS = (_exactly, _bare_number)
"""Spellings of a barcode by which a plate and a row of the table belong together, the safest first."""


def compute_signature(source: Path) -> str:
    """Digest of a plate's files and of the tables beside it: ``<names and sizes>-<contents>``.

    Names are relative and times are ignored, so a copy has the signature of its original. Contents cover:

    - the tables beside the plate, completely;
    - 64 KiB at either end of up to 256 metadata files: files other than TIFF and PNG in the plate folder or one level
      below (an index, the zarr.json of plate and rows);
    - 4 KiB at either end of up to 256 other files, evenly spread over their sorted names.

    A plate exported again with equal file sizes therefore gets another signature, but a single image rewritten in place
    may go unnoticed. At most 512 of 20,000 files are opened, which costs less than reading all their sizes.

    Raises:
        PlateError: an invalid name, a folder that cannot be listed, a file that cannot be read, a symbolic link (links
            are never followed) or a special file.
    """
    return scan_source(source)[0]


def scan_source(source: Path, contents: bool = True, beside: Set[str] | None = None) -> tuple[str, float]:
    """Return the signature of a plate and the time of its latest change, in seconds since 1970.

    Programs that preserve times set the modification time but cannot set the inode's change time, so the later of both
    counts.

    Args:
        contents: whether to open files. Without contents the signature ends at its ``-``.
        beside: as in ``find_companions``.
    """
    tables = find_companions(source, beside).files
    if is_in_bucket(source):
        return _scan_objects(source, tables, contents)
    for path in (source, *tables):
        if path.is_symlink():
            raise PlateError("it is a symbolic link", "Copy the plate or file itself.", path=path)
    try:
        table_infos = [(path.name, path.stat()) for path in tables]
        newest = max(max(info.st_mtime, info.st_ctime) for info in (source.stat(), *(info for _, info in table_infos)))
        files: list[tuple[str, int]] = []
        folders, start = [str(source)], len(str(source)) + 1
        while folders:
            for entry in _list_folder(folders.pop()):
                if is_system_name(entry.name):
                    continue
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_mtime, info.st_ctime)
                if stat.S_ISDIR(info.st_mode):
                    folders.append(entry.path)
                elif stat.S_ISREG(info.st_mode):
                    files.append((entry.path[start:], info.st_size))
                else:
                    problem = "it is a link or a special file"
                    raise PlateError(problem, "Replace it by a regular file.", path=entry.path)
        files.sort()
        names = digest([files, [(name, info.st_size) for name, info in table_infos]])
        content_digest = _digest_contents(source, [name for name, _ in files], tables) if contents else ""
        return f"{names}-{content_digest}", newest
    except OSError as error:
        path = error.filename or source
        raise PlateError(f"unreadable: {error.strerror}", "Check that its disk is mounted.", path=path) from error


def _scan_objects(source: Path, tables: Sequence[Path], contents: bool) -> tuple[str, float]:
    """As ``scan_source``. The store knows a digest of each object, so that no file is read."""
    beside = list_level(source.parent)[1]
    files, its_tables = list_files(source), {path.name: beside[path.name] for path in tables if path.name in beside}
    names = digest([[(name, item.size) for name, item in sorted(group.items())] for group in (files, its_tables)])
    tags = [item.tag for group in (files, its_tables) for _, item in sorted(group.items())] if contents else ""
    newest = max((item.modified.timestamp() for item in (*files.values(), *its_tables.values())), default=0.0)
    return f"{names}-{digest(tags) if contents else ''}", newest


def _digest_contents(source: Path, names: Sequence[str], tables: Sequence[Path]) -> str:
    metadata = [name for name in names if name.count("/") < 2 and not name.lower().endswith(_IMAGE_ENDINGS)]
    others = sorted(set(names).difference(metadata))
    combined = hashlib.sha256()
    for path in tables:
        combined.update(hashlib.sha256(path.read_bytes()).digest())
    for candidates, size in ((metadata, _METADATA_SAMPLE_BYTES), (others, _IMAGE_SAMPLE_BYTES)):
        step = max(1, -(-len(candidates) // _MAX_SAMPLED_FILES))
        for name in candidates[::step]:
            combined.update(hashlib.sha256(_read_both_ends(source / name, size)).digest())
    return combined.hexdigest()[:16]


def _read_both_ends(path: Path, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        first = file.read(size)
        file.seek(max(len(first), file.seek(0, os.SEEK_END) - size))
        return first + file.read(size)


def _list_folder(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return list(listing)
