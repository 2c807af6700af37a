"""What all images of an OME-Zarr plate have in common: channels and voxel size."""

from __future__ import annotations

from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import numpy as np

_MICRONS = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
    "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "mm": 1e3, "m": 1e6,
}  # fmt: skip
VoxelSize = tuple[float | None, float | None, float | None]
"""(z, y, x) in micrometres, None where nobody states it. A single slice needs no z."""


class ImageLayout(NamedTuple):
    """Properties that all fields of a plate must share."""

    channels: tuple[str, ...]
    voxel_size: VoxelSize


def read_layout(folder: Path, image: Any, meta: Any) -> ImageLayout:
    """Read the layout of the ngio image in ``folder``. ngio raises if the channels do not match the array.

    An axis without a unit of length has no size, whatever its scale. NGFF asks for the scale 1 where the size is not
    known, but some writers give a scale without saying of what.
    """
    import zarr

    attributes: Any = zarr.open_group(folder, mode="r").attrs.asdict()
    # ngio fills in micrometres where the unit is missing.
    (multiscale,) = attributes.get("ome", attributes)["multiscales"]
    units = {axis["name"]: axis.get("unit") for axis in multiscale["axes"]}
    scales = dict(zip(meta.axes_handler.axes_names, meta.get_dataset(path=image.path).scale, strict=True))
    z, y, x = (to_micrometres(scales.get(axis), str(units.get(axis))) for axis in "zyx")
    return ImageLayout(tuple(image.channel_labels), (z, y, x))


def to_micrometres(value: object, unit: str = "um", *, signed: bool = False) -> float | None:
    """Convert a length (``signed``: a position) to micrometres; None if it is not a positive number of a known unit."""
    try:
        length = round(float(str(value)) * _MICRONS[unit.strip()], 9)
    except (ValueError, KeyError):
        return None
    return length if abs(length) < 1e6 and (signed or length > 0) else None


def most_common_layout(layouts: list[ImageLayout]) -> ImageLayout:
    """The channels and the voxel size of most images. Given channel names count before missing ones."""
    count = mode(len(layout.channels) for layout in layouts)
    comparable = [layout for layout in layouts if len(layout.channels) == count]
    names = [layout.channels for layout in comparable]
    named = [channels for channels in names if channels != _default_channel_names(count)]
    return ImageLayout(mode(named or names), mode(layout.voxel_size for layout in comparable))


def describe_difference(layout: ImageLayout, shared: ImageLayout) -> str | None:
    """How an image differs from most images, or None. Missing channel names do not count as a difference."""
    count = len(shared.channels)
    if len(layout.channels) != count:
        return f"it has {len(layout.channels)} channels, most fields have {count}"
    if layout.channels not in (shared.channels, _default_channel_names(count)):
        return f"its channels are {', '.join(layout.channels)}, most have {', '.join(shared.channels)}"
    own, most = (np.array(size, float) for size in (layout.voxel_size, shared.voxel_size))
    if not np.allclose(own, most, rtol=1e-3, equal_nan=True):
        return f"its voxel size is {_format(layout.voxel_size)}, most fields have {_format(shared.voxel_size)}"
    return None


def _format(voxel_size: VoxelSize) -> str:
    return f"({', '.join('unknown' if size is None else f'{size:g}' for size in voxel_size)}) um"


def _default_channel_names(count: int) -> tuple[str, ...]:
    """The names ngio gives to channels without names."""
    return tuple(f"channel_{i}" for i in range(count))
