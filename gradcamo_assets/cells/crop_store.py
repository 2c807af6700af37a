"""Write and read the crops of one field as a Zarr v3 group.

Images have one crop per chunk, labels a few; chunks are grouped in shards (https://zarr.dev/zeps/accepted/ZEP0002). A
field is written in one step and never changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gradcamo_assets.errors import CropError
from gradcamo_assets.provenance import Provenance, stored_version
from gradcamo_assets.storage import atomic_folder

if TYPE_CHECKING:
    import zarr

_SHARD_BYTES = 64 << 20
_LABELS_PER_CHUNK = 4
_REMEDY = "Materialise the crops of this plate and site again."


@dataclass(frozen=True)
class CropField:
    """Stored crops of one field; arrays are read on access.

    Attributes:
        images: (N, C, z, y, x) uint16.
        labels: (N, z, y, x) uint8, 0 background, 1 target, 2 neighbour.
        cell_ids: ``Metadata_CellID`` of each crop.
        channels: stains in order.
        center, scale: (C,) statistics of the plate; standardised = (raw - center) / scale.
        voxel_size: (z, y, x) in um, None where unknown.
        version: provenance digest.
    """

    path: Path
    images: zarr.Array
    labels: zarr.Array
    cell_ids: list[str]
    channels: list[str]
    center: np.ndarray
    scale: np.ndarray
    voxel_size: list[float | None]
    version: str

    def __len__(self) -> int:
        return len(self.cell_ids)

    def read(self, rows: slice | int, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read images and labels of some crops.

        Args:
            images: array to read the images into, of their shape and type; None allocates one.

        Raises:
            CropError: if a chunk is damaged.
        """
        from zarr.buffer.cpu import NDBuffer

        try:
            if images is None:
                return np.asarray(self.images[rows]), np.asarray(self.labels[rows])
            self.images.get_basic_selection(rows, out=NDBuffer.from_ndarray_like(cast(Any, images)))
            return images, np.asarray(self.labels[rows])
        except (OSError, ValueError, RuntimeError) as error:
            raise CropError(f"crops cannot be read ({error})", _REMEDY, path=self.path) from error


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


def open_crops(path: Path) -> CropField:
    """Open the crops of one field.

    Raises:
        CropError: if the crops are missing or damaged.
    """
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
        attributes = group.attrs.asdict()
        version = stored_version(path)
        if version is None:
            raise CropError("the crops have no provenance record", _REMEDY, path=path)
        images, labels = (cast("zarr.Array", group[name]) for name in ("images", "labels"))
        center, scale = (np.asarray(attributes[name], dtype=np.float32) for name in ("center", "scale"))
        cell_ids, channels, voxel_size = (
            cast(list, attributes[name]) for name in ("cell_ids", "channels", "voxel_size")
        )
        return CropField(
            path=path,
            images=images,
            labels=labels,
            cell_ids=cell_ids,
            channels=channels,
            center=center,
            scale=scale,
            voxel_size=voxel_size,
            version=version,
        )
    except (OSError, KeyError, ValueError) as error:
        raise CropError(f"crops cannot be opened ({error})", _REMEDY, path=path) from error
