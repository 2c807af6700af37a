"""Read OME-Zarr HCS plates (NGFF 0.4 and 0.5, from any writer): fields, pixels and label images.

This module never writes. ngio parses the metadata; it takes seconds to import, so it is imported where it is used. Its
results are checked here, because names from a plate become paths.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError, one_line
from gradcamo_assets.local_copies import fetch_file, fetch_tree, temporary_copies
from gradcamo_assets.names import check_name, check_plate_name, natural_key, normalise_well_name
from gradcamo_assets.plates import image_layout
from gradcamo_assets.plates.counts import as_counts, first_fraction
from gradcamo_assets.plates.illumination import correct_illumination
from gradcamo_assets.plates.image_quality import PixelDigest
from gradcamo_assets.plates.missing_chunks import check_chunks
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import read_bytes
from gradcamo_assets.storage_errors import is_storage_failure

_WELL_PATH = re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9]+")
_MAX_AXIS_LENGTH, _MAX_VOXELS = 2**17, 2**33
"""Limits of a plausible field. A larger claimed shape would exhaust the memory."""
_REPAIR = "Repair it, or export the plate again."


@dataclass(frozen=True)
class Field:
    """One site of one well.

    Attributes:
        site: 1-based, in natural order of the paths within the well.
        path: relative to the plate's folder, for example ``B/03/0``.
    """

    plate: str
    well: str
    site: int
    path: str


@dataclass(frozen=True)
class Plate:
    """A plate whose metadata has been read.

    Attributes:
        voxel_size: (z, y, x) in micrometres, None where nobody states it; a single slice needs no z.
        bad_fields: fields that cannot be used, and why. An unreadable well counts as one bad field, site 1, with the
            path of the well.
        illumination: the file used to correct pixels as they are read; None leaves pixels as they are.
        camera_offset: camera counts in the dark, which the correction leaves out.
        image_versions: versions of the ingested pixels; empty before ingestion.
        version: version of everything ingestion recorded; empty before ingestion.
    """

    name: str
    path: Path
    ngff_version: str
    channels: tuple[str, ...]
    voxel_size: image_layout.VoxelSize
    fields: tuple[Field, ...]
    bad_fields: dict[Field, str]
    illumination: Path | None = None
    camera_offset: float = 0.0
    image_versions: dict[Field, str] = field(default_factory=dict)
    version: str = ""


def plate_name_of(path: Path) -> str:
    """Derive the plate name from a folder: strip ``.zarr`` or ``.ome.zarr``, replace spaces (Harmony) by underscores.

    Raises:
        PlateError: the result is not a valid plate name.
    """
    return check_plate_name(path.name.removesuffix(".zarr").removesuffix(".ome").replace(" ", "_"))


def open_plate(path: Path) -> Plate:
    """Read the metadata of a plate and of all its fields, without pixels.

    A field is bad if its metadata cannot be read or if its channels or voxel size differ from most fields. A well
    without metadata is one bad field.

    Raises:
        PlateError: not an OME-Zarr plate, an invalid well path, two paths for one well, or no usable field.
    """
    import ngio

    name = plate_name_of(path)
    layouts: dict[Field, image_layout.ImageLayout] = {}
    bad: dict[Field, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            meta = ngio.open_ome_zarr_plate(str(path), mode="r").meta.plate
        except Exception as error:
            remedy = "Give a folder with HCS plate metadata, NGFF 0.4 (.zgroup and .zattrs) or 0.5 (zarr.json)."
            raise PlateError(f"not an OME-Zarr plate: {one_line(error)}", remedy, plate=name, path=path) from error
        for well, well_path in _wells(name, [str(well.path) for well in meta.wells]).items():
            try:
                fields = _fields(name, well, well_path, path)
            except GradcamoError as error:
                bad[Field(name, well, 1, well_path)] = error.problem
                continue
            for field in fields:
                try:
                    image, meta = _open_field(path, field)
                    with _reading(path, field, "its metadata cannot be read"):
                        layouts[field] = image_layout.read_layout(path / field.path, image, meta)
                except PlateError as error:
                    bad[field] = error.problem
    if not layouts:
        first = next((f": {field.path}: {reason}" for field, reason in bad.items()), "")
        raise PlateError(f"none of its {len(bad)} listed fields can be read{first}", _REPAIR, plate=name, path=path)
    shared = image_layout.most_common_layout(list(layouts.values()))
    for field, layout in layouts.items():
        if (reason := image_layout.describe_difference(layout, shared)) is not None:
            bad[field] = reason
    return Plate(
        name=name,
        path=path,
        ngff_version=str(meta.version),
        channels=shared.channels,
        voxel_size=shared.voxel_size,
        fields=tuple(field for field in layouts if field not in bad),
        bad_fields=bad,
    )


def read_field(plate: Plate, field: Field) -> NDArray[np.uint16]:
    """Read the pixels of a field at full resolution as (C, Z, Y, X) uint16, for any stored order of axes.

    Other number types are converted if 16 bits can hold every value.

    Raises:
        PlateError: unreadable data, several time points, values that 16 bits cannot hold, or pixels that differ from
            those that were ingested (a damaged file, or a plate that is being replaced).
    """
    with temporary_copies():
        fetch_tree(plate.path / field.path)
        image, _ = _open_field(plate.path, field)
        with _reading(plate.path, field, "its pixels cannot be read (damaged or truncated file?)"):
            array = as_counts(_read_pixels(image, ["c", "z", "y", "x"]))
    with _reading(plate.path, field, "its pixels cannot be read (damaged or truncated file?)"):
        if plate.image_versions.get(field, version := image_version(array)) != version:
            raise PlateError("its pixels differ from those that were ingested", "Ingest the plate again.")
    if plate.illumination is None:
        return array
    illumination = np.load(fetch_file(plate.illumination), allow_pickle=False)
    corrected = [
        correct_illumination(stack, channel_illumination, plate.camera_offset)
        for stack, channel_illumination in zip(array, illumination, strict=True)
    ]
    return np.stack(corrected)


def check_field(plate: Plate, field: Field) -> str | None:
    """Check that no chunk of a field was lost, as described in ``check_chunks``.

    Returns:
        what a user should know about missing chunks, or None.

    Raises:
        PlateError: chunks were lost.
    """
    image, meta = _open_field(plate.path, field)
    axes, coarser = meta.axes_handler.axes_names, [path for path in meta.paths if path != image.path]
    channel_axis = axes.index("c") if "c" in axes else None
    with _reading(plate.path, field, "its chunks cannot be checked"):
        return check_chunks(plate.path / field.path, image.path, coarser, channel_axis)


def image_version(array: NDArray[np.uint16]) -> str:
    """Version of a field's raw pixels, (C, Z, Y, X). Equal pixels have equal versions, whichever program wrote them."""
    pixels = PixelDigest()
    for stack in array:
        pixels.add(stack)
    return pixels.version


