"""Missing planes are reported, the configuration is applied, and formats are detected from a few names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import PROJECTION, detect_format, read_export, read_plane
from gradcamo_assets_tests.plates.formats import exports
from gradcamo_assets_tests.plates.formats.exports import some_pixels

STACK = some_pixels()
FORMATS = {
    "metaxpress": exports.write_metaxpress, "operetta": exports.write_operetta, "loaddata": exports.write_loaddata,
    "pattern": exports.write_pattern, "cellvoyager": exports.write_cellvoyager, "scanr": exports.write_scanr,
    "hcs.ai": exports.write_hcs_ai,
}  # fmt: skip


def remove_files(folder: Path, *names: str) -> Path:
    for name in names:
        (paths := list(folder.rglob(name))) or pytest.fail(f"no {name}")
        for path in paths:
            path.unlink()
    return folder


def test_the_real_plate(shared: Callable[[str], Path]) -> None:
    folder = shared("imagexpress_9987") / "resources" / "ImageXpress_exported" / "9987_Plate_3434"
    assert detect_format(folder) == "MetaXpress"
    export = read_export(folder)
    assert export.channels == ("DAPI", "FITC", "Texas Red")
    assert export.voxel_size == (3.0, 1.3672, 1.3672)
    # 2 wells x 2 sites x 3 channels x (2 steps and their projection), counted in the folder.
    assert export.planes.height == len(list(folder.rglob("*.TIF"))) == 36
    assert set(export.planes["z"]) == {PROJECTION, 0, 1}
    assert export.problems == (
        "the HTD lists 3 ZSteps, the export has 2",
        "the HTD lists wavelength Cy5, but it has no files",
    )
    assert dict(export.incomplete) == {}
    assert export.acquisition["objective"] == "40X Plan Apo Lambda"
    for row in export.planes.iter_rows(named=True):
        z = row["z"] + 1
        path = folder / "TimePoint_1" / f"ZStep_{z}" / f"9987_{row['well']}_s{row['site']}_w{row['channel'] + 1}.TIF"
        np.testing.assert_array_equal(read_plane(folder / row["file"], row["page"]), tifffile.imread(path))


def test_missing_planes_are_described(tmp_path: Path) -> None:
    folder = exports.write_operetta(tmp_path / "p1", some_pixels(sites=3, shape=(3, 5, 4, 4)), ["DNA", "ER", "AGP"])
    remove_files(folder, "r02c02f01p02-ch3*", "r02c02f01p03-ch3*", "r02c02f01p*-ch1*", "r03c11*-ch2*", "r02c02f02*")
    export = read_export(folder)
    assert dict(export.incomplete) == {
        ("B02", 1): "lacks DNA at all z, AGP at z 2 and 3 of 5",
        ("B02", 2): "Index.xml lists it, but it has no files",
        ("C11", 1): "lacks ER in the whole well",
        ("C11", 2): "lacks ER in the whole well",
        ("C11", 3): "lacks ER in the whole well",
    }


def test_a_missing_projection_and_a_flat_plate(tmp_path: Path) -> None:
    folder = remove_files(exports.write_metaxpress(tmp_path / "p1", STACK, projection=True), "ZStep_0/*B02_s1_w1.tif")
    assert dict(read_export(folder).incomplete) == {("B02", 1): "lacks DNA as projection"}
    flat = exports.write_metaxpress(tmp_path / "p2", some_pixels(shape=(2, 1, 4, 4)), time_point=False)
    assert dict(read_export(remove_files(flat, "*C11_s2_w2.tif")).incomplete) == {("C11", 2): "lacks ER"}


def test_wells_and_wavelengths_of_the_htd_without_files(tmp_path: Path) -> None:
    export = read_export(exports.write_metaxpress(tmp_path / "p1", STACK, waves=["Cy5"], wells=["D05"]))
    assert export.channels == ("DNA", "ER")
    assert export.problems == ("the HTD lists wavelength Cy5, but it has no files",)
    assert set(export.incomplete) == {("D05", 1), ("D05", 2)}


def test_bad_states_and_absent_channels_of_an_operetta(tmp_path: Path) -> None:
    bad = {"r02c02f01p02-ch1sk1fk1fl1.tiff": "Error"}
    export = read_export(exports.write_operetta(tmp_path / "p1", STACK, states=bad))
    assert dict(export.incomplete) == {("B02", 1): "lacks DNA at z 2 of 3"}
    export = read_export(remove_files(exports.write_operetta(tmp_path / "p2", STACK), "*-ch1sk*"))
    assert export.channels == ("ER",) and set(export.planes["channel"]) == {0}
    assert export.problems == ("Index.xml lists channel DNA, but it has no files",)


def test_the_configuration_overrides_any_reader(tmp_path: Path) -> None:
    folder = exports.write_operetta(tmp_path / "p 1", STACK)
    (tmp_path / "p_1.toml").write_text('voxel_size = [5, 0.5, 0.25]\nchannels = {ER = "RNA"}')
    export = read_export(folder)
    assert (export.name, export.channels, export.voxel_size) == ("p_1", ("DNA", "RNA"), (5.0, 0.5, 0.25))


def test_the_configuration_can_set_the_format(tmp_path: Path) -> None:
    folder = exports.write_loaddata(exports.write_operetta(tmp_path / "p1", STACK), STACK)
    assert detect_format(folder) == "Operetta"
    (tmp_path / "p1.toml").write_text('format = "LoadData"')
    assert read_export(folder).format == "LoadData"


def test_a_scanr_plate_of_384_wells(tmp_path: Path) -> None:
    folder = exports.write_scanr(tmp_path / "p1", some_pixels(["C02"]), columns=24)
    assert set(read_export(folder).planes["well"]) == {"E02"}, "well 50 of 96"
    (tmp_path / "p1.toml").write_text("wells = 384")
    assert set(read_export(folder).planes["well"]) == {"C02"}


@pytest.mark.parametrize(
    ("stated", "size"), [("", None), ("PhysicalSizeX='650' PhysicalSizeXUnit='nm'", 0.65), ("PhysicalSizeX='1'", 1.0)]
)
def test_the_pixel_size_of_scanr_is_what_it_states(tmp_path: Path, stated: str, size: float | None) -> None:
    """The parser of the library reports 1 where none is stated, and ignores the unit."""
    folder = exports.write_scanr(tmp_path / "p1", STACK)
    index = folder / "data" / "metadata.ome.xml"
    both = f"{stated} {stated.replace('SizeX', 'SizeY')}"
    index.write_text(index.read_text().replace("PhysicalSizeX='0.65' PhysicalSizeY='0.65'", both))
    assert read_export(folder).voxel_size == (2.0, pytest.approx(size), pytest.approx(size))


def test_an_unknown_voxel_size_stays_unknown(tmp_path: Path) -> None:
    assert read_export(exports.write_loaddata(tmp_path / "p1", STACK)).voxel_size == (None, None, None)


@pytest.mark.parametrize("write", [exports.write_metaxpress, exports.write_pattern])
def test_damaged_files_do_not_decide_for_the_plate(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "p1", some_pixels(wells=[f"B{column:02d}" for column in range(1, 13)]))
    whole = read_export(folder)
    # More damaged files than are examined at first, all in the first channel.
    for path in folder.rglob("*_w1*.tif"):
        path.write_bytes(bytes(path.stat().st_size))
    damaged = read_export(folder)
    assert damaged.planes.equals(whole.planes)
    assert (damaged.channels, damaged.voxel_size) == (whole.channels, whole.voxel_size)


def test_a_first_file_that_lacks_pages_does_not_decide_for_the_plate(tmp_path: Path) -> None:
    folder = exports.write_pattern(tmp_path / "p1", STACK, pages="Z")
    whole = read_export(folder)
    first = folder / whole.planes["file"][0]
    tifffile.imwrite(first, tifffile.imread(first)[:2], photometric="minisblack")
    assert whole.planes["page"].max() == 2 and read_export(folder).planes.equals(whole.planes)


def write_ome(folder: Path, **replaced: str) -> Path:
    """Files whose OME-XML has other words: ``replaced`` by name of an attribute, or the whole text."""
    exports.write_pattern(folder, STACK, pages="OME", voxel_size="")
    for path in folder.rglob("*.tif"):
        with tifffile.TiffFile(path) as tif:
            text, stack = tif.ome_metadata or "", tif.asarray()
        text = text.replace("<Channel ", '<Channel AcquisitionMode="WideField" EmissionWavelength="450" ')
        text = text.replace("PhysicalSizeX=", 'PhysicalSizeXUnit="µm" PhysicalSizeX=')
        for name, value in replaced.items():
            text = re.sub(f'{name}="[^"]*"', f'{name}="{value}"', text) if name != "text" else value
        tifffile.imwrite(path, stack, description=text.encode(), metadata=None, photometric="minisblack")
    return folder


@pytest.mark.parametrize(
    "replaced",
    [
        {"AcquisitionMode": "Not Set"},
        {"EmissionWavelength": ""},
        {"PhysicalSizeXUnit": "um"},
        {"PhysicalSizeXUnit": "micron"},
    ],
)
def test_words_that_the_ome_schema_does_not_know_are_no_matter(replaced: dict[str, str], tmp_path: Path) -> None:
    export = read_export(write_ome(tmp_path / "p1", **replaced))
    assert (export.channels, export.voxel_size, export.problems) == (("DNA", "ER"), (2.0, 0.65, 0.65), ())
    plane = export.planes.row(4, named=True)
    np.testing.assert_array_equal(read_plane(export.path / plane["file"], plane["page"]), STACK["B02", 1][1, 1])


@pytest.mark.parametrize(
    ("replaced", "unknown"),
    [({"PhysicalSizeXUnit": "pixel"}, "x"), ({"PhysicalSizeX": "0"}, "x"), ({"PhysicalSizeZ": "two"}, "z")],
)
def test_sizes_that_ome_xml_does_not_state_are_unknown(replaced: dict[str, str], unknown: str, tmp_path: Path) -> None:
    sizes = dict(zip("zyx", read_export(write_ome(tmp_path / "p1", **replaced)).voxel_size, strict=True))
    assert [axis for axis, size in sizes.items() if size is None] == [unknown]


def test_damaged_ome_xml_leaves_the_pixels(tmp_path: Path) -> None:
    text = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeX="7"></Image></OME>'
    export = read_export(write_ome(tmp_path / "p1", text=text))
    assert "the OME-XML of its files is damaged and was ignored" in export.problems
    assert export.voxel_size == (None, None, None)
    np.testing.assert_array_equal(read_plane(export.path / "B02/f1.ome.tif", 1), STACK["B02", 1][0, 1])


def test_loaddata_of_a_whole_batch(tmp_path: Path) -> None:
    folder = exports.write_loaddata(tmp_path / "p", STACK)
    table = pl.read_csv(folder / "load_data.csv", infer_schema=False)
    other = table.with_columns(Metadata_Plate=pl.lit("q"))
    pl.concat([table, other]).write_csv(folder / "load_data.csv")
    table.write_csv(folder / "load_data_again.csv")
    export = read_export(folder)
    assert export.planes.height == 24 and "load_data.csv was read, load_data_again.csv ignored" in export.problems


def test_loaddata_uses_the_longest_suffix_of_a_path_that_exists(tmp_path: Path) -> None:
    folder = exports.write_loaddata(tmp_path / "p", STACK, path="/old/../home/a/images/images")
    (folder / "images" / "images").mkdir()
    assert read_export(folder).planes["file"][0] == "images/B02-1-0-0.tiff", "the longer suffix lacks the file"


def write_system_files(folder: Path) -> None:
    """What macOS, Windows and a file server leave in a folder and in each folder below it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        # AppleDouble: magic number, version, filler, no entries.
        path.with_name(f"._{path.name}").write_bytes(bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(2))
    for parent in folders:
        (parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (parent / "Thumbs.db").write_bytes(b"x")
        (parent / "@eaDir").mkdir()
        (parent / "@eaDir" / "x_B02_s1_w1.tif").write_bytes(b"x")


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_operating_systems_are_ignored(format: str, tmp_path: Path) -> None:
    folder = FORMATS[format](tmp_path / "p1", STACK)
    before = read_export(folder)
    write_system_files(folder)
    after = read_export(folder)
    assert after.planes.equals(before.planes) and (after.channels, after.problems) == (before.channels, before.problems)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
@pytest.mark.parametrize("format", ["metaxpress", "pattern", "operetta"])
def test_a_file_name_that_is_not_utf_8_is_no_matter(format: str, tmp_path: Path) -> None:
    folder = FORMATS[format](tmp_path / "p1", STACK)
    before = read_export(folder)
    for name in (b"note_\xff.txt", b"plate_A1_B02_s1_w1_\xff.tif"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).touch()
    after = read_export(folder)
    assert after.planes.equals(before.planes)
    "".join(after.problems).encode()  # They are stored.


@pytest.mark.parametrize(
    "index", ["Images/Index.ref.xml", "Images/index.xml", "Images/INDEX.IDX.XML", "Index.xml", "index.idx.xml"]
)
@pytest.mark.parametrize("moved", [False, True], ids=["beside the images", "above them"])
def test_an_operetta_index_of_any_name_and_place(index: str, moved: bool, tmp_path: Path) -> None:
    folder = exports.write_operetta(tmp_path / "p1", STACK, index=index)
    if moved:
        (folder / "Images").mkdir(exist_ok=True)
        for path in [*folder.glob("*.tiff")]:
            path.rename(folder / "Images" / path.name)
        (path := folder / index).rename(folder / path.name)
    assert detect_format(folder) == "Operetta"
    export = read_export(folder)
    assert export.planes.height == 24 and not export.incomplete and export.channels == ("DNA", "ER")


def test_equal_channel_names_are_numbered(tmp_path: Path) -> None:
    export = read_export(exports.write_metaxpress(tmp_path / "p1", STACK, ["DNA", "DNA"]))
    assert export.channels == ("DNA", "DNA (2)")


def test_two_files_for_one_plane_are_both_reported(tmp_path: Path) -> None:
    folder = exports.write_metaxpress(tmp_path / "p1", some_pixels(shape=(2, 1, 4, 4)), time_point=False)
    (folder / "plate_A1_B02_s1_w1.tif").rename(folder / "other_B02_s1_w2.tif")
    with pytest.raises(
        PlateError, match=r"both other_B02_s1_w2\.tif .* and plate_A1_B02_s1_w2\.tif .*same plane"
    ) as error:
        read_export(folder)
    assert (error.value.well, error.value.site) == ("B02", 1)


def test_no_format(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "image.tif").touch()
    assert detect_format(tmp_path) is None
    assert detect_format(tmp_path / "nothing") is None
    assert detect_format(tmp_path / "notes.csv") is None


def test_a_damaged_configuration_does_not_hide_a_plate(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1.toml").write_text("patern = 'x'")
    assert detect_format(tmp_path / "p1") == "Pattern"
    with pytest.raises(PlateError, match="unknown setting 'patern'"):
        read_export(tmp_path / "p1")


def test_an_invalid_name_does_not_hide_a_plate(tmp_path: Path) -> None:
    folder = exports.write_operetta(tmp_path / "plate(1)", STACK)
    assert detect_format(folder) == "Operetta"
    with pytest.raises(PlateError, match="not a valid plate name"):
        read_export(folder)


def test_a_format_is_detected_without_a_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exports.write_metaxpress(tmp_path / "p1", STACK)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    monkeypatch.setattr(os, "walk", lambda *_: pytest.fail("a walk"))
    assert detect_format(folder) == "MetaXpress"
    assert len(listed) <= 2
