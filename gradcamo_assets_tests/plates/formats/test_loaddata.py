"""LoadData tables as users of CellProfiler and DeepProfiler write them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import detect_format, plane_shape, read_export, read_plane

FILES = {"DNA": "A01_s1_w1.tif", "AGP": "A01_s1_w2.tif"}


def write_table(folder: Path, header: str, row: str) -> Path:
    folder.mkdir()
    for name in FILES.values():
        (folder / name).touch()
    (folder / "load_data.csv").write_text(f"{header}\n{row}\n")
    return folder


TABLES = {
    "plain": (
        "FileName_DNA,PathName_DNA,FileName_AGP,PathName_AGP,Metadata_Well,Metadata_Site",
        "A01_s1_w1.tif,.,A01_s1_w2.tif,.,A01,1",
    ),
    "Image_": (
        "Image_FileName_DNA,Image_PathName_DNA,Image_FileName_AGP,Image_PathName_AGP,Metadata_Well,Metadata_Site",
        "A01_s1_w1.tif,.,A01_s1_w2.tif,.,A01,1",
    ),
    "Image_ and metadata by channel": (
        "ImageNumber,Image_FileName_DNA,Image_PathName_DNA,Image_FileName_AGP,Image_PathName_AGP,"
        "Image_Metadata_Plate_DNA,Image_Metadata_Well_DNA,Replicate",
        "1,A01_s1_w1.tif,Week1/P1,A01_s1_w2.tif,Week1/P1,P1,A01,1",
    ),
    "URL": (
        "URL_DNA,URL_AGP,Metadata_Well,Metadata_Site",
        "file:///my%20data/P1/A01_s1_w1.tif,file:///my%20data/P1/A01_s1_w2.tif,A01,1",
    ),
    "semicolons": (
        "FileName_DNA;PathName_DNA;FileName_AGP;PathName_AGP;Metadata_Well;Metadata_Site",
        "A01_s1_w1.tif;.;A01_s1_w2.tif;.;A01;1",
    ),
    "byte order mark and quotes": (
        '\ufeff"FileName_DNA","FileName_AGP","Metadata_Well","Metadata_Site"',
        '"A01_s1_w1.tif","A01_s1_w2.tif","A01","1"',
    ),
    "a well as Harmony spells it": (
        "FileName_DNA,FileName_AGP,Metadata_Well,Metadata_Site",
        "A01_s1_w1.tif,A01_s1_w2.tif,r01c01,1",
    ),
    "another well column": (
        "FileName_DNA,FileName_AGP,Metadata_CPD_WELL_POSITION,Metadata_Site",
        "A01_s1_w1.tif,A01_s1_w2.tif,a1,1",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_spellings_of_a_table(case: str, tmp_path: Path) -> None:
    folder = write_table(tmp_path / "P1", *TABLES[case])
    assert detect_format(folder) == "LoadData"
    export = read_export(folder)
    assert export.planes.select("well", "site", "channel", "file").rows() == [
        ("A01", 1, channel, file) for channel, file in enumerate(FILES.values())
    ]
    assert export.channels == ("DNA", "AGP")


def test_a_table_without_images_says_what_it_names(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "P1", "FileName_DNA,Metadata_Well", "a.jp2,A01")
    with pytest.raises(PlateError, match=r"it names no TIFF or PNG file, but for example a\.jp2"):
        read_export(folder)


def encode_png(values: NDArray[np.integer], colour_type: int = 0, shape: tuple[int, int] | None = None) -> bytes:
    """A PNG file (ISO/IEC 15948): big-endian values, each row after its filter type 0. ``shape``: what it claims."""
    depth = 8 * values.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(f">u{values.dtype.itemsize}").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    y, x = shape or values.shape
    header = struct.pack(">IIBBBBB", x, y, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_8_and_16_bits(dtype: type, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7), dtype, endpoint=True)
    values[0, :2] = 1, np.iinfo(dtype).max
    (tmp_path / "A01.png").write_bytes(encode_png(values))
    (tmp_path / "load_data.csv").write_text("FileName_DNA,Metadata_Well\nA01.png,A01\n")
    (file,) = read_export(tmp_path).planes["file"]
    plane = read_plane(tmp_path / file)
    np.testing.assert_array_equal(plane, values)
    assert plane.dtype == np.uint16 and plane_shape(tmp_path / file) == (5, 7)


BLANK = np.zeros((2, 2), np.uint8)
DAMAGED = {
    "colour": (encode_png(BLANK, 2), "mode RGB, expected greyscale of 8 or 16 bits"),
    "two values a pixel": (encode_png(BLANK, 4), "mode LA, expected greyscale"),
    "truncated": (encode_png(np.full((50, 50), 9, np.uint16))[:-40], "not a PNG file, or a damaged one"),
    "a TIFF": (b"II*\0" + bytes(50), "not a PNG file"),
    "large": (encode_png(BLANK, shape=(9000, 9000)), "claims 9000 x 9000 pixels"),
    "absurd": (encode_png(BLANK, shape=(2**31 - 1, 2**31 - 1)), "not a PNG file, or a damaged one"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_png_is_refused(case: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[case]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(PlateError, match=reason) as error:
        read_plane(tmp_path / "x.png")
    assert error.value.path == tmp_path / "x.png"
    with pytest.raises(PlateError, match="there is no page 1"):
        read_plane(tmp_path / "x.png", 1)