def field_version(plate: Plate, field: Field) -> str:
    """Version of a field of an ingested plate as ``read_field`` returns it.

    It covers the pixels, the illumination correction, the channel names and the voxel size. No pixel is read.
    """
    correction = None
    if plate.illumination is not None:
        correction = (read_bytes(plate.illumination) or b"").hex(), plate.camera_offset
    return digest([plate.image_versions[field], correction, plate.channels, plate.voxel_size])


def read_label(plate: Plate, field: Field, name: str) -> NDArray[np.uint32] | None:
    """Read the label image ``name`` of a field at full resolution, (Z, Y, X) uint32; None if the field has none.

    Raises:
        PlateError: the label image exists but cannot be read.
    """
    import ngio

    # Do not look the name up in the list of labels: ome-zarr 0.18 writes an NGFF 0.5 list that ngio rejects.
    folder = plate.path / field.path / "labels" / check_name(name, "label name")
    with temporary_copies():
        fetch_tree(folder)
        if not folder.is_dir():
            return None
        with _reading(plate.path, field, f"its label {name!r} cannot be read"):
            array = _read_pixels(ngio.open_label(str(folder), mode="r"), ["z", "y", "x"])
            if array.size and not (array.min() >= 0 and array.max() <= np.iinfo(np.uint32).max):
                raise PlateError(f"its label {name!r} contains values outside the range of labels (uint32)", _REPAIR)
            if (fraction := first_fraction(array)) is not None:
                raise PlateError(
                    f"its label {name!r} contains values that are not whole numbers ({fraction:g})", _REPAIR
                )
    return array.astype(np.uint32)


