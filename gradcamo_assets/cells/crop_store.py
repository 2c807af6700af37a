"""Record, store and open the crops of one field.

The crops of a field are a Zarr v3 group. Its attributes tell which cells it has and how to cut them from the field.
Pixels are stored on demand: images with one crop per chunk, labels with a few; chunks are grouped in shards
(https://zarr.dev/zeps/accepted/ZEP0002). A group is written in one step and never changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from gradcamo_assets.cells.crop_field import REMEDY, CropField
from gradcamo_assets.cells.field_crops import FieldCrops, FieldSource
from gradcamo_assets.cells.shard_reader import RowReader, row_reader
from gradcamo_assets.errors import CropError
from gradcamo_assets.local_copies import fetch_folder
from gradcamo_assets.provenance import Provenance, read_provenance, stored_version
from gradcamo_assets.storage import atomic_folder, folder_exists
from gradcamo_assets.storage_errors import is_storage_failure

if TYPE_CHECKING:
    import zarr

_SHARD_BYTES = 64 << 20
_LABELS_PER_CHUNK = 4
PIXELS = "pixels"
"""Folder beside the record of crops in which their pixels are stored."""
_CELL_COLUMNS = {"label": pl.Int64} | dict.fromkeys(("centroid_z", "centroid_y", "centroid_x"), pl.Float64)


@dataclass(frozen=True)
class StoredCrops(CropField):
    """Crops whose pixels are stored; arrays are read on access.

    Attributes:
        images: (N, C, z, y, x) uint16.
        labels: (N, z, y, x) uint8.
    """

    images: zarr.Array
    labels: zarr.Array

    def read(self, rows: slice | int, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        try:
            read_images, read_labels = self._readers
            return read_images(rows, images), read_labels(rows, None)
        except (OSError, ValueError, RuntimeError) as error:
            raise CropError(f"crops cannot be read ({error})", REMEDY, path=self.path) from error

    @cached_property
    def _readers(self) -> tuple[RowReader, RowReader]:
        return row_reader(self.images, self.path / "images"), row_reader(self.labels, self.path / "labels")


def write_crops(
    path: Path,
    crops: Iterator[tuple[np.ndarray, np.ndarray]],
    *,
    cell_ids: list[str],
    shape: tuple[int, int, int],
    channels: list[str],
    statistics: dict[str, list[float]],
    voxel_size: list[float | None],
    provenance: Provenance,
) -> None:
    """Write the crops of one field in the order of ``cell_ids``. At most two shards are in memory.

    Args:
        crops: image (C, z, y, x) and labels (z, y, x) of each cell.
        statistics: ``{"center": [...], "scale": [...]}`` of the plate, one value per channel.

    Raises:
        CropError: if the number of crops differs from the number of cells.
    """
    import zarr
    from zarr.codecs import BloscCodec

    crop_bytes = 2 * len(channels) * int(np.prod(shape))
    n = len(cell_ids)
    per_shard = int(min(max(1, _SHARD_BYTES // crop_bytes), max(1, n)))
    per_shard -= per_shard % _LABELS_PER_CHUNK if per_shard > _LABELS_PER_CHUNK else 0
    with atomic_folder(path) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        # Byte shuffling needs 10% more space than bit shuffling and reads twice as fast.
        codec = BloscCodec(cname="lz4", shuffle="shuffle")
        images = group.create_array(
            "images", shape=(n, len(channels), *shape), chunks=(1, len(channels), *shape),
            shards=(per_shard, len(channels), *shape), dtype="uint16", compressors=codec,
        )  # fmt: skip
        # Compressed labels are tiny, so the number of requests dominates. A few per chunk suit single and batch reads.
        labels = group.create_array(
            "labels", shape=(n, *shape), chunks=(min(per_shard, _LABELS_PER_CHUNK), *shape), shards=(per_shard, *shape),
            dtype="uint8", compressors=codec,
        )  # fmt: skip
        group.attrs.update(cell_ids=cell_ids, channels=channels, voxel_size=voxel_size, **statistics)
        written, crops = 0, iter(crops)
        while shard := list(islice(crops, per_shard)):
            for array, stack in zip((images, labels), zip(*shard, strict=True), strict=True):
                array[written : written + len(shard)] = np.stack(stack)
            written += len(shard)
        if written != n:
            raise CropError(f"{written} crops for {n} cells", "Make the cell table from these masks again.", path=path)
        provenance.write(folder)


def record_crops(
    path: Path,
    cells: pl.DataFrame,
    source: FieldSource,
    *,
    shape: tuple[int, int, int],
    channels: list[str],
    statistics: dict[str, list[float]],
    voxel_size: list[float | None],
    provenance: Provenance,
) -> None:
    """Record the crops of one field without their pixels, which are cut from the field when they are read.

    Args:
        cells: ``Metadata_CellID``, ``label``, ``centroid_z``, ``centroid_y`` and ``centroid_x`` in voxels.
        statistics: see ``write_crops``.
    """
    import zarr

    with atomic_folder(path) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        # Relative paths, so that a home can be moved.
        places = {name: os.path.relpath(getattr(source, name), path) for name in ("plates", "masks")}
        group.attrs.update(
            cell_ids=cells["Metadata_CellID"].to_list(), channels=channels, voxel_size=voxel_size, **statistics,
            crop_shape=list(shape), source=asdict(source) | places,
            cells={name: cells[name].to_list() for name in _CELL_COLUMNS},
        )  # fmt: skip
        provenance.write(folder)


def store_pixels(path: Path, folder: Path | None = None) -> Path:
    """Store the pixels of recorded crops, for random access.

    Args:
        path: crops; if their pixels are stored already, nothing happens.
        folder: where to store them; None: with the record, so that everybody who opens the crops reads them.

    Returns:
        The folder of the stored crops, for ``open_crops``.

    Raises:
        CropError: if the crops cannot be cut.
    """
    crops = open_crops(path)
    provenance = read_provenance(path)
    if isinstance(crops, StoredCrops) or provenance is None:
        return crops.path
    folder = folder or path / PIXELS
    write_crops(
        folder,
        (crops.read(row) for row in range(len(crops))),
        cell_ids=crops.cell_ids,
        shape=crops.crop_shape,  # type: ignore[arg-type]
        channels=crops.channels,
        statistics={"center": crops.center.tolist(), "scale": crops.scale.tolist()},
        voxel_size=crops.voxel_size,
        provenance=provenance,
    )
    return folder


def open_crops(path: Path) -> CropField:
    """Open the crops of one field.

    Raises:
        CropError: if the crops are missing or damaged.
    """
    import zarr

    if folder_exists(path / PIXELS):
        path = path / PIXELS
    try:
        group = zarr.open_group(fetch_folder(path), mode="r")
        attributes: dict[str, Any] = group.attrs.asdict()
        version = stored_version(path)
        if version is None:
            raise CropError("the crops have no provenance record", REMEDY, path=path)
        common = {
            "path": path,
            **{name: attributes[name] for name in ("cell_ids", "channels", "voxel_size")},
            **{name: np.asarray(attributes[name], np.float32) for name in ("center", "scale")},
            "version": version,
        }
        if "source" not in attributes:
            images, labels = (cast("zarr.Array", group[name]) for name in ("images", "labels"))
            return StoredCrops(**common, crop_shape=images.shape[2:], images=images, labels=labels)
        places = {name: Path(os.path.normpath(path / attributes["source"][name])) for name in ("plates", "masks")}
        return FieldCrops(
            **common,
            crop_shape=tuple(attributes["crop_shape"]),
            source=FieldSource(**attributes["source"] | places),
            cells=pl.DataFrame(attributes["cells"], _CELL_COLUMNS),
            fill=np.asarray(attributes["center"]),
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        if is_storage_failure(error):
            raise
        raise CropError(f"crops cannot be opened ({error})", REMEDY, path=path) from error
