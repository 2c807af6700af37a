"""Damaged and malicious exports are rejected with a reason, before any pixel is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import plane_shape, read_export, read_plane
from gradcamo_assets_tests.plates.formats import exports
from gradcamo_assets_tests.plates.formats.exports import some_pixels

PIXELS = some_pixels(wells=["B02"], sites=1)
ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
LAUGHS = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
) + "]>"  # fmt: skip


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="latin-1")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="latin-1")


def operetta(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_operetta(folder, PIXELS) / "Images" / "Index.xml", old, new)


def htd(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_metaxpress(folder, PIXELS) / "plate.HTD", old, new)


def mlf(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_cellvoyager(folder, PIXELS) / "MeasurementData.mlf", old, new)


def mrf(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_cellvoyager(folder, PIXELS) / "MeasurementDetail.mrf", old, new)


def scanr(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_scanr(folder, PIXELS) / "data" / "metadata.ome.xml", old, new)


def hcs_ai(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_hcs_ai(folder, PIXELS) / "experiment_z_stack" / "images.csv", old, new)


def loaddata(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edited(exports.write_loaddata(folder, PIXELS) / "load_data.csv", old, new)


def nested(folder: Path) -> None:
    text = f"<EvaluationInputData><Images>{'<Image>' * 200_000}"
    (exports.write_operetta(folder, PIXELS) / "Images" / "Index.xml").write_text(text)


def pattern(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        exports.write_pattern(folder, PIXELS)
        folder.with_name("p1.toml").write_text(text)

    return write


def linked_file(folder: Path) -> None:
    exports.write_operetta(folder, PIXELS)
    outside = folder.with_name("secret.tiff")
    image = next((folder / "Images").glob("*.tiff"))
    image.rename(outside)
    image.symlink_to(outside)


def linked_folder(folder: Path) -> None:
    exports.write_loaddata(folder, PIXELS)
    (folder / "images").rename(folder.with_name("elsewhere"))
    (folder / "images").symlink_to(folder.with_name("elsewhere"), target_is_directory=True)


def hostile_description(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        exports.write_metaxpress(folder, PIXELS)
        for path in folder.rglob("*.tif"):
            # Letters that XML does not need keep the text's length, and so the file's layout.
            content = path.read_bytes()
            start, end = content.find(b"<PlaneInfo>"), content.find(b"</MetaData>")
            if start > 0:
                new = text.encode().ljust(end - start)
                assert len(new) == end - start
                path.write_bytes(content[:start] + new + content[end:])

    return write


def two_time_points(folder: Path) -> None:
    exports.write_metaxpress(folder, PIXELS)
    exports.write_metaxpress(folder / "more", PIXELS)
    (folder / "more" / "TimePoint_1").rename(folder / "TimePoint_2")


def wide_table(folder: Path) -> None:
    exports.write_loaddata(folder, PIXELS)
    (folder / "load_data.csv").write_text(",".join(f"FileName_{i}" for i in range(100_000)) + "\n")


def huge_ome(folder: Path) -> None:
    exports.write_pattern(folder, PIXELS, pages="OME")
    for path in folder.rglob("*.tif"):
        path.write_bytes(path.read_bytes().replace(b'SizeZ="3"', b'SizeZ="9"'))


def twice(folder: Path) -> None:
    path = exports.write_operetta(folder, PIXELS) / "Images" / "Index.xml"
    edited(path, "<PlaneID>2</PlaneID>", "<PlaneID>1</PlaneID>")


PLATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "Index.xml, external entity": (operetta("?>", f"?>{ENTITY}"), "DTD or entities"),
    "Index.xml, billion laughs": (operetta("?>", f"?>{LAUGHS}"), "DTD or entities"),
    "Index.xml, external DTD": (operetta("?>", '?><!DOCTYPE x SYSTEM "http://localhost/x.dtd">'), "DTD or entities"),
    "Index.xml, truncated": (operetta("</Images></EvaluationInputData>", "<Ima"), "XML is damaged"),
    "Index.xml, 200,000 levels deep": (nested, "XML is damaged"),
    "Index.xml, no XML": (operetta("<?xml", "?xml"), "not XML"),
    "Index.xml, URL upwards": (operetta("<URL>", "<URL>../../"), "not a path inside"),
    "Index.xml, URL absolute": (operetta("<URL>", "<URL>/etc/"), "not a path inside"),
    "Index.xml, URL of a drive": (operetta("<URL>", "<URL>C:"), "not a path inside"),
    "Index.xml, backslashes": (operetta("<URL>", "<URL>..\\..\\"), "not a path inside"),
    "Index.xml, control characters": (operetta("<URL>r", "<URL>r&#9;"), "not a path inside"),
    "Index.xml, row out of range": (operetta("</URL><Row>2<", "</URL><Row>33<"), "row of a well"),
    "Index.xml, column out of range": (operetta("<Col>2</Col><Field", "<Col>99</Col><Field"), "column of a well"),
    "Index.xml, no column": (operetta("<Col>2</Col><Field", "<Field"), "has no Col"),
    "Index.xml, plane is no number": (operetta("<PlaneID>2", "<PlaneID>1e99"), "PlaneID"),
    "Index.xml, two time points": (operetta("<TimepointID>0", "<TimepointID>1"), "2 time points"),
    "Index.xml, one plane twice": (twice, "are the same plane"),
    "Index.xml, channel name of a megabyte": (operetta(">DNA<", f">{'x' * 2**20}<"), "not a valid channel name"),
    "Index.xml, control in a channel": (operetta(">DNA<", ">D&#10;A<"), "not a valid channel name"),
    "Index.xml, plane of 10^12": (operetta("<PlaneID>1<", "<PlaneID>999999999999<"), "PlaneID"),
    "a file is a link": (linked_file, "is a symbolic link"),
    "a folder is a link": (linked_folder, "is a symbolic link"),
    "HTD, absurd XWells": (htd('"XWells", 12', '"XWells", 999999999999'), "XWells in the HTD"),
    "HTD, XWells is no number": (htd('"XWells", 12', '"XWells", -3'), "XWells in the HTD"),
    "HTD, absurd YSites": (htd('"YSites", 1', '"YSites", 100000000'), "YSites in the HTD"),
    "HTD, absurd wavelengths": (htd('"NWavelengths", 2', '"NWavelengths", 2000000000'), "NWavelengths"),
    "HTD is none": (htd('"HTSInfoFile"', '"Something"'), "not an HTD"),
    "HTD, field of a megabyte": (htd('"test"', f'"{"x" * 500_000}"'), "HTD is damaged"),
    "several time points": (two_time_points, "2 time points"),
    "LoadData, file upwards": (loaddata("B02-1-0-0", "../../B02-1-0-0"), "not a path inside"),
    "LoadData, absolute file": (loaddata("B02-1-0-0", "/etc/B02-1-0-0"), "not a path inside"),
    "LoadData, path of 10,000 characters": (loaddata("/cluster", "/a" * 5000), "more than 4096 bytes"),
    "LoadData, 100,000 columns": (wide_table, "columns"),
    "LoadData, well upwards": (loaddata(",B02,", ",../B02,"), "is not a well"),
    "LoadData, no well": (loaddata("Metadata_Well", "Metadata_Whale"), "neither Metadata_Well"),
    "LoadData, z is no number": (loaddata("B02,1,1,", "B02,1,inf,"), "not numbers"),
    "mlf, external entity": (mlf("?>", f"?>{ENTITY}"), "DTD or entities"),
    "mlf, billion laughs": (mlf("?>", f"?>{LAUGHS}"), "DTD or entities"),
    "mrf, external entity": (mrf("?>", f"?>{ENTITY}"), "DTD or entities"),
    "mlf, file upwards": (mlf(">p_B02", ">../../p_B02"), "outside the plate's folder"),
    "mlf, row 0": (mlf("bts:Row='2'", "bts:Row='0'"), "a record's Row"),
    "mlf, unknown channel": (mlf("bts:Ch='2'", "bts:Ch='7'"), "unknown channel 7"),
    "mlf, column 0": (mlf("bts:Column='2'", "bts:Column='0'"), "cannot be read"),
    "mlf, two time points": (mlf("bts:TimePoint='1'", "bts:TimePoint='2'"), "time points"),
    "ScanR, billion laughs": (scanr("?>", f"?>{LAUGHS}"), "DTD or entities"),
    "ScanR, file upwards": (scanr("FileName='", "FileName='../../../"), "outside the plate's folder"),
    "ScanR, well 0": (scanr("Image:W14P", "Image:W0P"), "number of a well"),
    "HCS.ai, row 0": (hcs_ai("\n2,2,1", "\n0,2,1"), "Row is"),
    "HCS.ai, folder upwards": (hcs_ai(",images,", ",../../..,"), "outside the plate's folder"),
    "pattern, no groups": (pattern("pattern = '.*'"), "groups are []"),
    "pattern, unknown group": (pattern("pattern = '(?P<well>...).*(?P<time>.)'"), "groups are"),
    "pattern, broken": (pattern("pattern = '(?P<well>['"), "not a valid regular expression"),
    "pattern, too long": (pattern(f"pattern = '(?P<well>{'a' * 2000})'"), "more than 1000 characters"),
    "pattern, no match": (pattern("pattern = '(?P<well>...)'"), "matches none of 6"),
    "pattern, well is none": (pattern("pattern = '(?P<well>B0).*'"), "is not a well"),
    "configuration, unknown key": (pattern("patern = 'x'"), "unknown setting 'patern'. Use one of pattern, voxel_size"),
    "configuration, no TOML": (pattern("pattern ="), "not valid TOML"),
    "configuration, unknown format": (pattern("format = 'CZI'"), "unknown format 'CZI'. Use one of Operetta"),
    "configuration, voxel size of nothing": (pattern("voxel_size = [0, 1, 1]"), "voxel_size"),
    "configuration, unknown channel": (
        pattern("pattern = '(?P<well>...)/.*(?P<channel>w.).*(?P<z>\\d).tif'\nchannels = {w9 = 'DNA'}"),
        "renames channel 'w9', which does not exist",
    ),
    "OME-XML claims more planes": (huge_ome, "18 planes, the file has 6 pages"),
    "nothing to read": (lambda folder: folder.mkdir(), "not an export"),
}  # fmt: skip


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The pages that were decoded."""
    pages: list[object] = []
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page, *_, **__: pages.append(page))
    return pages


