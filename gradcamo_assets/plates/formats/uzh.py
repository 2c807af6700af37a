"""ScanR, CellVoyager (CV7000, CV8000), CQ3K and ImageXpress HCS.ai: parsed by fractal-uzh-converters.

Its parsers trust what they read. So XML is screened before, and all that comes out is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats.configuration import configuration_of
from gradcamo_assets.plates.formats.planes import ROWS, Export, finish, micrometres, whole_number
from gradcamo_assets.plates.formats.untrusted import elements
from gradcamo_assets.plates.omezarr import name_of

YOKOGAWA = ("MeasurementData.mlf", "MeasurementDetail.mrf")
SCANR = "data/metadata.ome.xml"
_DAMAGED = "Export the plate again."


def read_yokogawa(folder: Path) -> Export:
    """Read CellVoyager or CQ3K. Their metadata do not name channels: these are C01, C02, as in the files' names."""
    from fractal_uzh_converters.cellvoyager import _utils as cellvoyager
    from fractal_uzh_converters.cq3k import _utils as cq3k

    data, detail = (folder / name for name in YOKOGAWA)
    for record in _attributes(data, "MeasurementRecord"):
        whole_number(record.get("Row"), "a record's Row", 1, 26)
    channels = list(_attributes(detail, "MeasurementChannel"))
    numbers = sorted({whole_number(channel.get("Ch"), "a channel's Ch", 1, 99) for channel in channels})
    names = {number: f"C{number:02d}" for number in numbers}
    if any("ObjectiveMagnificationRatio" in channel for channel in channels):
        return _read(folder, "CQ3K", data.name, cq3k.parse_cq3k_metadata, cq3k.CQ3KAcquisitionModel, names)
    model = cellvoyager.CellVoyagerAcquisitionModel
    return _read(folder, "CellVoyager", data.name, cellvoyager.parse_cellvoyager_metadata, model, names)


def read_scanr(folder: Path) -> Export:
    """Read ScanR, which numbers wells through: the plate's size is the configuration's, or 96 wells, or 384 if need be.

    Raises:
        PlateError: damaged or hostile metadata, several time points.
    """
    from fractal_uzh_converters.scanr import _utils as scanr

    wells = [
        whole_number(match[1], "the number of a well", 1, 384)
        for image in _attributes(folder / SCANR, "Image")
        if (match := re.search("W([0-9]+)P[0-9]+", image.get("ID", "")))
    ]
    given = configuration_of(folder).wells
    size = given or (96 if max(wells, default=1) <= 96 else 384)
    guessed = f"the plate is taken for one of {size} wells; if not so, give wells in {name_of(folder)}.toml beside it"
    parse, model = scanr.parse_scanr_metadata, scanr.ScanRAcquisitionModel
    return _read(folder, "ScanR", SCANR, parse, model, None, [] if given else [guessed], layout=f"{size}-well")


def read_hcs_ai(folder: Path) -> Export:
    """Read the export of ImageXpress HCS.ai: the stacks where there are any."""
    from fractal_uzh_converters.imagexpress_hcs import _utils as hcs_ai

    for path in folder.glob("experiment*/*.csv"):
        table = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True)
        for row in table["Row"].unique() if "Row" in table.columns else []:
            whole_number(row, "Row", 1, 26)
    model = hcs_ai.MDImageXpressHCSaiAcquisitionModel
    return _read(folder, "ImageXpress HCS.ai", "the table", hcs_ai.parse_md_metadata, model, None)


def _attributes(path: Path, tag: str) -> Iterator[dict[str, str]]:
    """The attributes of a screened file's elements, less namespaces."""
    for _, element in elements(path, tag):
        yield {key.rpartition("}")[2]: value for key, value in element.attrib.items()}


def _read(
    folder: Path, format: str, source: str, parse: Callable[..., Any], model: Any, names: dict[int, str] | None,
    problems: Sequence[str] = (), **options: Any,
) -> Export:  # fmt: skip
    """``names``: of channels by their number, where the parser knows none."""
    from ome_zarr_converters_tools.models import ConverterOptions, NoTiling

    root = folder.absolute().as_posix()
    # The parsers open the first image to learn its type, wherever it lies, unless they are told one.
    advanced = model.model_fields["advanced"].default_factory(data_type="uint16")
    try:
        acquisition = model(path=root, plate_name="plate", advanced=advanced, **options)
        images = parse(acquisition_model=acquisition, converter_options=ConverterOptions(tiling_strategy=NoTiling()))
    # Pydantic's and the parsers' own errors have nothing in common.
    except Exception as error:
        problem = f"its metadata cannot be read as {format}'s: {' '.join(str(error).split())[:300]}"
        raise PlateError(problem, _DAMAGED, path=folder) from error
    names = names or dict(enumerate(channel.channel_label for channel in images[0].channels or []))
    order: dict[float, int] = {number: index for index, number in enumerate(names)}
    rows: list[tuple[str, str, int, int | None, str]] = []
    for image in images:
        if "t" in image.axes:
            raise PlateError("it has several time points", "Export one time point a plate.")
        for region in image.regions:
            at, file = _place(region), region.image_loader.file_path
            if not file.startswith(f"{root}/"):
                raise PlateError(f"{file[:200]!r} is outside the plate's folder", _DAMAGED)
            if at["c"] not in order:
                raise PlateError(f"there is no channel {at['c']}", _DAMAGED)
            z = None if image.collection.plate_name != "plate" else round(at["z"] / image.z_spacing)
            site = region.roi.name.rpartition("_")[2]
            rows.append((image.collection.well, site, order[at["c"]], z, file.removeprefix(f"{root}/")))
    # Of a single plane the parsers say that its step is 1.
    stacks = [image for image in images if len({_place(region)["z"] for region in image.regions}) > 1]
    pixel, z_step = micrometres(images[0].pixelsize), median([image.z_spacing for image in stacks] or [0])
    return finish(
        folder, pl.DataFrame(rows, ROWS, orient="row"), list(names.values()), format=format, source=source,
        problems=problems, voxel_size=(micrometres(round(z_step, 6)), pixel, pixel),
    )  # fmt: skip


def _place(region: Any) -> dict[str, float]:
    return {axis.axis_name: axis.start for axis in region.roi.slices}
