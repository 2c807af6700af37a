"""Test reading rows of sharded arrays against zarr, and that damage never gets past the array that is read into."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec

from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.shard_reader import row_reader
from gradcamo_assets.errors import CropError
from gradcamo_assets_tests.cells.test_crops import make_store

LZ4 = BloscCodec(cname="lz4", shuffle="shuffle")
MISSING = 2**64 - 1


def _array(folder: Path, shape: tuple[int, ...], **changes: Any) -> zarr.Array:
    """Create an array of the layout of stored crops, with changes."""
    layout = {
        "shards": (4, *shape[1:]), "chunks": (2, *shape[1:]), "dtype": "uint16", "compressors": LZ4, "fill_value": 7,
    }  # fmt: skip
    return zarr.create_array(folder, shape=shape, **{**layout, **changes})


def _is_direct(array: zarr.Array, folder: Path) -> bool:
    return type(getattr(row_reader(array, folder), "__self__", None)).__name__ == "_ShardReader"


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any], list[int]]:
    row_shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rows, per_chunk = draw(st.integers(0, 14)), draw(st.integers(1, 4))
    per_shard = per_chunk * draw(st.integers(1, 4))
    codec = BloscCodec(
        cname=draw(st.sampled_from(["lz4", "zstd", "blosclz"])),
        shuffle=draw(st.sampled_from(["shuffle", "bitshuffle", "noshuffle"])),
    )
    layout = {
        "chunks": (per_chunk, *row_shape), "shards": (per_shard, *row_shape), "compressors": codec,
        "dtype": draw(st.sampled_from(["uint8", "uint16"])), "fill_value": draw(st.integers(0, 255)),
    }  # fmt: skip
    written = draw(st.lists(st.integers(0, rows - 1), unique=True)) if rows else []
    return (rows, *row_shape), layout, written


@given(_layouts(), st.slices(14), st.integers(0, 2**32))
def test_rows_equal_those_that_zarr_reads(
    layout: tuple[tuple[int, ...], dict[str, Any], list[int]], rows: slice, seed: int
) -> None:
    shape, settings, written = layout
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        array = _array(Path(scratch), shape, **settings)
        for row in written:
            array[row] = rng.integers(0, 255, shape[1:])
        assert _is_direct(array, Path(scratch))
        read = row_reader(array, Path(scratch))
        whole = np.asarray(array[:])
        for chosen in (rows, *range(-shape[0], shape[0])):
            expected = whole[chosen]
            found = read(chosen, None)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
            out = np.full(expected.shape, 99, expected.dtype)
            assert read(chosen, out) is out
            np.testing.assert_array_equal(out, expected)
        with pytest.raises(IndexError):
            read(shape[0], None)


def _sharded(**changes: Any) -> ShardingCodec:
    return ShardingCodec(**{"chunk_shape": (2, 3, 5), "codecs": [BytesCodec(endian="little"), LZ4], **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": None},
        {"chunks": (2, 3, 1)},
        {"shards": (4, 6, 5)},
        {"compressors": GzipCodec()},
        {"compressors": [LZ4, GzipCodec()]},
        {"compressors": None},
        {"dtype": "int16"},
        {"dtype": "float32"},
        {"zarr_format": 2, "shards": None, "compressors": None},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
        {"shards": None, "chunks": (4, 3, 5), "compressors": None, "serializer": _sharded(index_location="start")},
        {"shards": None, "chunks": (4, 3, 5), "compressors": None, "serializer": _sharded(index_codecs=[BytesCodec()])},
        {"shards": None, "chunks": (4, 3, 5), "compressors": None,
         "serializer": _sharded(codecs=[BytesCodec(endian="big"), LZ4])},
    ],
)  # fmt: skip
def test_other_layouts_are_read_by_zarr(tmp_path: Path, changes: dict[str, Any]) -> None:
    array = _array(tmp_path, (6, 3, 5), **changes)
    array[:] = np.arange(90).reshape(6, 3, 5)
    assert not _is_direct(array, tmp_path)
    read = row_reader(array, tmp_path)
    for rows in (2, slice(1, 5)):
        out = np.zeros_like(array[rows])
        assert read(rows, out) is out
        np.testing.assert_array_equal(out, array[rows])
        np.testing.assert_array_equal(read(rows, None), array[rows])


def test_an_array_to_read_into_must_fit(tmp_path: Path) -> None:
    read = row_reader(_array(tmp_path, (6, 3, 5)), tmp_path)
    for out in (
        np.zeros((2, 3, 5), np.uint16),
        np.zeros((3, 5), np.uint8),
        np.zeros((5, 3), np.uint16).T,
        np.zeros((3, 5), ">u2"),
    ):
        with pytest.raises(ValueError, match="to read into"):
            read(1, out)


def _shard(folder: Path) -> Path:
    make_store(folder, 3, shape=(4, 32, 32))
    return folder / "images" / "c" / "0" / "0" / "0" / "0" / "0"


def _read_all(folder: Path) -> np.ndarray:
    """Read every image of a store into the middle of an array; fail if the rest changes."""
    field = open_crops(folder)
    around = np.full((5, *field.images.shape[1:]), 0xABCD, np.uint16)
    try:
        field.read(slice(0, 3), around[1:4])
    finally:
        assert (around[[0, 4]] == 0xABCD).all()
    return around[1:4]


@given(st.data())
def test_a_shard_that_lacks_bytes_is_damaged(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        shard = _shard(Path(scratch) / "a.zarr")
        content = shard.read_bytes()
        start = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.just(len(content)) | st.integers(start + 1, len(content)))
        shard.write_bytes(content[:start] + content[stop:])
        with pytest.raises(CropError, match=r"a\.zarr.*the index is damaged"):
            _read_all(Path(scratch) / "a.zarr")


def test_a_shard_that_is_cut_after_its_index_was_read_is_damaged(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.zarr")
    field = open_crops(tmp_path / "a.zarr")
    field.read(0)
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(CropError, match=r"expected \d+ bytes at 0, found 200"):
        field.read(0)


@given(st.data())
def test_flipped_bytes_of_index_and_header_are_damage(data: st.DataObject) -> None:
    """A header's first bytes (versions and filters) are followed by sizes, each of which must be as expected."""
    with tempfile.TemporaryDirectory() as scratch:
        shard = _shard(Path(scratch) / "a.zarr")
        content = bytearray(shard.read_bytes())
        index = len(content) - 16 * 3 - 4
        headers = [offset for offset, _ in struct.iter_unpack("<2Q", content[index:-4])]
        sizes = [header + byte for header in headers for byte in (3, *range(4, 8), *range(12, 16))]
        content[data.draw(st.sampled_from([*sizes, *range(index, len(content))]))] ^= data.draw(st.integers(1, 255))
        shard.write_bytes(content)
        with pytest.raises(CropError, match=r"a\.zarr.*(index|chunk \d) is damaged"):
            _read_all(Path(scratch) / "a.zarr")


