"""Every format, written from arrays and read back plane by plane."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradcamo_assets.plates.formats import (
    PLANE_SCHEMA,
    PROJECTION,
    Export,
    detect_format,
    plane_shape,
    read_export,
    read_plane,
)
from gradcamo_assets_tests.plates.formats import exports
from gradcamo_assets_tests.plates.formats.exports import Pixels, some_pixels

STACK = some_pixels()
FLAT = some_pixels(shape=(2, 1, 5, 7))

CASES: dict[str, tuple[Callable[[Path], Path], Pixels, str, tuple[str, ...]]] = {
    "metaxpress": (lambda f: exports.write_metaxpress(f, STACK), STACK, "MetaXpress", ("DNA", "ER")),
    "metaxpress guid": (
        lambda f: exports.write_metaxpress(f, STACK, guid=True, time_point=False), STACK, "MetaXpress", ("DNA", "ER"),
    ),
    "metaxpress flat": (
        lambda f: exports.write_metaxpress(f, FLAT, time_point=False), FLAT, "MetaXpress", ("DNA", "ER"),
    ),
    "metaxpress projection": (
        lambda f: exports.write_metaxpress(f, STACK, projection=True), STACK, "MetaXpress", ("DNA", "ER"),
    ),
    "operetta V5": (
        lambda f: exports.write_operetta(f, STACK, version="V5", index="Images/Index.idx.xml"),
        STACK, "Operetta", ("DNA", "ER"),
    ),
    "operetta V6": (lambda f: exports.write_operetta(f, STACK), STACK, "Operetta", ("DNA", "ER")),
    "operetta root": (lambda f: exports.write_operetta(f, STACK, index="Index.xml"), STACK, "Operetta", ("DNA", "ER")),
    "loaddata": (lambda f: exports.write_loaddata(f, STACK), STACK, "LoadData", ("DNA", "ER")),
    "loaddata Windows": (
        lambda f: exports.write_loaddata(f, STACK, path=r"D:\batch\p\images"), STACK, "LoadData", ("DNA", "ER"),
    ),
    "pattern": (lambda f: exports.write_pattern(f, STACK), STACK, "Pattern", ("DNA", "ER")),
    "pattern pages": (lambda f: exports.write_pattern(f, STACK, pages="Z"), STACK, "Pattern", ("DNA", "ER")),
    "pattern OME": (
        lambda f: exports.write_pattern(f, STACK, pages="OME", voxel_size=""), STACK, "Pattern", ("DNA", "ER"),
    ),
    "cellvoyager": (lambda f: exports.write_cellvoyager(f, STACK), STACK, "CellVoyager", ("C01", "C02")),
    "cq3k": (lambda f: exports.write_cellvoyager(f, STACK, cq3k=True, projection=True), STACK, "CQ3K", ("C01", "C02")),
    "scanr": (lambda f: exports.write_scanr(f, STACK), STACK, "ScanR", ("DNA", "ER")),
    "hcs.ai": (lambda f: exports.write_hcs_ai(f, STACK), STACK, "ImageXpress HCS.ai", ("DNA", "ER")),
}  # fmt: skip


def assert_holds(export: Export, pixels: Pixels) -> None:
    """The export's planes are exactly those of the arrays (and their projections, if it has any)."""
    assert dict(export.planes.schema) == PLANE_SCHEMA
    assert export.planes.equals(export.planes.sort("well", "site", "channel", "z"))
    expected = {(*field, c, z) for field, stack in pixels.items() for c, z in np.ndindex(stack.shape[:2])}
    assert {row[:4] for row in export.planes.iter_rows() if row[3] != PROJECTION} == expected
    for well, site, channel, z, file, page in export.planes.iter_rows():
        stack = pixels[well, site][channel]
        plane = stack.max(axis=0) if z == PROJECTION else stack[z]
        np.testing.assert_array_equal(read_plane(export.path / file, page), plane)
        assert plane_shape(export.path / file, page) == plane.shape


@pytest.mark.parametrize("case", CASES)
def test_a_plate_is_read_as_it_was_written(case: str, tmp_path: Path) -> None:
    write, pixels, format, channels = CASES[case]
    folder = write(tmp_path / "p1")
    assert (detect_format(folder) or "").startswith(format.replace("CQ3K", "CellVoyager"))
    export = read_export(folder)
    assert (export.name, export.path, export.format, export.channels) == ("p1", folder, format, channels)
    assert_holds(export, pixels)
    assert dict(export.incomplete) == {}
    known = format != "LoadData"
    z = 2.0 if pixels is STACK else None
    expected = (z, 0.65, 0.65) if known else (None, None, None)
    assert [size and round(size, 6) for size in export.voxel_size] == list(expected)
    assert (PROJECTION in export.planes["z"]) == ("projection" in case or case == "cq3k")
