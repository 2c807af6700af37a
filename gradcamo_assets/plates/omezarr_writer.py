"""Writing a plate as OME-Zarr HCS (NGFF 0.5): its metadata, and empty fields to be filled a channel at a time.

Specification: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradcamo_assets.names import natural_key

_COMPRESSOR = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}}
_COLOURS = ("0000FF", "00FF00", "FFFF00", "FF8000", "FF0000", "FFFFFF")
_LONGEST = 1280
"""Pixels along a side of a chunk, where that can be had."""


def create_plate(folder: Path, name: str, wells: Mapping[str, Sequence[str]]) -> None:
    """Write the metadata of a plate and of its wells into ``folder``.

    Args:
        wells: the fields' folder names of each well, for example ``{"B03": ["0", "1"]}``.
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
    voxel_size: tuple[float, float, float],
    labels: Sequence[str] = (),
) -> None:
    """An empty image, and empty labels: ``<path>/0`` (C, Z, Y, X) uint16, one channel a shard, and in it a slice,
    or a part of one, a chunk.

    Args:
        voxel_size: (z, y, x) in micrometres.
    """
    import ngio
    from ngio.ome_zarr_meta.ngio_specs import Channel, ChannelVisualisation

    z, y, x = voxel_size
    meta = [
        Channel(label=name, channel_visualisation=ChannelVisualisation(color=_COLOURS[i % len(_COLOURS)], end=2500))
        for i, name in enumerate(channels)
    ]
    image = ngio.create_empty_ome_zarr(
        str(path), shape, pixelsize=(y, x), z_spacing=z, axes_names="czyx", levels=1, ngff_version="0.5",
        channels_meta=meta, chunks=(1, 1, _chunk(shape[2]), _chunk(shape[3])), shards=(1, *shape[1:]),
        compressors=_COMPRESSOR, overwrite=True,
    )  # fmt: skip
    for name in labels:
        image.derive_label(name, dtype="uint32")


def _chunk(length: int) -> int:
    """A part of an axis that divides it evenly, as shards ask, and is neither long nor short; else the whole axis."""
    wanted = range(_LONGEST, _LONGEST // 3, -1)
    return length if length <= _LONGEST else next((part for part in wanted if length % part == 0), length)
