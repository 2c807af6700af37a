"""Plate sources with one interface: an OME-Zarr plate, which is copied, or a microscope export, which is converted.

``ingest`` decides what to do with a plate; this module only reads sources and writes fields.
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
from gradcamo_assets.plates.formats.configuration import read_configuration
from gradcamo_assets.plates.formats.planes import PROBED, spread_out
from gradcamo_assets.plates.omezarr import Field, Plate, check_field, open_plate, read_field
from gradcamo_assets.plates.omezarr_writer import create_field, create_plate
from gradcamo_assets.storage import remove

Stack = NDArray[np.uint16]


class ZarrSource:
    """An OME-Zarr plate. Its files are copied unchanged, or not at all if it is used by reference."""

    def __init__(self, path: Path, by_reference: bool):
        plate = open_plate(path)
        # The size is what an OME-Zarr plate may leave out; the other settings are for exports.
        self.plate = replace(plate, voxel_size=read_configuration(path).voxel_size or plate.voxel_size)
        self.format = f"ome-zarr {self.plate.ngff_version}"
        self.problems: tuple[str, ...] = ()
        self.acquisition: Mapping[str, Any] = {}
        self._by_reference = by_reference

    def prepare(self, folder: Path) -> None:
        """Write everything of the plate except its usable fields."""
        if self._by_reference:
            return
        fields = {self.plate.path / field.path for field in self.plate.fields}

        def list_fields(parent: str, names: list[str]) -> set[str]:
            return {name for name in names if Path(parent) / name in fields}

        # Links are copied as links, so that a link that appears after the check cannot lead outside the plate.
        shutil.copytree(self.plate.path, folder, dirs_exist_ok=True, symlinks=True, ignore=list_fields)

    def store_field(self, field: Field, folder: Path, measure: Callable[[Stack], None]) -> str | None:
        """Store a field below ``folder``, and pass each of its channels, (Z, Y, X), to ``measure``.

        Returns:
            what a user should know about the field, or None.

        Raises:
            PlateError: the field cannot be read.
        """
        stored = self.plate
        if not self._by_reference:
            remove(folder / field.path)
            shutil.copytree(self.plate.path / field.path, folder / field.path, symlinks=True)
            # Measure the copy, so that measurements match the stored pixels even if the source changes.
            stored = replace(stored, path=folder)
        note = check_field(stored, field)
        for stack in read_field(stored, field):
            measure(stack)
        return note


class ExportSource:
    """The TIFF planes of a microscope export, converted to OME-Zarr 0.5 channel by channel. See ``ZarrSource``."""

    def __init__(self, path: Path):
        export, notes = select_true_stack(read_export(path))
        self.format = export.format
        self.problems = (*export.problems, *notes)
        self.acquisition = export.acquisition
        self._depth = int(export.planes["z"].max()) + 1  # type: ignore[arg-type]

        def field_at(well: str, site: int) -> Field:
            return Field(export.name, well, site, f"{well[:-2]}/{well[-2:]}/{site - 1}")

        grouped = export.planes.group_by(["well", "site"], maintain_order=True)
        self._planes = {field_at(well, site): rows for (well, site), rows in grouped}
        bad = {field_at(*key): reason for key, reason in export.incomplete.items()}
        fields = tuple(field for field in self._planes if field not in bad)
        self.plate = Plate(
            name=export.name,
            path=path,
            ngff_version="0.5",
            channels=export.channels,
            voxel_size=export.voxel_size,
            fields=fields,
            bad_fields=bad,
        )
        self._shape = self._most_common_shape()

    def prepare(self, folder: Path) -> None:
        wells: dict[str, list[str]] = {}
        for field in self.plate.fields:
            wells.setdefault(field.well, []).append(Path(field.path).name)
        # Written elsewhere first: ngio empties the folder it creates a plate in, and fields may be finished already.
        with TemporaryDirectory(dir=folder.parent) as scratch:
            create_plate(Path(scratch), self.plate.name, wells)
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
        if not (template := folder.parent / "template").exists():
            unfinished = folder.parent / "template.making"
            shape = (len(self.plate.channels), self._depth, *self._shape)
            create_field(unfinished, shape, self.plate.channels, self.plate.voxel_size)
            unfinished.rename(template)

    def store_field(self, field: Field, folder: Path, measure: Callable[[Stack], None]) -> str | None:
        import zarr

        remove(folder / field.path)
        shutil.copytree(folder.parent / "template", folder / field.path)
        # Every chunk is written, so that a missing one was lost.
        array = zarr.open_array(folder / field.path / "0", mode="r+").with_config({"write_empty_chunks": True})
        # The next channel is read and measured while the previous one is compressed.
        with ThreadPoolExecutor(1) as writer:
            pending: Future[Any] = writer.submit(int)
            for index, stack in enumerate(self._read_stacks(field)):
                measure(stack)
                pending.result()
                pending = writer.submit(array.__setitem__, index, stack)
            pending.result()
        return None

    def _read_stacks(self, field: Field) -> Iterator[Stack]:
        place: dict[str, Any] = {"plate": field.plate, "well": field.well, "site": field.site}
        for _, planes in self._planes[field].group_by("channel", maintain_order=True):
            stack = np.empty((self._depth, *self._shape), np.uint16)
            for z, file, page in planes.select("z", "file", "page").iter_rows():
                try:
                    plane = read_plane(self.plate.path / file, page)
                except PlateError as error:
                    raise error.at(**place) from error
                if plane.shape != self._shape:
                    problem = f"a plane has shape {plane.shape}, most planes of the plate have {self._shape}"
                    raise PlateError(problem, "Export the plate again.", **place, path=self.plate.path / file)
                stack[z] = plane
            yield stack

    def _most_common_shape(self) -> tuple[int, int]:
        """Most common shape of planes in a few readable fields. Unreadable files are reported during ingestion."""
        shapes: list[tuple[int, int]] = []
        for rows in spread_out(list(self._planes.values())):
            if len(shapes) == PROBED:
                break
            with suppress(PlateError):
                shapes.append(plane_shape(self.plate.path / rows["file"][0], rows["page"][0]))
        if not shapes:
            problem = "none of its TIFF files can be read"
            raise PlateError(problem, "Export the plate again.", path=self.plate.path)
        return mode(shapes)


def select_true_stack(export: Export) -> tuple[Export, list[str]]:
    """Reduce an export to true z-stacks, or to single planes if it has none; also describe what was left out.

    Projections beside a stack are left out, and so are channels with fewer slices than others. If a channel repeats one
    plane through the whole stack, the plate has no true z-stacks: it becomes two-dimensional, made of its projections
    if it has any, else of the first slices.
    """
    has_projections = PROJECTION in export.planes["z"]
    slices = export.planes.filter(pl.col("z") != PROJECTION)
    depth = slices["z"].n_unique()
    repeated = _channels_of_repeated_planes(export, slices) if depth > 1 else []
    if depth > 1 and not repeated:
        notes = ["projections beside the stacks were left out"] if has_projections else []
        return _keep_whole_stacks(export, slices, depth, notes), notes
    # The planes are sorted with projections before slices.
    flat = export.planes.unique(["well", "site", "channel"], keep="first", maintain_order=True)
    notes = []
    if repeated:
        origin = "its projections" if has_projections else "the first slice of each stack"
        notes.append(
            f"no true z-stack: {' and '.join(repeated)} {'repeats' if len(repeated) == 1 else 'repeat'} one plane in "
            f"all {depth} slices; the plate was ingested as two-dimensional, from {origin}"
        )
    elif has_projections:
        notes.append("only projections, no z-stack: the plate was ingested as two-dimensional")
    flat = flat.with_columns(z=pl.lit(0, pl.Int32))
    return replace(export, planes=flat, voxel_size=(None, *export.voxel_size[1:])), notes


def _keep_whole_stacks(export: Export, slices: pl.DataFrame, depth: int, notes: list[str]) -> Export:
    """Keep the channels that have every slice; add the others to ``notes``."""
    counts = dict(slices.group_by("channel").agg(pl.col("z").n_unique()).iter_rows())
    whole = [index for index in range(len(export.channels)) if counts.get(index) == depth]
    for index, channel in enumerate(export.channels):
        if index not in whole:
            notes.append(f"channel {channel} has {counts.get(index, 0)} of {depth} slices and was left out")
    if not whole:
        problem = f"no channel has all {depth} slices"
        raise PlateError(problem, "Export the plate again.", plate=export.name, path=export.path)
    renumbered = pl.col("channel").replace_strict(whole, range(len(whole)), return_dtype=pl.Int32)
    planes = slices.filter(pl.col("channel").is_in(whole)).with_columns(renumbered)
    return replace(export, planes=planes, channels=tuple(export.channels[index] for index in whole))


def _channels_of_repeated_planes(export: Export, slices: pl.DataFrame) -> list[str]:
    """Channels that repeat one plane through the stack in all of the first few complete fields."""
    in_all_fields: set[int] | None = None
    fields = slices.select("well", "site").unique(maintain_order=True).iter_rows()
    for well, site in [key for key in fields if key not in export.incomplete][:PROBED]:
        channels = slices.filter(well=well, site=site).group_by("channel")
        # Unreadable planes are reported when the field is ingested.
        with suppress(PlateError):
            in_field = {index for (index,), rows in channels if _repeats_one_plane(export, rows)}
            in_all_fields = in_field if in_all_fields is None else in_all_fields & in_field
    return [export.channels[index] for index in sorted(in_all_fields or ())]


def _repeats_one_plane(export: Export, rows: pl.DataFrame) -> bool:
    planes = (read_plane(export.path / file, page) for file, page in rows.select("file", "page").iter_rows())
    first = next(planes)
    # A single slice repeats nothing, and constant planes without light do not count.
    if rows.height < 2 or first.min() == first.max():
        return False
    return all(np.array_equal(first, plane) for plane in planes)
