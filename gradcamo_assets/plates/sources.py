"""The two kinds of plate that come in, an OME-Zarr to be copied and an export to be converted, behind one interface.

Nothing here decides what becomes of a plate; ``ingest`` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import mode
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import PROJECTION, Export, plane_shape, read_export, read_plane
from gradcamo_assets.plates.omezarr import Field, Plate, open_plate, read_field
from gradcamo_assets.plates.omezarr_writer import create_field, create_plate
from gradcamo_assets.storage import remove

Stack = NDArray[np.uint16]
_PROBED = 8
"""Fields that are looked at to tell the size of planes and a true z-stack."""


class ZarrSource:
    """An OME-Zarr plate: files are copied as they are, or, by reference, not at all."""

    def __init__(self, path: Path, by_reference: bool):
        self.plate = open_plate(path)
        self.format = f"ome-zarr {self.plate.ngff_version}"
        self.problems: tuple[str, ...] = ()
        self.acquisition: Mapping[str, Any] = {}
        self._by_reference = by_reference

    def begin(self, folder: Path) -> None:
        """Write what belongs to the plate rather than to a field that will be taken."""
        if self._by_reference:
            return
        fields = {self.plate.path / field.path for field in self.plate.fields}

        def of_fields(where: str, names: list[str]) -> set[str]:
            return {name for name in names if Path(where) / name in fields}

        # Links are copied as links, never followed: one that appears after the check cannot reach outside.
        shutil.copytree(self.plate.path, folder, dirs_exist_ok=True, symlinks=True, ignore=of_fields)

    def take(self, field: Field, folder: Path, measure: Callable[[Stack], None]) -> None:
        """Show every channel of a field, (Z, Y, X) each, to ``measure`` and store the field below ``folder``.

        Raises:
            PlateError: where it cannot be read.
        """
        taken = self.plate
        if not self._by_reference:
            remove(folder / field.path)
            shutil.copytree(self.plate.path / field.path, folder / field.path, symlinks=True)
            # What is measured is what is kept, even where the source changes meanwhile.
            taken = replace(taken, path=folder)
        for stack in read_field(taken, field):
            measure(stack)


class ExportSource:
    """TIFF planes of a microscope's export: written as OME-Zarr 0.5, a channel at a time; methods as ``ZarrSource``."""

    def __init__(self, path: Path):
        export, notes = true_stack(read_export(path))
        self.format, self.problems, self.acquisition = export.format, (*export.problems, *notes), export.acquisition
        self._depth = int(export.planes["z"].max()) + 1  # type: ignore[arg-type]

        def field_at(well: str, site: int) -> Field:
            return Field(export.name, well, site, f"{well[:-2]}/{well[-2:]}/{site - 1}")

        grouped = export.planes.group_by(["well", "site"], maintain_order=True)
        self._planes = {field_at(well, site): rows for (well, site), rows in grouped}
        bad = {field_at(*key): reason for key, reason in export.incomplete.items()}
        fields = tuple(field for field in self._planes if field not in bad)
        self.plate = Plate(export.name, path, "0.5", export.channels, export.voxel_size, fields, bad)
        self._shape = self._commonest_shape()

    def begin(self, folder: Path) -> None:
        wells: dict[str, list[str]] = {}
        for field in self.plate.fields:
            wells.setdefault(field.well, []).append(Path(field.path).name)
        # Not into a plate that has grown already: ngio empties what it creates.
        with TemporaryDirectory(dir=folder.parent) as scratch:
            create_plate(Path(scratch), self.plate.name, wells)
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
        if not (template := folder.parent / "template").exists():
            making = folder.parent / "template.making"
            shape = (len(self.plate.channels), self._depth, *self._shape)
            create_field(making, shape, self.plate.channels, self.plate.voxel_size)
            making.rename(template)

    def take(self, field: Field, folder: Path, measure: Callable[[Stack], None]) -> None:
        import zarr

        remove(folder / field.path)
        shutil.copytree(folder.parent / "template", folder / field.path)
        array = zarr.open_array(folder / field.path / "0", mode="r+")
        # The next channel is read and measured while this one is compressed.
        with ThreadPoolExecutor(1) as writer:
            written: Future[Any] = writer.submit(int)
            for index, stack in enumerate(self._stacks(field)):
                measure(stack)
                written.result()
                written = writer.submit(array.__setitem__, index, stack)
            written.result()

    def _stacks(self, field: Field) -> Iterator[Stack]:
        place: dict[str, Any] = {"plate": field.plate, "well": field.well, "site": field.site}
        for _, planes in self._planes[field].group_by("channel", maintain_order=True):
            stack = np.empty((self._depth, *self._shape), np.uint16)
            for z, file, page in planes.select("z", "file", "page").iter_rows():
                try:
                    plane = read_plane(self.plate.path / file, page)
                except PlateError as error:
                    raise error.at(**place) from error
                if plane.shape != self._shape:
                    problem = f"a plane is {plane.shape}, most on the plate are {self._shape}"
                    raise PlateError(problem, "Export it again.", **place, path=self.plate.path / file)
                stack[z] = plane
            yield stack

    def _commonest_shape(self) -> tuple[int, int]:
        """Of the planes of a few fields, evenly spread. What cannot be read is told of when it is taken in."""
        shapes = []
        for rows in list(self._planes.values())[:: max(1, len(self._planes) // _PROBED)]:
            with suppress(PlateError):
                shapes.append(plane_shape(self.plate.path / rows["file"][0], rows["page"][0]))
        if not shapes:
            raise PlateError("none of its TIFF files can be read", "Export it again.", path=self.plate.path)
        return mode(shapes)


def true_stack(export: Export) -> tuple[Export, list[str]]:
    """The export as what it really is, a z-stack or single planes, and what of it was left out, in words.

    Projections beside a stack are left out, and so are channels that have fewer slices than others. A channel that
    repeats one plane all through the stack makes it none: the plate is then taken in two dimensions, from its
    projections where it has them, else from the first slice.
    """
    projected = PROJECTION in export.planes["z"]
    slices = export.planes.filter(pl.col("z") != PROJECTION)
    depth = slices["z"].n_unique()
    repeated = _repeated(export, slices) if depth > 1 else []
    if depth > 1 and not repeated:
        notes = ["projections of the stacks lie beside them and were left out"] if projected else []
        return _whole_stacks(export, slices, depth, notes), notes
    # The planes are sorted, projections before slices.
    flat = export.planes.unique(["well", "site", "channel"], keep="first", maintain_order=True)
    notes = []
    if repeated:
        whence = "its projections" if projected else "the first slice of each stack"
        notes.append(
            f"no true z-stack: {' and '.join(repeated)} {'repeats' if len(repeated) == 1 else 'repeat'} one plane in "
            f"all {depth} slices; the plate was taken in as two-dimensional, from {whence}"
        )
    elif projected:
        notes.append("only projections, no z-stack: the plate was taken in as two-dimensional")
    flat = flat.with_columns(z=pl.lit(0, pl.Int32))
    return replace(export, planes=flat, voxel_size=(1.0, *export.voxel_size[1:])), notes


def _whole_stacks(export: Export, slices: pl.DataFrame, depth: int, notes: list[str]) -> Export:
    """The channels that have every slice; the others are named in ``notes``."""
    counts = dict(slices.group_by("channel").agg(pl.col("z").n_unique()).iter_rows())
    whole = [index for index in range(len(export.channels)) if counts.get(index) == depth]
    for index, channel in enumerate(export.channels):
        if index not in whole:
            notes.append(f"channel {channel} has {counts.get(index, 0)} of {depth} slices and was left out")
    if not whole:
        raise PlateError(f"no channel has all {depth} slices", "Export it again.", plate=export.name, path=export.path)
    renumbered = pl.col("channel").replace_strict(whole, range(len(whole)), return_dtype=pl.Int32)
    planes = slices.filter(pl.col("channel").is_in(whole)).with_columns(renumbered)
    return replace(export, planes=planes, channels=tuple(export.channels[index] for index in whole))


def _repeated(export: Export, slices: pl.DataFrame) -> list[str]:
    """The channels whose slices are one plane over and over, in every one of the first few complete fields."""
    everywhere: set[int] | None = None
    fields = slices.select("well", "site").unique(maintain_order=True).iter_rows()
    for well, site in [key for key in fields if key not in export.incomplete][:_PROBED]:
        channels = slices.filter(well=well, site=site).group_by("channel")
        # What cannot be read will be named when it is taken in.
        with suppress(PlateError):
            here = {index for (index,), rows in channels if _one_plane(export, rows)}
            everywhere = here if everywhere is None else everywhere & here
    return [export.channels[index] for index in sorted(everywhere or ())]


def _one_plane(export: Export, rows: pl.DataFrame) -> bool:
    planes = (read_plane(export.path / file, page) for file, page in rows.select("file", "page").iter_rows())
    first = next(planes)
    # A channel without light is no repetition, and one slice repeats nothing.
    if rows.height < 2 or first.min() == first.max():
        return False
    return all(np.array_equal(first, plane) for plane in planes)
