"""Reading OME-Zarr HCS plates (NGFF 0.4 and 0.5, of any writer): which fields there are, and their pixels.

Nothing here writes. Parsing is ngio's, imported where it is used since that takes seconds; here its findings are
checked, because names from a plate become paths.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.names import check_name, check_plate_name, natural_key, normalise_well_name
from gradcamo_assets.plates.illumination import correct_illumination
from gradcamo_assets.plates.image_quality import PixelDigest
from gradcamo_assets.provenance import digest

_WELL_PATH = re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9]+")
_MICRONS = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
_LONGEST, _MOST_VOXELS = 2**17, 2**33
"""An axis and a field of pixels beyond these are no images; they would fill the memory."""
_OUT_OF_REACH = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
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
class Plate:
    """A plate whose metadata was read. ``voxel_size`` is (z, y, x) in micrometres, 1.0 where the plate gives none.

    ``bad_fields``: those that cannot be used, and why. A well of which nothing can be read is one bad field, site 1,
    whose path is the well's. ``illumination``: the file by which pixels are corrected as they are read, and
    ``camera_offset``, in counts, what of them is no light; None: pixels are read as they are. ``image_versions``: of
    the pixels that were taken in, and ``version``, of all that ingestion found; both are empty before ingestion.
    """

    name: str
    path: Path
    ngff_version: str
    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    fields: tuple[Field, ...]
    bad_fields: dict[Field, str]
    illumination: Path | None = None
    camera_offset: float = 0.0
    image_versions: dict[Field, str] = field(default_factory=dict)
    version: str = ""


class _Look(NamedTuple):
    """What a field must share with its plate."""

    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]


def name_of(path: Path) -> str:
    """The plate's name: that of its folder, less ``.zarr`` or ``.ome.zarr``, spaces (Harmony's) as underscores.

    Raises:
        PlateError: where it is no usable name.
    """
    return check_plate_name(path.name.removesuffix(".zarr").removesuffix(".ome").replace(" ", "_"))


def open_plate(path: Path) -> Plate:
    """Read a plate's metadata and that of all its fields, no pixels.

    Bad fields: those whose metadata cannot be read, that differ from most in channels or voxel size, and wells without
    metadata.

    Raises:
        PlateError: no OME-Zarr plate, a well path that is none, two paths for one well, no usable field.
    """
    import ngio

    name = name_of(path)
    found: dict[Field, _Look] = {}
    bad: dict[Field, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            meta = ngio.open_ome_zarr_plate(str(path), mode="r").meta.plate
        except Exception as error:
            remedy = "Give a folder with HCS plate metadata, NGFF 0.4 (.zgroup and .zattrs) or 0.5 (zarr.json)."
            raise PlateError(f"no OME-Zarr plate: {_in_short(error)}", remedy, plate=name, path=path) from error
        for well, well_path in _wells(name, [str(well.path) for well in meta.wells]).items():
            try:
                fields = _fields(name, well, well_path, path)
            except GradcamoError as error:
                bad[Field(name, well, 1, well_path)] = error.problem
                continue
            for field in fields:
                try:
                    found[field] = _look(path, field)
                except PlateError as error:
                    bad[field] = error.problem
    if not found:
        first = next((f": {field.path}: {reason}" for field, reason in bad.items()), "")
        raise PlateError(f"none of its {len(bad)} listed fields can be read{first}", _REPAIR, plate=name, path=path)
    shared = _majority(list(found.values()))
    bad |= {field: reason for field, look in found.items() if (reason := _difference(look, shared)) is not None}
    return Plate(name, path, str(meta.version), *shared, tuple(field for field in found if field not in bad), bad)


def read_field(plate: Plate, field: Field) -> NDArray[np.uint16]:
    """Pixels at full resolution, (C, Z, Y, X) uint16, whatever the order of the stored axes.

    Other number types are converted where every value survives, fractions of counts being rounded.

    Raises:
        PlateError: unreadable data, several time points, values that 16 bits cannot hold, or, of an ingested plate,
            other pixels than were taken in: a damaged file, or a plate that is being replaced.
    """
    image = _open_field(plate.path, field)
    with _reading(plate.path, field, "its pixels cannot be read (damaged or truncated file?)"):
        array = as_counts(_pixels(image, ["c", "z", "y", "x"]))
        # A chunk that is not there reads as zeros, which no error tells.
        if plate.image_versions.get(field, version := image_version(array)) != version:
            raise PlateError("its pixels are not those that were taken in", "Ingest the plate again.")
    if plate.illumination is None:
        return array
    light = np.load(plate.illumination, allow_pickle=False)
    stacks = zip(array, light, strict=True)
    return np.stack([correct_illumination(stack, of_channel, plate.camera_offset) for stack, of_channel in stacks])


def image_version(array: NDArray[np.uint16]) -> str:
    """The version of a field's raw pixels, (C, Z, Y, X): equal for equal pixels, whoever wrote their files."""
    pixels = PixelDigest()
    for stack in array:
        pixels.add(stack)
    return pixels.version


