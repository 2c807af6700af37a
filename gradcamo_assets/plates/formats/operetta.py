"""Read exports of Opera Phenix and Operetta: the ``Index.xml`` written by Harmony, versions 5 to 7.

In version 5 each ``Image`` element has the name and resolution of its channel. Since version 6 they are in
``Maps/Map/Entry`` elements, by channel, spread over several maps. Every version has such elements for the flat-field
correction too.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.formats.files import list_names
from gradcamo_assets.plates.formats.planes import (
    MAX_PLANES,
    Export,
    build_export,
    parse_integer,
    well_from_indices,
)
from gradcamo_assets.plates.formats.untrusted import iter_elements
from gradcamo_assets.plates.image_layout import to_micrometres

INDEX = re.compile(r"(?i)index(\.idx|\.ref)?\.xml")
"""The name of the index."""
IMAGES = "Images"
"""The folder of the images and, in most exports, of the index."""
_REQUIRED = ("Row", "Col", "FieldID", "ChannelID", "PlaneID", "URL")
_TEXTS = (*_REQUIRED, "State", "TimepointID")
_POSITIONS = ("PositionZ", "AbsPositionZ")
_ACQUISITION = {
    "instrument": "InstrumentType", "magnification": "ObjectiveMagnification", "numerical_aperture": "ObjectiveNA",
    "binning": "BinningX", "acquisition": "AcquisitionType", "exposure_s": "ExposureTime",
}  # fmt: skip


def read(folder: Path) -> Export:
    """Read the index element by element, since it may list hundreds of thousands of images. No TIFF is opened."""
    index = _find_index(folder)
    rows: list[tuple[str | float | None, ...]] = []
    channels: dict[str, dict[str, Element]] = {}
    plate: dict[str, Element] = {}
    for tag, element in iter_elements(index, "Image", "Entry", "InstrumentType"):
        values = {child.tag.rpartition("}")[2]: child for child in element}
        if tag == "InstrumentType":
            plate[tag] = element
        elif tag == "Entry":
            channels.setdefault(element.get("ChannelID", "").strip(), {}).update(values)
        elif "URL" in values:
            missing = [key for key in _REQUIRED if key not in values]
            if missing or len(rows) >= MAX_PLANES:
                problem = f"an image has no {missing[0]}" if missing else f"it lists more than {MAX_PLANES} images"
                raise PlateError(problem, "Export the measurement again.", path=index)
            positions = (_get_micrometres(values, key, signed=True) for key in _POSITIONS)
            rows.append((*(_get_text(values, key) for key in _TEXTS), *positions))
            channel = channels.setdefault(_get_text(values, "ChannelID"), {})
            if not channel.keys() >= values.keys():
                channel |= values | channel
    schema = dict.fromkeys(_TEXTS, pl.String) | dict.fromkeys(_POSITIONS, pl.Float64)
    images = pl.DataFrame(rows, schema, orient="row")
    if (times := images["TimepointID"].n_unique()) > 1:
        raise PlateError(f"it has {times} time points, expected 1", "Export a single time point.", path=index)
    order = sorted(channels, key=natural_key)
    metadata = plate | next((values for values in channels.values() if "ImageResolutionX" in values), {})
    pixel_size = (_get_micrometres(metadata, f"ImageResolution{axis}") for axis in "YX")
    return build_export(
        folder,
        _plane_rows(images, order, _image_folder(index, images).relative_to(folder)),
        channels=[_get_text(channels[channel], "ChannelName") or f"channel {channel}" for channel in order],
        format="Operetta",
        source=index.name,
        voxel_size=(_median_z_step(images), *pixel_size),
        acquisition={name: _get_text(metadata, key) for name, key in _ACQUISITION.items()},
    )


def _find_index(folder: Path) -> Path:
    for parent in (folder, folder / IMAGES):
        if indices := [name for name in list_names(parent) if INDEX.fullmatch(name)]:
            return parent / min(indices, key=len)
    raise PlateError("there is no Index.xml", "Export the measurement again.", path=folder)


def _image_folder(index: Path, images: pl.DataFrame) -> Path:
    """The folder of the index, or ``Images`` in it if the index was moved up from there."""
    beside = index.parent / IMAGES
    return beside if images["URL"].is_in(list_names(beside)).any() else index.parent


def _get_text(values: dict[str, Element], key: str) -> str:
    return (values[key].text or "").strip() if key in values else ""


def _get_micrometres(values: dict[str, Element], key: str, *, signed: bool = False) -> float | None:
    """Harmony's default unit is the metre."""
    if key not in values:
        return None
    return to_micrometres(_get_text(values, key), values[key].get("Unit", "m"), signed=signed)


def _plane_rows(images: pl.DataFrame, channels: list[str], image_folder: Path) -> pl.DataFrame:
    numbers = {plane: parse_integer(plane, "PlaneID", 0, 10**6) for plane in images["PlaneID"].unique()}
    pairs = images.select("Row", "Col").unique().iter_rows()
    wells = {f"{row} {column}": well_from_indices(row, column) for row, column in pairs}
    url = pl.lit("" if image_folder == Path() else f"{image_folder.as_posix()}/") + pl.col("URL")
    return images.select(
        pl.concat_str("Row", "Col", separator=" ").replace_strict(wells, return_dtype=pl.String).alias("well"),
        pl.col("FieldID").alias("site"),
        pl.col("ChannelID").replace_strict(channels, range(len(channels)), return_dtype=pl.Int32).alias("channel"),
        pl.col("PlaneID").replace_strict(numbers, return_dtype=pl.Int32).alias("z"),
        pl.when(pl.col("State").str.to_lowercase().is_in(["", "ok"])).then(url).alias("file"),
    )


def _median_z_step(images: pl.DataFrame) -> float | None:
    """Median z step within stacks, from relative positions or, if these are all equal, absolute stage positions."""
    planes = images.with_columns(pl.col("PlaneID").cast(pl.Int32)).sort("PlaneID")
    for position in _POSITIONS:
        step = (pl.col(position).diff() / pl.col("PlaneID").diff()).over("Row", "Col", "FieldID", "ChannelID").abs()
        steps = planes.select(step.alias("step")).filter(pl.col("step").is_finite() & (pl.col("step") > 0))
        if steps.height:
            return to_micrometres(round(steps["step"].median(), 6))  # type: ignore[arg-type]
    return None
