"""Reading OME-Zarr HCS plates (NGFF 0.4 and 0.5, of any writer): which fields there are, and their pixels.

Nothing here writes. Parsing is ngio's, imported where it is used since that takes seconds; here its findings are
checked, because names from a plate become paths.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.common.errors import GradcamoError, PlateError
from gradcamo_assets.common.names import natural_key, plate_name, slug, well_name

_WELL_PATH = re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9]+")
_MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_REPAIR = "Repair it, or export the plate again."


@dataclass(frozen=True)
class Field:
    """One site of one well. ``site`` is 1-based, in natural order of the paths within the well; ``path`` is relative
    to the plate's folder, for example ``B/03/0``."""

    plate: str
    well: str
    site: int
    path: str


@dataclass(frozen=True)
class BadField:
    """A field that cannot be used, and why. A well of which nothing can be read is one bad field, site 1, whose path is
    the well's."""

    field: Field
    reason: str


@dataclass(frozen=True)
class Plate:
    """A plate whose metadata was read. ``voxel_size`` is (z, y, x) in micrometres, 1.0 where the plate gives none."""

    name: str
    path: Path
    ngff_version: str
    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    fields: tuple[Field, ...]
    bad_fields: tuple[BadField, ...] = ()


@dataclass(frozen=True)
class _Look:
    """What a field must share with its plate."""

    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]


def name_of(path: Path) -> str:
    """The plate's name: that of its folder, less ``.zarr`` or ``.ome.zarr``.

    Raises:
        PlateError: where it is no usable name.
    """
    return plate_name(path.name.removesuffix(".zarr").removesuffix(".ome"))


def open_plate(path: Path, name: str | None = None) -> Plate:
    """Read a plate's metadata and that of all its fields, no pixels.

    A field whose metadata cannot be read, or that differs from the majority in channels or voxel size, is a bad field;
    so is a well without metadata.

    Raises:
        PlateError: no OME-Zarr plate, a well path that is none, two paths for one well, no usable field.
    """
    import ngio

    name = name_of(path) if name is None else plate_name(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            store = ngio.open_ome_zarr_plate(str(path), mode="r")
            meta = store.meta.plate
        except Exception as error:
            raise PlateError(
                f"no OME-Zarr plate: {_in_short(error)}",
                "Give a folder with HCS plate metadata, NGFF 0.4 (.zgroup and .zattrs) or 0.5 (zarr.json).",
                plate=name, path=path,
            ) from error  # fmt: skip
        found: dict[Field, _Look] = {}
        bad: list[BadField] = []
        for well, well_path in _wells(name, [str(well.path) for well in meta.wells]).items():
            try:
                fields = _fields(name, well, well_path, path)
            except GradcamoError as error:
                bad.append(BadField(Field(name, well, 1, well_path), error.problem))
                continue
            for field in fields:
                try:
                    found[field] = _look(_open_field(path, field), field)
                except GradcamoError as error:
                    bad.append(BadField(field, error.problem))
    if not found:
        first = f": {bad[0].field.path}: {bad[0].reason}" if bad else ""
        raise PlateError(f"none of its {len(bad)} listed fields can be read{first}", _REPAIR, plate=name, path=path)
    return _agree(Plate(name, path, str(meta.version), (), (1.0, 1.0, 1.0), (), tuple(bad)), found)


def read_field(plate: Plate, field: Field, channels: Sequence[int] | None = None) -> NDArray[np.uint16]:
    """Pixels at full resolution, (C, Z, Y, X) uint16, of all channels or of those given by index.

    Any axis order is brought into this one. Other number types are converted where every value survives, fractions of
    counts being rounded.

    Raises:
        PlateError: unreadable data, several time points, or values that 16 bits cannot hold.
    """
    image = _open_field(plate.path, field).get_image()
    picked: dict[str, Any] = {} if channels is None or "c" not in image.axes else {"c": list(channels)}
    array = _pixels(image, ["c", "z", "y", "x"], field, plate.path, **picked)
    return _as_uint16(array, field)


def read_label(plate: Plate, field: Field, name: str) -> NDArray[np.uint32] | None:
    """The label image ``name`` of a field at full resolution, (Z, Y, X) uint32, or None where the field has none.

    Raises:
        PlateError: where it is there but cannot be read.
    """
    import ngio

    # Not through the list of labels: ome-zarr 0.18 writes one in NGFF 0.5 that ngio refuses.
    folder = plate.path / field.path / "labels" / slug(name, "label name")
    if not folder.is_dir():
        return None
    try:
        label = ngio.open_label(str(folder), mode="r")
    except Exception as error:
        raise _unreadable(field, plate.path, f"label {name!r} cannot be opened", error) from error
    array = _pixels(label, ["z", "y", "x"], field, plate.path)
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.uint32).max):
        raise _unreadable(field, plate.path, f"label {name!r} holds values that are no labels")
    return array.astype(np.uint32)


def _wells(plate: str, paths: Sequence[str]) -> dict[str, str]:
    """Well name to well path, checked, in plate order."""
    wells: dict[str, str] = {}
    for path in sorted(paths, key=natural_key):
        if not _WELL_PATH.fullmatch(path):
            raise PlateError(f"{path!r} is no path of a well", "Well paths must look like B/03.", plate=plate)
        well = well_name(path.replace("/", ""))
        if wells.setdefault(well, path) != path:
            raise PlateError(
                f"both {wells[well]!r} and {path!r} are well {well}", "List every well once.", plate=plate, well=well
            )
    return wells