def field_version(plate: Plate, field: Field) -> str:
    """The version of a field of an ingested plate as ``read_field`` gives it: of its pixels, of the light they are read
    under, of its channels' names and its voxel size. No pixel is read."""
    light = None
    if plate.illumination is not None:
        light = plate.illumination.read_bytes().hex(), plate.camera_offset
    return digest([plate.image_versions[field], light, plate.channels, plate.voxel_size])


def as_counts(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Camera counts of any number type as uint16, fractions of counts being rounded.

    Raises:
        PlateError: where a value does not survive (NaN, negative, above 65535, fractions of 1); it names no place.
    """
    if array.dtype in (np.uint16, np.uint8, np.bool_) or not array.size:
        return array.astype(np.uint16, copy=False)
    low, high = array.min(), array.max()
    problem = None
    if array.dtype.kind not in "iuf":
        problem = f"its pixels are {array.dtype}"
    elif not np.isfinite(low) or not np.isfinite(high):
        problem = "its pixels hold NaN or infinity"
    elif low < 0 or high > 65535:
        problem = f"its pixels range from {low:g} to {high:g}"
    elif array.dtype.kind == "f" and 0 < high <= 1:
        problem = "its pixels are fractions of 1"
    if problem:
        remedy = "Export the plate as unsigned 16-bit camera counts."
        raise PlateError(f"{problem}, which 16-bit counts cannot hold", remedy)
    return np.rint(array).astype(np.uint16)


def read_label(plate: Plate, field: Field, name: str) -> NDArray[np.uint32] | None:
    """The label image ``name`` of a field at full resolution, (Z, Y, X) uint32, or None where the field has none.

    Raises:
        PlateError: where it is there but cannot be read.
    """
    import ngio

    # Not through the list of labels: ome-zarr 0.18 writes one in NGFF 0.5 that ngio refuses.
    folder = plate.path / field.path / "labels" / check_name(name, "label name")
    if not folder.is_dir():
        return None
    with _reading(plate.path, field, f"its label {name!r} cannot be read"):
        array = _pixels(ngio.open_label(str(folder), mode="r"), ["z", "y", "x"])
        if array.size and (array.min() < 0 or array.max() > np.iinfo(np.uint32).max):
            raise PlateError(f"its label {name!r} holds values that are no labels", _REPAIR)
    return array.astype(np.uint32)


@contextmanager
def _reading(root: Path, field: Field, problem: str) -> Iterator[None]:
    """What fails inside is an error of the field: ours gets its place, any other is the ``problem``."""
    place: dict[str, Any] = {"plate": field.plate, "well": field.well, "site": field.site, "path": root / field.path}
    try:
        yield
    except GradcamoError as error:
        raise error.at(PlateError, **place) from error
    # ngio and codecs have no error in common: a truncated chunk is a RuntimeError here, a ValueError there.
    except Exception as error:
        if out_of_reach(error):
            raise
        raise PlateError(f"{problem}: {_in_short(error)}", _REPAIR, **place) from error


def out_of_reach(error: Exception) -> bool:
    """Whether a disk or a share failed rather than the data on it: that is no reason to give up a field for good."""
    return isinstance(error, OSError) and error.errno in _OUT_OF_REACH


def _wells(plate: str, paths: Sequence[str]) -> dict[str, str]:
    """Well name to well path, checked, in plate order."""
    wells: dict[str, str] = {}
    for path in sorted(paths, key=natural_key):
        if not _WELL_PATH.fullmatch(path):
            raise PlateError(f"{path!r} is no path of a well", "Well paths must look like B/03.", plate=plate)
        well = normalise_well_name(path.replace("/", ""))
        if wells.setdefault(well, path) != path:
            problem = f"both {wells[well]!r} and {path!r} are well {well}"
            raise PlateError(problem, "List every well once.", plate=plate, well=well)
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
    checked = enumerate((check_name(path, "field path") for path in paths), start=1)
    return [Field(plate, well, site, f"{well_path}/{path}") for site, path in checked]


def _open_field(root: Path, field: Field) -> Any:
    """The ngio image of a field at full resolution, its array paths and shapes checked."""
    import ngio
    import zarr

    with _reading(root, field, "its metadata or its array cannot be read"):
        container = ngio.open_ome_zarr_container(str(root / field.path), mode="r", validate_arrays=False)
        for part in "/".join(map(str, container.level_paths)).split("/"):
            check_name(part, "array path")
        image = container.get_image()
        for level in container.level_paths:
            if (axes := zarr.open_array(root / field.path / level, mode="r").ndim) != len(image.shape):
                raise PlateError(f"its level {level} has {axes} axes, the image {len(image.shape)}", _REPAIR)
        if max(image.shape) > _LONGEST or math.prod(image.shape) > _MOST_VOXELS:
            raise PlateError(f"it claims the shape {image.shape}", _REPAIR)
        if (times := image.dimensions.get("t", default=1)) != 1:
            raise PlateError(f"it has {times} time points (axis t)", _REPAIR)
    return image


def _look(root: Path, field: Field) -> _Look:
    image = _open_field(root, field)
    size = image.pixel_size
    unit = _MICRONS.get(str(size.space_unit), 1)
    z, y, x = (round(float(value) * unit, 9) for value in (size.z, size.y, size.x))
    return _Look(tuple(image.channel_labels), (z, y, x))


def _majority(looks: list[_Look]) -> _Look:
    count = mode(len(look.channels) for look in looks)
    names = [look.channels for look in looks if len(look.channels) == count]
    named = [channels for channels in names if channels != _unnamed(count)]
    return _Look(mode(named or names), mode(look.voxel_size for look in looks if len(look.channels) == count))


def _difference(look: _Look, shared: _Look) -> str | None:
    """How a field differs from the others. Channel names that a writer left out are no difference."""
    count = len(shared.channels)
    if len(look.channels) != count:
        return f"it has {len(look.channels)} channels, most fields have {count}"
    if look.channels not in (shared.channels, _unnamed(count)):
        return f"its channels are {', '.join(look.channels)}, most have {', '.join(shared.channels)}"
    if not np.allclose(look.voxel_size, shared.voxel_size, rtol=1e-3):
        return f"its voxel size is {look.voxel_size} um, most fields have {shared.voxel_size}"
    return None


def _unnamed(count: int) -> tuple[str, ...]:
    """What ngio calls channels without names."""
    return tuple(f"channel_{i}" for i in range(count))


def _pixels(image: Any, axes: list[str]) -> NDArray[Any]:
    for axis, size in zip(image.axes, image.shape, strict=True):
        if axis not in axes and size != 1:
            raise PlateError(f"it has {size} planes along axis {axis}, where one was expected", _REPAIR)
    return image.get_as_numpy(axes_order=axes, **{axis: 0 for axis in image.axes if axis not in axes})


def _in_short(error: Exception) -> str:
    """The message in one line; those of ngio and pydantic go on for many."""
    text = " ".join(str(error).split()).split(" For further information visit ")[0]
    return text[:240].rstrip(".: ") or type(error).__name__
