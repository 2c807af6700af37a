"""Read ScanR, CellVoyager (CV7000, CV8000), CQ3K and ImageXpress HCS.ai exports with fractal-uzh-converters.

Its parsers trust their input, so XML is checked before they run and all their results are checked afterwards.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from gradcamo_assets.errors import PlateError, one_line
from gradcamo_assets.plates.formats.configuration import read_configuration
from gradcamo_assets.plates.formats.files import list_names
from gradcamo_assets.plates.formats.planes import ROW_SCHEMA, Export, build_export, parse_integer
from gradcamo_assets.plates.formats.untrusted import iter_elements
from gradcamo_assets.plates.image_layout import to_micrometres
from gradcamo_assets.plates.omezarr import plate_name_of

YOKOGAWA = ("MeasurementData.mlf", "MeasurementDetail.mrf")
SCANR = "data/metadata.ome.xml"
_REMEDY = "Export the plate again."


def read_yokogawa(folder: Path) -> Export:
    """Read CellVoyager or CQ3K. Their metadata lack channel names, so channels are C01, C02, ... as in file names."""
    from fractal_uzh_converters.cellvoyager import _utils as cellvoyager
    from fractal_uzh_converters.cq3k import _utils as cq3k

    data, detail = (folder / name for name in YOKOGAWA)
    for record in _iter_attributes(data, "MeasurementRecord"):
        parse_integer(record.get("Row"), "a record's Row", 1, 26)
    channels = list(_iter_attributes(detail, "MeasurementChannel"))
    numbers = sorted({parse_integer(channel.get("Ch"), "a channel's Ch", 1, 99) for channel in channels})
    names = {number: f"C{number:02d}" for number in numbers}
    if any("ObjectiveMagnificationRatio" in channel for channel in channels):
        # A CV8000 writes the files of a CQ3K.
        system = next(_iter_attributes(detail, "MeasurementDetail"), {}).get("TargetSystem", "")
        format = "CellVoyager" if system.startswith("CV") else "CQ3K"
        return _read(folder, format, data.name, cq3k.parse_cq3k_metadata, cq3k.CQ3KAcquisitionModel, names)
    model = cellvoyager.CellVoyagerAcquisitionModel
    return _read(folder, "CellVoyager", data.name, cellvoyager.parse_cellvoyager_metadata, model, names)


def read_scanr(folder: Path) -> Export:
    """Read ScanR, which numbers wells consecutively.

    The configuration gives the number of wells; without it, a plate has 96 wells, or 384 if a well number is higher.

    Raises:
        PlateError: damaged or malicious metadata, or several time points.
    """
    from fractal_uzh_converters.scanr import _utils as scanr

    wells = [
        parse_integer(match[1], "the number of a well", 1, 384)
        for image in _iter_attributes(folder / SCANR, "Image")
        if (match := re.search("W([0-9]+)P[0-9]+", image.get("ID", "")))
    ]
    configured_size = read_configuration(folder).wells
    size = configured_size or (96 if max(wells, default=1) <= 96 else 384)
    problems = []
    if configured_size is None:
        configuration = f"{plate_name_of(folder)}.toml"
        problems.append(f"the plate is assumed to have {size} wells; if it has not, give wells in {configuration}")
    parse, model = scanr.parse_scanr_metadata, scanr.ScanRAcquisitionModel
    # The parser reports 1 where no size is stated, and ignores the unit.
    pixels = next(_iter_attributes(folder / SCANR, "Pixels"), {})
    sizes = [f"PhysicalSize{axis}" for axis in "YX"]
    pixel_size = [to_micrometres(pixels.get(size), pixels.get(f"{size}Unit", "µm")) for size in sizes]
    return _read(folder, "ScanR", SCANR, parse, model, None, problems, pixel_size=pixel_size, layout=f"{size}-well")


def read_hcs_ai(folder: Path) -> Export:
    """Read exports of ImageXpress HCS.ai; stacks are preferred over projections."""
    from fractal_uzh_converters.imagexpress_hcs import _utils as hcs_ai

    model = hcs_ai.MDImageXpressHCSaiAcquisitionModel
    # The parser refuses a folder with a second table, which may be a companion that macOS made of the first.
    with TemporaryDirectory() as scratch:
        for parent in (name for name in list_names(folder) if name.startswith("experiment")):
            (Path(scratch) / parent).mkdir()
            for name in (name for name in list_names(folder / parent) if name.endswith((".jdce", ".csv"))):
                shutil.copyfile(folder / parent / name, path := Path(scratch) / parent / name)
                if name.endswith(".csv"):
                    table = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True)
                    for row in table["Row"].unique() if "Row" in table.columns else []:
                        parse_integer(row, "Row", 1, 26)
        parse = hcs_ai.parse_md_metadata
        return _read(folder, "ImageXpress HCS.ai", "the table", parse, model, None, metadata=Path(scratch))


def _iter_attributes(path: Path, tag: str) -> Iterator[dict[str, str]]:
    """Yield the attributes of all elements with a tag, without namespaces; the file is checked first."""
    for _, element in iter_elements(path, tag):
        yield {key.rpartition("}")[2]: value for key, value in element.attrib.items()}


def _read(
    folder: Path, format: str, source: str, parse: Callable[..., Any], model: Any, names: dict[int, str] | None,
    problems: Sequence[str] = (), metadata: Path | None = None, pixel_size: Sequence[float | None] | None = None,
    **options: Any,
) -> Export:  # fmt: skip
    """Run a parser of fractal-uzh-converters and check its result.

    Args:
        names: channel names by channel number, if the parser does not know them.
        metadata: a folder with a copy of the metadata, if the parser shall not see the plate's own.
        pixel_size: (y, x) in micrometres, if the parser does not know it.
        options: passed to the acquisition model.
    """
    from ome_zarr_converters_tools.models import ConverterOptions, NoTiling

    root = (metadata or folder).absolute().as_posix()
    # Without a data type the parsers would open the first image, wherever its path leads.
    advanced = model.model_fields["advanced"].default_factory(data_type="uint16")
    try:
        acquisition = model(path=root, plate_name="plate", advanced=advanced, **options)
        images = parse(acquisition_model=acquisition, converter_options=ConverterOptions(tiling_strategy=NoTiling()))
    # pydantic and the parsers share no error class.
    except Exception as error:
        problem = f"its metadata cannot be read as {format}: {one_line(error, 300)}"
        raise PlateError(problem, _REMEDY, path=folder) from error
    names = names or dict(enumerate(channel.channel_label for channel in images[0].channels or []))
    channel_indices: dict[float, int] = {number: index for index, number in enumerate(names)}
    rows: list[tuple[str, str, int, int | None, str]] = []
    for image in images:
        if "t" in image.axes:
            raise PlateError("it has several time points, expected 1", "Export a single time point.")
        for region in image.regions:
            position, file = _get_position(region), region.image_loader.file_path
            if not file.startswith(f"{root}/"):
                raise PlateError(f"{file[:200]!r} is outside the plate's folder", _REMEDY)
            if position["c"] not in channel_indices:
                raise PlateError(f"its metadata refer to an unknown channel {position['c']}", _REMEDY)
            is_projection = image.collection.plate_name != "plate"
            z = None if is_projection else round(position["z"] / image.z_spacing)
            site = region.roi.name.rpartition("_")[2]
            rows.append((image.collection.well, site, channel_indices[position["c"]], z, file.removeprefix(f"{root}/")))
    # The parsers report a z step of 1 for single planes.
    stacks = [image for image in images if len({_get_position(region)["z"] for region in image.regions}) > 1]
    pixel_size = pixel_size or [to_micrometres(images[0].pixelsize)] * 2
    z_step = to_micrometres(round(median([image.z_spacing for image in stacks] or [0]), 6))
    return build_export(
        folder,
        pl.DataFrame(rows, ROW_SCHEMA, orient="row"),
        list(names.values()),
        format=format,
        source=source,
        problems=problems,
        voxel_size=(z_step, *pixel_size),
    )


def _get_position(region: Any) -> dict[str, float]:
    return {axis.axis_name: axis.start for axis in region.roi.slices}