def _fields(plate: str, well: str, well_path: str, root: Path) -> list[Field]:
    import ngio

    try:
        images = ngio.open_ome_zarr_well(str(root / well_path), mode="r").meta.images
    except Exception as error:
        raise PlateError(f"well {well} has no readable metadata (a list of its images)", "Add it.") from error
    paths = sorted({str(image.path) for image in images}, key=natural_key)
    if not paths:
        raise PlateError(f"well {well} lists no images", "List them.")
    return [
        Field(plate, well, site, f"{well_path}/{slug(path, 'field path')}") for site, path in enumerate(paths, start=1)
    ]


def _open_field(root: Path, field: Field) -> Any:
    """The ngio container of a field, its array paths checked."""
    import ngio

    try:
        container = ngio.open_ome_zarr_container(str(root / field.path), mode="r", validate_arrays=False)
        for level in container.level_paths:
            for part in str(level).split("/"):
                slug(part, "array path")
        container.get_image()
    except Exception as error:
        reason = error.problem if isinstance(error, GradcamoError) else "its metadata or its array cannot be read"
        raise _unreadable(field, root, reason, error) from error
    return container


def _look(container: Any, field: Field) -> _Look:
    image = container.get_image()
    times = image.dimensions.get("t", default=1)
    if times != 1:
        raise PlateError(
            f"it has {times} time points (axis t)", "Give plates of one time point.",
            plate=field.plate, well=field.well, site=field.site,
        )  # fmt: skip
    size = image.pixel_size
    unit = _MICROMETRES.get(str(size.space_unit), 1.0)
    z, y, x = (round(float(value) * unit, 9) for value in (size.z, size.y, size.x))
    return _Look(tuple(image.channel_labels), (z, y, x))


def _agree(plate: Plate, found: dict[Field, _Look]) -> Plate:
    """Keep the fields that agree with the majority on channels and voxel size."""
    # Names that a writer left out are no disagreement; their number is.
    named = [look.channels for look in found.values() if look.channels != _unnamed(len(look.channels))]
    most = Counter(len(look.channels) for look in found.values()).most_common(1)[0][0]
    channels = Counter(c for c in named if len(c) == most).most_common(1)
    names = channels[0][0] if channels else _unnamed(most)
    voxel = Counter(look.voxel_size for look in found.values() if len(look.channels) == most).most_common(1)[0][0]

    fine: list[Field] = []
    bad = list(plate.bad_fields)
    for field, look in found.items():
        if len(look.channels) != most:
            bad.append(BadField(field, f"it has {len(look.channels)} channels, most fields have {most}"))
        elif look.channels not in (names, _unnamed(most)):
            bad.append(BadField(field, f"its channels are {', '.join(look.channels)}, most have {', '.join(names)}"))
        elif not np.allclose(look.voxel_size, voxel, rtol=1e-3):
            bad.append(BadField(field, f"its voxel size is {look.voxel_size} um, most fields have {voxel}"))
        else:
            fine.append(field)
    return replace(plate, channels=names, voxel_size=voxel, fields=tuple(fine), bad_fields=tuple(bad))


def _unnamed(count: int) -> tuple[str, ...]:
    return tuple(f"channel_{i}" for i in range(count))


def _pixels(image: Any, axes: list[str], field: Field, root: Path, **picked: Any) -> NDArray[Any]:
    for axis, size in zip(image.axes, image.shape, strict=True):
        if axis not in axes and size != 1:
            raise _unreadable(field, root, f"it has {size} planes along axis {axis}, where one was expected")
    one = {axis: 0 for axis in image.axes if axis not in axes}
    try:
        return image.get_as_numpy(axes_order=axes, **one, **picked)
    # Codecs have no error in common: a truncated chunk is a RuntimeError here, a ValueError there.
    except Exception as error:
        raise _unreadable(field, root, "its pixels cannot be read (damaged or truncated file?)", error) from error


def _as_uint16(array: NDArray[Any], field: Field) -> NDArray[np.uint16]:
    if array.dtype in (np.uint16, np.uint8, np.bool_) or not array.size:
        return array.astype(np.uint16, copy=False)
    low, high = array.min(), array.max()
    problem = None
    if not np.isfinite(low) or not np.isfinite(high):
        problem = "its pixels hold NaN or infinity"
    elif low < 0 or high > 65535:
        problem = f"its pixels range from {low:g} to {high:g}"
    elif array.dtype.kind == "f" and 0 < high <= 1:
        problem = "its pixels are fractions of 1"
    elif array.dtype.kind not in "iuf":
        problem = f"its pixels are {array.dtype}"
    if problem:
        raise PlateError(
            f"{problem}, which 16-bit counts cannot hold", "Export the plate as unsigned 16-bit camera counts.",
            plate=field.plate, well=field.well, site=field.site,
        )  # fmt: skip
    return (np.rint(array) if array.dtype.kind == "f" else array).astype(np.uint16)


def _unreadable(field: Field, root: Path, problem: str, error: Exception | None = None) -> PlateError:
    detail = "" if error is None or isinstance(error, GradcamoError) else f": {_in_short(error)}"
    return PlateError(
        problem + detail, _REPAIR, plate=field.plate, well=field.well, site=field.site, path=root / field.path
    )


def _in_short(error: Exception) -> str:
    """The message in one line; those of ngio and pydantic go on for many."""
    text = " ".join(str(error).split()).split(" For further information visit ")[0]
    return text[:240].rstrip(".: ") or type(error).__name__
