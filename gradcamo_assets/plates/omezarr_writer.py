"""Write OME-Zarr HCS plates (NGFF 0.5): the plate metadata, and empty fields that are filled channel by channel.

Specification: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.image_layout import VoxelSize

_COMPRESSOR = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}}
_COLOURS = ("0000FF", "00FF00", "FFFF00", "FF8000", "FF0000", "FFFFFF")
_MAX_CHUNK_LENGTH = 1280
"""Pixels along one side of a chunk."""


def create_plate(folder: Path, name: str, wells: Mapping[str, Sequence[str]]) -> None:
    """Write the metadata of a plate and its wells into ``folder``.

    Args:
        wells: folder names of the fields in each well, for example ``{"B03": ["0", "1"]}``.
    """
    import ngio

    images = [
        ngio.ImageInWellPath(row=well[:-2], column=well[-2:], path=path)
        for well in sorted(wells, key=natural_key)
        for path in wells[well]
    ]
    ngio.create_empty_plate(str(folder), name, images=images, ngff_version="0.5", overwrite=True)


def create_field(
    path: Path,
    shape: tuple[int, int, int, int],
    channels: Sequence[str],
    voxel_size: VoxelSize,
    labels: Sequence[str] = (),
) -> None:
    """Create an empty image ``<path>/0``, (C, Z, Y, X) uint16, and empty label images.

    Each channel is one shard. Its chunks are single slices, or parts of large slices.

    Args:
        voxel_size: (z, y, x) in micrometres. An axis of unknown size (None) gets the scale 1 and no unit.
    """
    import ngio
    from ngio.ome_zarr_meta.ngio_specs import Channel, ChannelVisualisation

    z, y, x = (1.0 if size is None else size for size in voxel_size)
    meta = [
        Channel(label=name, channel_visualisation=ChannelVisualisation(color=_COLOURS[i % len(_COLOURS)], end=2500))
        for i, name in enumerate(channels)
    ]
    image = ngio.create_empty_ome_zarr(
        str(path), shape, pixelsize=(y, x), z_spacing=z, axes_names="czyx", levels=1, ngff_version="0.5",
        channels_meta=meta, chunks=(1, 1, _chunk_length(shape[2]), _chunk_length(shape[3])), shards=(1, *shape[1:]),
        compressors=_COMPRESSOR, overwrite=True,
    )  # fmt: skip
    for name in labels:
        image.derive_label(name, dtype="uint32")
    # ngio gives all axes of space one unit.
    if unknown := [axis for axis, size in zip("zyx", voxel_size, strict=True) if size is None]:
        for folder in (path, *(path / "labels" / name for name in labels)):
            _remove_units(folder, unknown)


def _remove_units(image: Path, axes: Sequence[str]) -> None:
    import zarr

    attributes = zarr.open_group(image, mode="r+").attrs
    metadata: Any = attributes["ome"]
    for axis in metadata["multiscales"][0]["axes"]:
        if axis["name"] in axes:
            axis.pop("unit", None)
    attributes["ome"] = metadata


def _chunk_length(length: int) -> int:
    """A length that divides the axis evenly, as shards require; a long axis without a good divisor is one chunk."""
    if length <= _MAX_CHUNK_LENGTH:
        return length
    candidates = range(_MAX_CHUNK_LENGTH, _MAX_CHUNK_LENGTH // 3, -1)
    return next((part for part in candidates if length % part == 0), length)