@pytest.mark.parametrize("case", PLATES)
def test_a_hostile_plate_is_refused(case: str, tmp_path: Path, decoded: list[object]) -> None:
    write, reason = PLATES[case]
    write(tmp_path / "p1")
    with pytest.raises(PlateError) as error:
        read_export(tmp_path / "p1")
    assert reason in str(error.value)
    assert error.value.plate == "p1" and error.value.path is not None and len(str(error.value)) < 1500
    assert decoded == []


def test_a_hostile_metaseries_description_is_ignored(tmp_path: Path, decoded: list[object]) -> None:
    hostile_description(f"{ENTITY}&e;")(tmp_path / "p1")
    export = read_export(tmp_path / "p1")
    assert export.voxel_size == (None, None, None) and not export.incomplete
    assert export.acquisition == {"description": "test"} and decoded == []


def tag(path: Path, code: int | str, value: object) -> None:
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags[code].overwrite(value)  # type: ignore[union-attr]


def image(path: Path, **options: object) -> Path:
    tifffile.imwrite(path, np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), **options)  # type: ignore[arg-type]
    return path


def absurd(path: Path) -> None:
    image(path)
    tag(path, "ImageLength", 2**31)


def bomb(path: Path) -> None:
    image(path, compression="zlib", rowsperstrip=2**14)
    for name in ("ImageLength", "ImageWidth"):
        tag(path, name, 2**14)
    tag(path, "RowsPerStrip", 2**14)


