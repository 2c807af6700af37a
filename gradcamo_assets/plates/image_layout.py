"""What all images of an OME-Zarr plate have in common: channels and voxel size."""

from __future__ import annotations

from statistics import mode
from typing import Any, NamedTuple

import numpy as np

_MICRONS = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


class ImageLayout(NamedTuple):
    """Properties that all fields of a plate must share.

    Attributes:
        voxel_size: (z, y, x) in micrometres, 1.0 where the image gives none.
    """

    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]


def read_layout(image: Any, meta: Any) -> ImageLayout:
    """Read the layout of an ngio image and its metadata. ngio raises if the channels do not match the array."""
    size = meta.get_dataset(path=image.path).pixel_size
    if (unit := _MICRONS.get(str(size.space_unit))) is None:
        z, y, x = 1.0, 1.0, 1.0  # The unit "pixel", for example, states no size.
    else:
        z, y, x = (round(float(value) * unit, 9) for value in (size.z, size.y, size.x))
    return ImageLayout(tuple(image.channel_labels), (z, y, x))


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
    if not np.allclose(layout.voxel_size, shared.voxel_size, rtol=1e-3):
        return f"its voxel size is {layout.voxel_size} um, most fields have {shared.voxel_size}"
    return None


def _default_channel_names(count: int) -> tuple[str, ...]:
    """The names ngio gives to channels without names."""
    return tuple(f"channel_{i}" for i in range(count))
