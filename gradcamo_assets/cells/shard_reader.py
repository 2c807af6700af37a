"""Read rows of a sharded Zarr v3 array straight into memory, without zarr-python's codec pipeline.

The pipeline takes several times as long as the decompression of a crop. Formats: the sharding codec of Zarr v3
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/) and the header of a Blosc chunk
(https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst).
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gradcamo_assets.storage import read_range

if TYPE_CHECKING:
    import zarr

RowReader = Callable[[slice | int, np.ndarray | None], np.ndarray]

_MISSING = (2**64 - 1, 2**64 - 1)
# Version, version of the compressor, flags, bytes of an item, decoded bytes, bytes of a block, encoded bytes.
_BLOSC_HEADER = struct.Struct("<4B3I")


def row_reader(array: zarr.Array, folder: Path) -> RowReader:
    """Return the fastest function that reads rows (the first axis) of an array stored in ``folder``.

    It takes the rows and an array to read into (their shape and type, C order; None allocates one), and returns the
    rows. It may be called from several threads.

    Raises:
        OSError, ValueError, RuntimeError: by the function, if a chunk is damaged, or the array to read into does not
            fit.
    """
    match json.loads(json.dumps(array.metadata.to_dict())):
        case {
            "zarr_format": 3,
            "shape": [rows, *row_shape],
            "data_type": "uint8" | "uint16" as dtype,
            "fill_value": int(fill_value),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows_per_shard, *shard_shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "storage_transformers": [],
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [rows_per_chunk, *chunk_shape],
                        "codecs": [
                            {"name": "bytes", **byte_order},
                            {"name": "blosc", "configuration": {"typesize": item_size}},
                        ],
                        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ],
        } if (
            row_shape == shard_shape == chunk_shape
            and byte_order in ({"configuration": {"endian": "little"}}, *[{}] * (dtype == "uint8"))
            and sys.byteorder == "little"
        ):
            return _ShardReader(
                folder, rows, tuple(row_shape), np.dtype(dtype), fill_value, rows_per_shard, rows_per_chunk, item_size
            ).read
    return partial(_read_by_zarr, array)


def _read_by_zarr(array: zarr.Array, rows: slice | int, out: np.ndarray | None) -> np.ndarray:
    from zarr.buffer.cpu import NDBuffer

    if out is None:
        return np.asarray(array[rows])
    array.get_basic_selection(rows, out=NDBuffer.from_ndarray_like(cast(Any, out)))
    return out


class _ShardReader:
    """Read the rows of an array whose chunks hold whole rows. Indices of shards are kept, since fields never change."""

    def __init__(
        self, folder: Path, rows: int, row_shape: tuple[int, ...], dtype: np.dtype, fill_value: int,
        rows_per_shard: int, rows_per_chunk: int, item_size: int,
    ):  # fmt: skip
        self.folder, self.rows, self.dtype, self.fill_value = folder, rows, dtype, fill_value
        self.chunk_shape = (rows_per_chunk, *row_shape)
        self.chunks_per_shard = rows_per_shard // rows_per_chunk
        self.item_size = item_size
        self.chunk_bytes = int(np.prod(self.chunk_shape)) * dtype.itemsize
        self._indices: dict[int, list[tuple[int, int]]] = {}

    def read(self, rows: slice | int, out: np.ndarray | None) -> np.ndarray:
        chosen = range(self.rows)[rows]
        shape = self.chunk_shape[1:] if isinstance(chosen, int) else (len(chosen), *self.chunk_shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif (out.shape, out.dtype, out.flags.c_contiguous) != (shape, self.dtype, True):
            raise ValueError(f"expected an array {shape} of {self.dtype} in C order to read into, found {out.shape}")
        stack, numbered = (out[None], [(0, chosen)]) if isinstance(chosen, int) else (out, enumerate(chosen))
        rows_per_chunk = self.chunk_shape[0]
        for chunk, group in groupby(numbered, lambda pair: pair[1] // rows_per_chunk):
            if rows_per_chunk == 1:
                self._decode(chunk, stack[next(group)[0]])
            else:
                decoded = self._decode(chunk, np.empty(self.chunk_shape, self.dtype))
                for position, row in group:
                    stack[position] = decoded[row % rows_per_chunk]
        return out

    def _decode(self, chunk: int, out: np.ndarray) -> np.ndarray:
        """Decode a chunk into an array of its size.

        Blosc trusts the header, so that its sizes are checked first. The data have no checksum.
        """
        from numcodecs import blosc

        shard, position = divmod(chunk, self.chunks_per_shard)
        offset, size = self._index(shard)[position]
        if (offset, size) == _MISSING:
            out.fill(self.fill_value)
            return out
        damaged = f"{self._shard_path(shard)}: chunk {position} is damaged"
        if not _BLOSC_HEADER.size <= size <= self.chunk_bytes + _BLOSC_HEADER.size:
            raise ValueError(f"{damaged}: the index states {size} bytes")
        encoded = read_range(self._shard_path(shard), offset, size)
        if len(encoded) != size:
            raise ValueError(f"{damaged}: expected {size} bytes at {offset}, found {len(encoded)}")
        _, _, _, item_size, decoded_bytes, _, encoded_bytes = _BLOSC_HEADER.unpack_from(encoded)
        if (item_size, decoded_bytes, encoded_bytes) != (self.item_size, self.chunk_bytes, size):
            raise ValueError(
                f"{damaged}: expected items of {self.item_size} bytes, {self.chunk_bytes} decoded and {size} encoded, "
                f"found {item_size}, {decoded_bytes} and {encoded_bytes}"
            )
        blosc.decompress(encoded, out)
        return out

    def _index(self, shard: int) -> list[tuple[int, int]]:
        """Return offset and size of each chunk of a shard."""
        import google_crc32c

        if shard not in self._indices:
            size = 16 * self.chunks_per_shard
            path = self._shard_path(shard)
            try:
                end = path.stat().st_size - size - 4
                stored = read_range(path, max(end, 0), size + 4)
            except FileNotFoundError:
                self._indices[shard] = [_MISSING] * self.chunks_per_shard
                return self._indices[shard]
            if end < 0 or google_crc32c.value(stored[:size]) != int.from_bytes(stored[size:], "little"):
                raise ValueError(f"{path}: the index is damaged")
            entries = list(struct.iter_unpack("<2Q", stored[:size]))
            if any(offset + length > end for offset, length in entries if (offset, length) != _MISSING):
                raise ValueError(f"{path}: the index is damaged or the shard is not whole: it ends at {end}")
            self._indices[shard] = entries
        return self._indices[shard]

    def _shard_path(self, shard: int) -> Path:
        return self.folder.joinpath("c", str(shard), *"0" * (len(self.chunk_shape) - 1))
