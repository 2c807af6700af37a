"""Find chunks that an OME-Zarr image has lost, for example in a copy that was interrupted.

A chunk without a file reads as the fill value, without any error. But a missing file alone proves nothing: many writers
leave out chunks that hold nothing but the fill value. zarr-python 3 does so by default, and stitched wells have such
chunks where nothing was imaged. So the rest of the image decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradcamo_assets.errors import PlateError

if TYPE_CHECKING:
    import zarr

_MAX_CHUNKS = 1_000_000
_MAX_LISTED = 5
Region = tuple[slice, ...]


def check_chunks(folder: Path, level: str, coarser: Sequence[str], channel_axis: int | None) -> str | None:
    """Check the chunks of an image at full resolution. Only the names of files are read if none is missing.

    A missing chunk was lost if a coarser level is not empty at its place. It was left out by the writer if a coarser
    level has data there that are empty. If no level tells, it was lost unless the rest of its channel has pixels of
    the fill value too: images of cameras have none, as their dark pixels are above 0.

    Args:
        level: path of the array below ``folder``.
        coarser: paths of the arrays of lower resolution.
        channel_axis: index of the axis of channels, if there is one.

    Returns:
        What is missing, if no level tells and the channel has pixels of the fill value; else None.

    Raises:
        PlateError: chunks were lost, or the array has an implausible number of chunks.
    """
    import zarr

    array = zarr.open_array(folder / level, mode="r")
    # A shard is one file; chunks that are missing inside a shard were left out by its writer.
    grid = [math.ceil(n / size) for n, size in zip(array.shape, array.shards or array.chunks, strict=True)]
    if (total := math.prod(grid)) > _MAX_CHUNKS:
        raise PlateError(f"its array has {total} chunks", "Write it with larger chunks.")
    missing = dict(_missing_chunks(folder / level, array, grid))
    if not missing:
        return None
    if len(missing) == total:
        raise _lost_error(list(missing), total)
    levels = [(folder / path, zarr.open_array(folder / path, mode="r")) for path in coarser]
    image = np.asarray(array[:])
    is_stored = np.ones(array.shape, bool)
    for region in missing.values():
        is_stored[region] = False
    fill = array.fill_value or 0
    lost: list[str] = []
    doubtful: list[str] = []
    for key, region in missing.items():
        if (was_lost := _look_at_levels(region, array.shape, levels, fill)) is None:
            channel = slice(None) if channel_axis is None else (slice(None),) * channel_axis + (region[channel_axis],)
            has_fill = (is_stored[channel] & (image[channel] == fill)).any()
            (doubtful if has_fill else lost).append(key)
        elif was_lost:
            lost.append(key)
    if lost:
        raise _lost_error(lost, total)
    return f"{_describe(doubtful, total)} and were read as {fill}" if doubtful else None


def _missing_chunks(folder: Path, array: zarr.Array, grid: Sequence[int]) -> Iterator[tuple[str, Region]]:
    """Names and regions of the chunks that have no file."""
    sizes = array.shards or array.chunks
    for position in product(*map(range, grid)):
        key = array.metadata.encode_chunk_key(position)
        if not (folder / key).is_file():
            starts = [index * size for index, size in zip(position, sizes, strict=True)]
            yield key, tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _look_at_levels(
    region: Region, shape: Sequence[int], levels: Sequence[tuple[Path, zarr.Array]], fill: float
) -> bool | None:
    """Whether any coarser level has pixels at the place of a missing chunk; None if no level tells."""
    for folder, level in levels:
        ratios = [small / large for small, large in zip(level.shape, shape, strict=True)]
        # Pixels at the edges of the region also depend on its neighbours.
        inner = [
            (math.ceil(part.start * ratio), math.floor(min(part.stop, size) * ratio))
            for part, size, ratio in zip(region, shape, ratios, strict=True)
        ]
        if any(start >= stop for start, stop in inner):
            continue
        if (np.asarray(level[tuple(slice(*ends) for ends in inner)]) != fill).any():
            return True
        sizes = level.shards or level.chunks
        touched = [range(start // n, (stop - 1) // n + 1) for (start, stop), n in zip(inner, sizes, strict=True)]
        if all((folder / level.metadata.encode_chunk_key(position)).is_file() for position in product(*touched)):
            return False
    return None


def _lost_error(keys: Sequence[str], total: int) -> PlateError:
    return PlateError(_describe(keys, total), "Copy it again, or write it again with all chunks.")


def _describe(keys: Sequence[str], total: int) -> str:
    more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return f"{len(keys)} of its {total} chunks are missing ({', '.join(keys[:_MAX_LISTED])}{more})"