def wide_tiles(path: Path) -> None:
    image(path, tile=(64, 64), compression="zlib")
    tag(path, "TileWidth", 2**16 - 16)
    tag(path, "TileLength", 2**16 - 16)


def more_than_there_is(path: Path) -> None:
    image(path)
    tag(path, "StripByteCounts", 2**31)


def too_few_bytes(path: Path) -> None:
    image(path)
    tag(path, "StripByteCounts", 10)


def beyond(path: Path) -> None:
    image(path)
    tag(path, "StripOffsets", 2**31)


def circular(path: Path) -> None:
    """The first directory's successor is itself."""
    content = bytearray(image(path).read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    struct.pack_into("<I", content, directory + 2 + 12 * count, directory)
    path.write_bytes(content)


TIFFS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "not there": (lambda path: None, 0, "does not exist"),
    "empty": (lambda path: path.touch(), 0, "not a TIFF"),
    "text": (lambda path: path.write_text("II*"), 0, "not a TIFF"),
    "truncated": (lambda path: path.write_bytes(image(path).read_bytes()[:-100]), 0, ""),
    "data cut off": (lambda path: path.write_bytes(image(path).read_bytes()[:3000]), 0, "truncated"),
    "page missing": (image, 1, "no page 1"),
    "circle of pages": (circular, 70_000, "no page 70000"),
    "colour": (lambda path: tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint8), photometric="rgb"), 0, "greyscale"),
    "absurd height": (absurd, 0, "pixels"),
    "decompression bomb": (bomb, 0, "claims 536870912 bytes"),
    "tiles of 2^32 pixels": (wide_tiles, 0, "tiles"),
    "byte count beyond the file": (more_than_there_is, 0, "truncated"),
    "fewer bytes than pixels": (too_few_bytes, 0, "claims 8192 bytes but stores 10"),
    "offset beyond the file": (beyond, 0, "truncated"),
}


@pytest.mark.parametrize("case", TIFFS)
def test_a_hostile_tiff_is_refused_by_its_header(case: str, tmp_path: Path, decoded: list[object]) -> None:
    write, page, reason = TIFFS[case]
    path = tmp_path / "plane.tif"
    write(path)
    for read in (read_plane, plane_shape):
        with pytest.raises(PlateError) as error:
            read(path, page)
        assert reason in str(error.value) and error.value.path == path
    assert decoded == []


def test_a_blank_compressed_plane_is_no_bomb(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", np.zeros((2160, 2160), np.uint16), compression="zstd", rowsperstrip=2160)
    assert not read_plane(tmp_path / "p.tif").any()


def test_garbage_in_a_compressed_plane_is_an_error_with_a_path(tmp_path: Path) -> None:
    content = bytearray(image(tmp_path / "p.tif", compression="zlib").read_bytes())
    with tifffile.TiffFile(tmp_path / "p.tif") as tif:
        start = tif.pages[0].dataoffsets[0]
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "p.tif").write_bytes(content)
    with pytest.raises(PlateError, match=r"p\.tif"):
        read_plane(tmp_path / "p.tif")