@given(st.data())
def test_any_other_damage_is_an_error_or_other_values(data: st.DataObject) -> None:
    """Blosc's data have no checksum; whatever they hold, nothing outside of the array is written."""
    with tempfile.TemporaryDirectory() as scratch:
        shard = _shard(Path(scratch) / "a.zarr")
        content = bytearray(shard.read_bytes())
        index = len(content) - 16 * 3 - 4
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, index - 1))] = data.draw(st.integers(0, 255))
        shard.write_bytes(content)
        try:
            assert _read_all(Path(scratch) / "a.zarr").shape == (3, 2, 4, 32, 32)
        except CropError as error:
            assert "a.zarr" in str(error)


@pytest.mark.parametrize(
    "entry",
    [
        (0, 0),
        (0, 15),
        (0, 40),
        (0, 2**40),
        (0, MISSING),
        (MISSING, 50),
        (2**63, 50),
        (2**62, 50),
        (10**6, 50),
        (MISSING, 0),
    ],
)
def test_an_index_that_is_wrong_with_a_right_checksum_is_damage(tmp_path: Path, entry: tuple[int, int]) -> None:
    shard = _shard(tmp_path / "a.zarr")
    content = shard.read_bytes()
    index = struct.pack("<2Q", *entry) + content[-16 * 2 - 4 : -4]
    shard.write_bytes(content[: -16 * 3 - 4] + index + struct.pack("<I", google_crc32c.value(index)))
    with pytest.raises(CropError, match=r"(chunk 0|the index) is damaged"):
        _read_all(tmp_path / "a.zarr")


def test_a_missing_chunk_is_fill_value(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.zarr")
    content = shard.read_bytes()
    index = struct.pack("<2Q", MISSING, MISSING) + content[-16 * 2 - 4 : -4]
    shard.write_bytes(content[: -16 * 3 - 4] + index + struct.pack("<I", google_crc32c.value(index)))
    images = _read_all(tmp_path / "a.zarr")
    np.testing.assert_array_equal(images, zarr.open_group(tmp_path / "a.zarr", mode="r")["images"][:])  # type: ignore[index]
    assert not images[0].any() and images[1].any()
