"""The files that lie beside a plate in the inbox, found by the plate's name or through Broad's barcode table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradcamo_assets.common.errors import GradcamoError, PlateError
from gradcamo_assets.common.names import slug
from gradcamo_assets.plates.hcs import name_of
from gradcamo_assets.plates.readers.configuration import CONFIGURATION_ENDING
from gradcamo_assets.plates.tables import read_table

_MAP_ENDINGS = (".csv", ".tsv", ".xlsx", ".platemap.csv", ".platemap.tsv", ".platemap.txt", ".platemap.xlsx")
"""How the plate map beside a plate may end, after the plate's name."""
LABELS_ENDING = ".labels.csv"
BARCODES = "barcode_platemap.csv"
_BROAD_ENDINGS = ("", ".txt", ".csv", ".tsv", ".xlsx")
_BROAD_FOLDERS = ("platemap", "platemaps", ".")


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