@contextmanager
def _reading(root: Path, field: Field, problem: str) -> Iterator[None]:
    """Turn exceptions of the body into a ``PlateError`` of the field; ``problem`` describes errors of libraries."""
    place: dict[str, Any] = {"plate": field.plate, "well": field.well, "site": field.site, "path": root / field.path}
    try:
        yield
    except GradcamoError as error:
        raise error.at(PlateError, **place) from error
    # ngio and the codecs share no error class: a truncated chunk may raise RuntimeError or ValueError.
    except Exception as error:
        if is_storage_failure(error):
            raise
        raise PlateError(f"{problem}: {one_line(error)}", _REPAIR, **place) from error


def _wells(plate: str, paths: Sequence[str]) -> dict[str, str]:
    """Checked well paths by well name, in plate order."""
    wells: dict[str, str] = {}
    for path in sorted(paths, key=natural_key):
        if not _WELL_PATH.fullmatch(path):
            raise PlateError(f"{path!r} is not a well path", "Well paths must look like B/03.", plate=plate)
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
        problem = f"well {well} has no readable metadata (a list of its images)"
        raise PlateError(problem, "Add the metadata, or export the plate again.") from error
    paths = sorted({str(image.path) for image in images}, key=natural_key)
    if not paths:
        raise PlateError(f"well {well} lists no images", "List its images, or export the plate again.")
    checked = enumerate((check_name(path, "field path") for path in paths), start=1)
    return [Field(plate, well, site, f"{well_path}/{path}") for site, path in checked]


def _open_field(root: Path, field: Field) -> tuple[Any, Any]:
    """Open the ngio image of a field at full resolution, after checking its array paths and shapes.

    Returns:
        The image and its metadata. ngio parses the metadata again for most properties of the image.
    """
    import ngio
    import zarr

    with _reading(root, field, "its metadata or its array cannot be read"):
        container = ngio.open_ome_zarr_container(str(root / field.path), mode="r", validate_arrays=False)
        meta = container.meta
        for part in "/".join(map(str, meta.paths)).split("/"):
            check_name(part, "array path")
        image = container.get_image()
        shape, axes = image.shape, meta.axes_handler.axes_names
        for level in meta.paths:
            if (dimensions := zarr.open_array(root / field.path / level, mode="r").ndim) != len(axes):
                raise PlateError(f"its level {level} has {dimensions} axes, the image has {len(axes)}", _REPAIR)
        if max(shape) > _MAX_AXIS_LENGTH or not 0 < math.prod(shape) <= _MAX_VOXELS:
            raise PlateError(f"its metadata claim an implausible shape, {shape}", _REPAIR)
        if (times := dict(zip(axes, shape, strict=True)).get("t", 1)) != 1:
            raise PlateError(f"it has {times} time points (axis t)", _REPAIR)
    return image, meta


def _read_pixels(image: Any, axes: list[str]) -> NDArray[Any]:
    stored_axes = image.axes
    for axis, size in zip(stored_axes, image.shape, strict=True):
        if axis not in axes and size != 1:
            raise PlateError(f"it has {size} planes along axis {axis}, expected 1", _REPAIR)
    return image.get_as_numpy(axes_order=axes, **{axis: 0 for axis in stored_axes if axis not in axes})
