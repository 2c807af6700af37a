"""Exports of Opera Phenix and Operetta: ``Index.xml`` as Harmony writes it, versions 5 to 7.

In version 5 each ``Image`` carries its channel's name and resolution; since version 6 they stand in ``Maps/Map/Entry``,
by channel, spread over several maps.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.formats.planes import MAX_PLANES, Export, finish, micrometres, well_at, whole_number
from gradcamo_assets.plates.formats.untrusted import elements

INDEX = ("Index.xml", "Index.idx.xml", "Images/Index.xml", "Images/Index.idx.xml")
_KEYS = ("Row", "Col", "FieldID", "ChannelID", "PlaneID", "URL")
_TEXTS = (*_KEYS, "State", "TimepointID")
_POSITIONS = ("PositionZ", "AbsPositionZ")
_ACQUISITION = {
    "instrument": "InstrumentType", "magnification": "ObjectiveMagnification", "numerical_aperture": "ObjectiveNA",
    "binning": "BinningX", "acquisition": "AcquisitionType", "exposure_s": "ExposureTime",
}  # fmt: skip


def read(folder: Path) -> Export:
    """Read the index, image by image; it may have hundreds of thousands. No TIFF is opened."""
    index = next((path for name in INDEX if (path := folder / name).is_file()), None)
    if index is None:
        raise PlateError("there is no Index.xml", "Export the measurement again.", path=folder)
    rows: list[tuple[str | float | None, ...]] = []
    channels: dict[str, dict[str, Element]] = {}
    plate: dict[str, Element] = {}
    for tag, element in elements(index, "Image", "Entry", "InstrumentType"):
        facts = {child.tag.rpartition("}")[2]: child for child in element}
        if tag == "InstrumentType":
            plate[tag] = element
        elif tag == "Entry":
            channels.setdefault(element.get("ChannelID", "").strip(), {}).update(facts)
        elif "URL" in facts:
            missing = [key for key in _KEYS if key not in facts]
            if missing or len(rows) >= MAX_PLANES:
                problem = f"an image has no {missing[0]}" if missing else f"it names more than {MAX_PLANES} images"
                raise PlateError(problem, "Export the measurement again.", path=index)
            positions = (_micrometres(facts, key, signed=True) for key in _POSITIONS)
            rows.append((*(_text(facts, key) for key in _TEXTS), *positions))
            if not (channel := channels.setdefault(_text(facts, "ChannelID"), {})):
                channel.update(facts)
    schema = dict.fromkeys(_TEXTS, pl.String) | dict.fromkeys(_POSITIONS, pl.Float64)
    images = pl.DataFrame(rows, schema, orient="row")
    if (times := images["TimepointID"].n_unique()) > 1:
        raise PlateError(f"it has {times} time points", "Export one time point a plate.", path=index)
    order = sorted(channels, key=natural_key)
    facts = plate | next((facts for facts in channels.values() if "ImageResolutionX" in facts), {})
    return finish(
        folder, _rows(images, order, index.parent.relative_to(folder)),
        [_text(channels[channel], "ChannelName") or f"channel {channel}" for channel in order],
        format="Operetta", source=index.name,
        voxel_size=(_spacing(images), *(_micrometres(facts, f"ImageResolution{axis}") for axis in "YX")),
        acquisition={name: _text(facts, key) for name, key in _ACQUISITION.items()},
    )  # fmt: skip


def _text(facts: dict[str, Element], key: str) -> str:
    return (facts[key].text or "").strip() if key in facts else ""


def _micrometres(facts: dict[str, Element], key: str, *, signed: bool = False) -> float | None:
    """Harmony's own unit is the metre."""
    return micrometres(_text(facts, key), facts[key].get("Unit", "m"), signed=signed) if key in facts else None


def _rows(images: pl.DataFrame, channels: list[str], place: Path) -> pl.DataFrame:
    numbers = {plane: whole_number(plane, "PlaneID", 0, 10**6) for plane in images["PlaneID"].unique()}
    pairs = images.select("Row", "Col").unique().iter_rows()
    wells = {f"{row} {column}": well_at(row, column) for row, column in pairs}
    url = pl.lit("" if place == Path() else f"{place.as_posix()}/") + pl.col("URL")
    return images.select(
        pl.concat_str("Row", "Col", separator=" ").replace_strict(wells, return_dtype=pl.String).alias("well"),
        pl.col("FieldID").alias("site"),
        pl.col("ChannelID").replace_strict(channels, range(len(channels)), return_dtype=pl.Int32).alias("channel"),
        pl.col("PlaneID").replace_strict(numbers, return_dtype=pl.Int32).alias("z"),
        pl.when(pl.col("State").str.to_lowercase().is_in(["", "ok"])).then(url).alias("file"),
    )


def _spacing(images: pl.DataFrame) -> float | None:
    """The median step within the stacks. Positions are of the stack or, where these are all one, of the stage."""
    planes = images.with_columns(pl.col("PlaneID").cast(pl.Int32)).sort("PlaneID")
    for position in _POSITIONS:
        step = (pl.col(position).diff() / pl.col("PlaneID").diff()).over("Row", "Col", "FieldID", "ChannelID").abs()
        steps = planes.select(step.alias("step")).filter(pl.col("step").is_finite() & (pl.col("step") > 0))
        if steps.height:
            return micrometres(round(steps["step"].median(), 6))  # type: ignore[arg-type]
    return None
