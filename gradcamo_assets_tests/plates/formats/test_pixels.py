"""Pixels of TIFF files of any kind are read as the camera counts that were written, or refused."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import read_plane

COUNTS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))
KINDS = ("u1", "u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8")


@given(
    counts=COUNTS,
    kind=st.sampled_from(KINDS),
    byteorder=st.sampled_from("<>"),
    layout=st.sampled_from([{}, {"rowsperstrip": 3}, {"tile": (16, 16)}, {"bigtiff": True}]),
    compression=st.sampled_from([None, "lzw", "zlib", "zstd", "packbits", "lzma"]),
    predictor=st.booleans(),
)
def test_counts_are_read_as_written(
    counts: np.ndarray,
    kind: str,
    byteorder: Any,
    layout: dict[str, Any],
    compression: str | None,
    predictor: bool,
) -> None:
    predictor &= compression in ("lzw", "zlib", "zstd") and kind not in ("u8", "i8")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "p.tif"
        values = counts.astype(kind)
        tifffile.imwrite(
            path, values, byteorder=byteorder, compression=compression, predictor=predictor, photometric="minisblack",
            **layout,
        )  # fmt: skip
        plane = read_plane(path)
    assert plane.dtype == np.uint16
    np.testing.assert_array_equal(plane, counts)


@given(
    counts=COUNTS,
    bits=st.sampled_from([8, 12, 16]),
    layout=st.sampled_from([{}, {"tile": (16, 16)}]),
    compression=st.sampled_from([None, "lzw", "zlib"]),
)
def test_where_0_is_white_the_values_are_inverted(
    counts: np.ndarray, bits: int, layout: dict[str, Any], compression: str | None
) -> None:
    values = counts.astype(np.uint8 if bits == 8 else np.uint16)
    packed = {"bitspersample": 12} if bits == 12 and compression is None and not layout else {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "p.tif"
        tifffile.imwrite(path, values, photometric="miniswhite", compression=compression, **layout, **packed)
        plane = read_plane(path)
    white = 4095 if packed else np.iinfo(values.dtype).max
    np.testing.assert_array_equal(plane, white - counts.astype(int))


@pytest.mark.parametrize("kind", ["i2", "u4", "f4"])
def test_where_0_is_white_other_types_are_refused(kind: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", np.ones((4, 4), kind), photometric="miniswhite")
    with pytest.raises(PlateError, match="0 is white"):
        read_plane(tmp_path / "p.tif")


def test_booleans_are_read_as_0_and_1(tmp_path: Path) -> None:
    mask = np.eye(16, dtype=bool)
    tifffile.imwrite(tmp_path / "p.tif", mask)
    np.testing.assert_array_equal(read_plane(tmp_path / "p.tif"), mask)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.5, np.nan]], np.float32), "NaN"),
        (np.array([[-1, 5]], np.int16), "range from -1"),
        (np.array([[0, 65536]], np.uint32), "range from 0 to 65536"),
        (np.array([[0.1, 0.9]], np.float32), "not whole numbers"),
        (np.array([[0.1, 1.0000001]], np.float32), "not whole numbers"),
        (np.array([[0.1, 1.07]], np.float32), "not whole numbers"),
        (np.array([[0, 200.25]], np.float64), r"not whole numbers \(200.25\)"),
        (np.array([[1j, 2]], np.complex64), "are complex64"),
    ],
)
def test_values_that_counts_cannot_hold_are_refused(values: np.ndarray, reason: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", values)
    with pytest.raises(PlateError, match=reason):
        read_plane(tmp_path / "p.tif")
