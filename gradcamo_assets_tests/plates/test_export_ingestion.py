"""Ingestion of microscope exports: every pixel, the metadata that is kept, and the problems that are reported."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import HCS, Image

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.plates import IngestConfig, ingest_plate, load_plate, open_plate, read_field, read_plate_record
from gradcamo_assets.plates.formats import PROJECTION, read_export
from gradcamo_assets.plates.omezarr_writer import create_field
from gradcamo_assets.plates.sources import select_true_stack
from gradcamo_assets.tables import lake_table
from gradcamo_assets.tables.conform import conform
from gradcamo_assets_tests.plates.formats.exports import (
    Pixels,
    some_pixels,
    write_cellvoyager,
    write_hcs_ai,
    write_loaddata,
    write_metaxpress,
    write_operetta,
    write_pattern,
    write_scanr,
)

WRITERS: dict[str, Callable[[Path, Pixels], Path]] = {
    "MetaXpress": write_metaxpress,
    "Operetta V5": lambda folder, pixels: write_operetta(folder, pixels, version="V5"),
    "Operetta V6": lambda folder, pixels: write_operetta(folder, pixels, version="V6"),
    "LoadData": write_loaddata,
    "Pattern": write_pattern,
    "CellVoyager": write_cellvoyager,
    "CQ3K": lambda folder, pixels: write_cellvoyager(folder, pixels, cq3k=True),
    "ScanR": write_scanr,
    "ImageXpress HCS.ai": write_hcs_ai,
}


@pytest.mark.parametrize("format", WRITERS)
def test_every_pixel_of_an_export_arrives(format: str, tmp_path: Path) -> None:
    pixels = some_pixels(shape=(2, 3, 24, 40))
    source = tmp_path / "inbox" / "export"
    WRITERS[format](source, pixels)
    done = ingest_plate(source, tmp_path / "plates")
    plate = load_plate(tmp_path / "plates", "export")
    assert not plate.bad_fields and {(field.well, field.site) for field in plate.fields} == set(pixels)
    for field in plate.fields:
        np.testing.assert_array_equal(read_field(plate, field), pixels[field.well, field.site])
    row = done.plate_frame.row(0, named=True)
    assert row["format"].split()[0] in format and [row[f"size_{axis}"] for axis in "zyx"] == [3, 24, 40]
    assert done.fields_frame["repeated_slices"].to_list() == [[0, 0]] * 4
    # The same plate, read by its own metadata rather than by its record.
    written = open_plate(plate.path)
    assert (written.channels, written.voxel_size) == (plate.channels, plate.voxel_size)
    assert [field.path for field in written.fields] == [field.path for field in plate.fields]


def test_a_converted_plate_is_valid_and_opens_in_other_readers(tmp_path: Path) -> None:
    pixels = some_pixels(wells=("B02", "B11", "C02"), shape=(2, 3, 24, 40))
    ingest_plate(write_metaxpress(tmp_path / "p", pixels, ["DNA", "AGP"]), tmp_path / "plates")
    root = zarr.open_group(tmp_path / "plates" / "p.zarr", mode="r")
    plate = HCS.from_zarr(root)
    assert [well.path for well in plate.ome_attributes.plate.wells] == ["B/02", "B/11", "C/02"]
    for well in ("B/02", "B/11", "C/02"):
        for site in ("0", "1"):
            image = Image.from_zarr(root[f"{well}/{site}"])
            assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "z", "y", "x"]
    stored = root["B/11/1/0"]
    assert stored.shards == (1, 3, 24, 40) and stored.chunks == (1, 1, 24, 40)

    location = parse_url(tmp_path / "plates" / "p.zarr", mode="r")
    assert location is not None
    node = next(iter(Reader(location)()))
    assert node.metadata["axes"] and node.data[0].ndim == 4
    # Two rows and three columns were imaged; the reader lays the wells out on that grid.
    *_, height, width = node.data[0].shape
    assert (height % 24, width % 40) == (0, 0) and height // 24 >= 2 and width // 40 >= 2


def test_channels_and_acquisition_are_kept(tmp_path: Path) -> None:
    write_metaxpress(tmp_path / "p", some_pixels(shape=(2, 3, 16, 16)), ["DNA", "AGP"], z_step=1.5, pixel=0.325)
    ingest_plate(tmp_path / "p", tmp_path / "plates")
    record = read_plate_record(tmp_path / "plates", "p")
    assert record is not None and record["channels"] == ["DNA", "AGP"] and record["voxel_size"] == [1.5, 0.325, 0.325]
    assert record["acquisition"]["objective"] == "40X"


def test_missing_planes_and_damaged_files_are_bad_fields(tmp_path: Path) -> None:
    pixels = some_pixels(wells=("B02", "B03"), shape=(2, 3, 16, 16))
    write_metaxpress(tmp_path / "p", pixels, ["DNA", "AGP"], waves=["Cy5"], wells=["C07"])
    step = tmp_path / "p" / "TimePoint_1"
    next((step / "ZStep_2").glob("*_B02_s1_w2.tif")).unlink()
    damaged = next((step / "ZStep_3").glob("*_B03_s2_w1.tif"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    done = ingest_plate(tmp_path / "p", tmp_path / "plates")
    reasons = {(row["Metadata_Well"], row["Metadata_Site"]): row["qc_flag"] for row in done.fields_frame.to_dicts()}
    assert "AGP at z 2 of 3" in reasons["B02", 1]
    assert "are incomplete" in reasons["B03", 2]
    assert reasons["B02", 2] is None and reasons["B03", 1] is None
    assert reasons["C07", 1] is not None
    assert any("Cy5" in problem for problem in done.problems)
    assert len(load_plate(tmp_path / "plates", "p").fields) == 2


def test_planes_of_another_size_are_a_bad_field(tmp_path: Path) -> None:
    pixels = some_pixels(wells=("B02", "B03"), sites=1, shape=(2, 3, 16, 16))
    pixels["B03", 1] = some_pixels(shape=(2, 3, 16, 18))["B02", 1]
    done = ingest_plate(write_metaxpress(tmp_path / "p", pixels), tmp_path / "plates")
    assert "(16, 18)" in done.fields_frame["qc_flag"][1]


def test_projections_beside_a_true_stack_are_left_out(tmp_path: Path) -> None:
    pixels = some_pixels(shape=(2, 3, 16, 16))
    write_metaxpress(tmp_path / "p", pixels, projection=True)
    done = ingest_plate(tmp_path / "p", tmp_path / "plates")
    plate = load_plate(tmp_path / "plates", "p")
    np.testing.assert_array_equal(read_field(plate, plate.fields[0]), pixels["B02", 1])
    assert any("projections" in problem for problem in done.problems)


@pytest.mark.parametrize("projection", [False, True])
def test_a_channel_of_one_plane_makes_no_stack(tmp_path: Path, projection: bool) -> None:
    pixels = some_pixels(shape=(2, 3, 16, 16))
    for stack in pixels.values():
        stack[1] = stack[1, 0]
    write_metaxpress(tmp_path / "p", pixels, ["DNA", "AGP"], projection=projection)
    done = ingest_plate(tmp_path / "p", tmp_path / "plates")
    plate = load_plate(tmp_path / "plates", "p")
    first = read_field(plate, plate.fields[0])
    whole = pixels["B02", 1]
    np.testing.assert_array_equal(first[:, 0], whole.max(1) if projection else whole[:, 0])
    assert any(problem.startswith("no true z-stack: AGP repeats one plane") for problem in done.problems)


def test_a_field_that_repeats_a_plane_has_a_warning(tmp_path: Path) -> None:
    pixels = some_pixels(shape=(2, 3, 16, 16))
    pixels["C11", 2][0, 2] = pixels["C11", 2][0, 1]
    done = ingest_plate(write_metaxpress(tmp_path / "p", pixels, ["DNA", "AGP"]), tmp_path / "plates")
    warned = done.fields_frame.drop_nulls("qc_warning").select("path", "qc_warning").rows()
    assert warned == [("C/11/1", "DNA repeats a plane in 2 of 3 slices")]


def test_the_real_imagexpress_export_is_no_stack(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    source = shared("imagexpress_9987") / "resources/ImageXpress_exported/9987_Plate_3434"
    done = ingest_plate(source, tmp_path / "plates")
    problems = " | ".join(done.problems)
    assert "no true z-stack: FITC and Texas Red repeat one plane in all 2 slices" in problems
    assert "Cy5, but it has no files" in problems and "3 ZSteps" in problems
    assert done.plate.channels == ("DAPI", "FITC", "Texas Red") and len(done.plate.fields) == 4
    assert done.plate.voxel_size[1:] == (1.3672, 1.3672)
    image = read_field(done.plate, done.plate.fields[0])
    projection = tifffile.imread(source / "TimePoint_1/ZStep_0/9987_B02_s1_w1.TIF")
    np.testing.assert_array_equal(image[0, 0], projection)


def test_an_ome_zarr_plate_by_reference_is_read_where_it_lies(tiny: Path, tmp_path: Path) -> None:
    plates = tmp_path / "plates"
    copied = ingest_plate(tiny, tmp_path / "copies")
    done = ingest_plate(tiny, plates, IngestConfig(ome_zarr="reference"))
    assert done.plate.path == tiny and not (plates / "tiny.zarr").exists()
    assert done.fields_frame.equals(copied.fields_frame)
    np.testing.assert_array_equal(
        read_field(done.plate, done.plate.fields[0]), read_field(copied.plate, copied.plate.fields[0])
    )
    # Switching between copy and reference leaves only one of them.
    assert ingest_plate(tiny, plates).plate.path == plates / "tiny.zarr"
    assert ingest_plate(tiny, plates, IngestConfig(ome_zarr="reference")).plate.path == tiny
    assert not (plates / "tiny.zarr").exists()
    with pytest.raises(GradcamoError, match="symlink"):
        IngestConfig(ome_zarr="symlink")  # type: ignore[arg-type]


def test_illumination_is_stored_and_applied_on_demand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    light = np.linspace(0.5, 1.5, 64)
    pixels = {
        (f"B{column:02d}", 1): rng.poisson(np.full((2, 2, 64, 64), 800.0) * light).astype(np.uint16)
        for column in range(2, 12)
    }
    done = ingest_plate(write_metaxpress(tmp_path / "p", pixels), tmp_path / "plates")
    assert done.illumination is not None and done.illumination.shape == (2, 32, 32)
    plain, corrected = (load_plate(tmp_path / "plates", "p", illumination=on) for on in (False, True))
    np.testing.assert_array_equal(read_field(plain, plain.fields[0]), pixels["B02", 1])
    columns = read_field(corrected, corrected.fields[0]).mean((0, 1, 2))
    assert np.ptp(columns) / columns.mean() < 0.08 < 0.9 < np.ptp(pixels["B02", 1].mean((0, 1, 2))) / 800


def test_only_projections_are_two_dimensional(tmp_path: Path) -> None:
    export = read_export(write_metaxpress(tmp_path / "p", some_pixels(shape=(2, 3, 16, 16)), projection=True))
    flat, notes = select_true_stack(replace(export, planes=export.planes.filter(pl.col("z") == PROJECTION)))
    assert flat.planes["z"].unique().to_list() == [0] and "only projections" in notes[0]


def _without(folder: Path, *names: str) -> None:
    for name in names:
        for path in folder.rglob(name):
            path.unlink()


def test_a_channel_with_fewer_slices_than_others_is_left_out(tmp_path: Path) -> None:
    pixels = some_pixels(shape=(3, 3, 16, 16))
    write_metaxpress(tmp_path / "p", pixels, ["DNA", "ER", "BF"])
    for step in (2, 3):
        _without(tmp_path / "p" / "TimePoint_1" / f"ZStep_{step}", "*_w3.tif")
    done = ingest_plate(tmp_path / "p", tmp_path / "plates")
    assert done.plate.channels == ("DNA", "ER") and not done.plate.bad_fields
    assert "channel BF has 1 of 3 slices and was left out" in done.problems
    np.testing.assert_array_equal(read_field(done.plate, done.plate.fields[0]), pixels["B02", 1][:2])


def test_a_channel_of_projections_beside_stacks_is_left_out(tmp_path: Path) -> None:
    pixels = some_pixels(shape=(3, 3, 16, 16))
    write_metaxpress(tmp_path / "p", pixels, ["DNA", "ER", "BF"], projection=True)
    for step in (1, 2, 3):
        _without(tmp_path / "p" / "TimePoint_1" / f"ZStep_{step}", "*_w3.tif")
    done = ingest_plate(tmp_path / "p", tmp_path / "plates")
    assert done.plate.channels == ("DNA", "ER") and done.plate_frame["size_z"].item() == 3
    assert any("BF has 0 of 3 slices" in problem for problem in done.problems)


def test_a_channel_without_light_does_not_make_a_plate_flat(tmp_path: Path) -> None:
    pixels = some_pixels(shape=(2, 3, 16, 16))
    for stack in pixels.values():
        stack[1] = 0
    done = ingest_plate(write_metaxpress(tmp_path / "p", pixels), tmp_path / "plates")
    assert done.plate_frame["size_z"].item() == 3 and not done.source_problems


def test_one_field_of_another_size_does_not_set_the_plate_size(tmp_path: Path) -> None:
    pixels = some_pixels(wells=("B02", "B03", "B04"), sites=1, shape=(2, 2, 16, 16))
    pixels["B02", 1] = some_pixels(shape=(2, 2, 20, 16))["B02", 1]
    done = ingest_plate(write_metaxpress(tmp_path / "p", pixels), tmp_path / "plates")
    assert [field.well for field in done.plate.fields] == ["B03", "B04"]


def test_a_storage_failure_does_not_mark_a_bad_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_metaxpress(tmp_path / "p", some_pixels(shape=(2, 2, 16, 16)))
    opened = tifffile.TiffFile

    def fails(path: Path, *args: object, **options: object) -> tifffile.TiffFile:
        if "C11_s2" in Path(path).name:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(tifffile, "TiffFile", fails)
        with pytest.raises(OSError, match="Input/output"):
            ingest_plate(source, tmp_path / "plates")
    assert read_plate_record(tmp_path / "plates", "p") is None
    assert len(ingest_plate(source, tmp_path / "plates").plate.fields) == 4


def test_a_real_plate_of_unknown_voxel_size(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    """One field of PNG files, which state no size of a pixel; single planes need no z."""
    source = tmp_path / "inbox" / "SQ00015198"
    source.mkdir(parents=True)
    for file in (shared("lincs_a549") / "images" / "SQ00015198").glob("r01c01f01*-ch[12]*.png"):
        (source / file.name).write_bytes(file.read_bytes())
    done = ingest_plate(source, tmp_path / "plates")
    assert done.plate.voxel_size == (None, None, None)
    row = conform(lake_table("plates"), done.plate_frame).row(0, named=True)
    assert [row[f"voxel_{axis}_um"] for axis in "zyx"] == [None] * 3
    problem = "the voxel size along y, x is not known; give voxel_size = [z, y, x] in SQ00015198.toml beside the plate"
    assert problem in done.problems
    written = open_plate(done.plate.path)
    assert written.voxel_size == (None, None, None)
    image = json.loads((done.plate.path / written.fields[0].path / "zarr.json").read_text())["attributes"]["ome"]
    (multiscale,) = image["multiscales"]
    assert not any("unit" in axis for axis in multiscale["axes"])
    assert multiscale["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1.0] * 4}]


def test_a_field_states_the_sizes_that_are_known(tmp_path: Path) -> None:
    """A plate made two-dimensional has no z step; ngio would write micrometres for every axis."""
    pixels = some_pixels(shape=(2, 3, 16, 16))
    for stack in pixels.values():
        stack[:, :] = stack[:, :1]
    export = read_export(write_metaxpress(tmp_path / "p", pixels, z_step=2.0, pixel=0.5))
    assert export.voxel_size == (2.0, 0.5, 0.5)
    assert select_true_stack(export)[0].voxel_size == (None, 0.5, 0.5)
    create_field(tmp_path / "f", (1, 1, 8, 8), ["DNA"], (None, 0.5, 0.5), labels=("cells",))
    for folder in (tmp_path / "f", tmp_path / "f" / "labels" / "cells"):
        image = json.loads((folder / "zarr.json").read_text())["attributes"]["ome"]
        units = {axis["name"]: axis.get("unit") for axis in image["multiscales"][0]["axes"] if axis["name"] != "c"}
        assert units == {"z": None, "y": "micrometer", "x": "micrometer"}
    assert Image.from_zarr(zarr.open_group(tmp_path / "f", mode="r"))


@pytest.mark.parametrize("size", [1, 1080, 1280, 1281, 1301, 2160, 2161, 2557])
def test_chunks_are_few_whatever_the_size(tmp_path: Path, size: int) -> None:
    create_field(tmp_path / "f", (1, 2, size, 7), ["DNA"], (1.0, 0.5, 0.5))
    array = zarr.open_array(tmp_path / "f" / "0")
    assert array.shape == (1, 2, size, 7) == array.shards and array.chunks[2] in (size, 1080, 427)
    pixels = np.arange(2 * size * 7, dtype=np.uint16).reshape(array.shape)
    array[:] = pixels
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "f" / "0", mode="r")[:], pixels)
