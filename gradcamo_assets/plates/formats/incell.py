"""Read exports of IN Cell Analyzer: an ``.xdce`` index that describes the plate, and one TIFF a plane."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats.files import list_names
from gradcamo_assets.plates.formats.planes import (
    MAX_PLANES,
    ROW_SCHEMA,
    Export,
    build_export,
    parse_integer,
    well_from_indices,
)
from gradcamo_assets.plates.formats.untrusted import iter_elements
from gradcamo_assets.plates.image_layout import to_micrometres

INDEX = re.compile(r"(?i).*\.xdce")
"""The name of the index."""
_REMEDY = "Copy it again from the microscope."


def read(folder: Path) -> Export:
    """Read the index. No TIFF is opened. The z step is not read, since the index gives that of the acquisition.

    Channels are named by excitation and emission filter, as in file names: ``UV - DAPI``.
    """
    index = folder / next(name for name in list_names(folder) if INDEX.fullmatch(name))
    rows: list[tuple[str, str, int, int, str]] = []
    channels: dict[int, str] = {}
    times: set[int] = set()
    calibration: dict[str, str] = {}
    for tag, element in iter_elements(index, "Image", "ObjectiveCalibration"):
        if tag == "ObjectiveCalibration":
            calibration |= element.attrib
            continue
        well, place = (element.find(name) for name in ("Well", "Identifier"))
        label = re.fullmatch("([A-Za-z]{1,2}) - ([0-9]{1,2})", "" if well is None else well.get("label", ""))
        if label is None or place is None or len(rows) >= MAX_PLANES:
            problem = f"an image lacks its well or identifier, or it lists more than {MAX_PLANES} images"
            raise PlateError(problem, _REMEDY, path=index)
        numbers = {key: parse_integer(place.get(key), key, 0, 10**6) for key in
                   ("field_index", "wave_index", "z_index", "time_index")}  # fmt: skip
        filters = (element.find(f"{kind}Filter") for kind in ("Excitation", "Emission"))
        names = [name for part in filters if part is not None and (name := part.get("name"))]
        channels.setdefault(numbers["wave_index"], " - ".join(names) or f"channel {numbers['wave_index']}")
        times.add(numbers["time_index"])
        site = str(numbers["field_index"] + 1)
        position = (site, numbers["wave_index"], numbers["z_index"])
        rows.append((well_from_indices(label[1], label[2]), *position, element.get("filename", "")))
    if len(times) > 1:
        raise PlateError(f"it has {len(times)} time points, expected 1", "Export a single time point.", path=index)
    order = sorted(channels)
    unit = calibration.get("unit", "")
    table = pl.DataFrame(rows, ROW_SCHEMA, orient="row")
    pixel_size = [to_micrometres(calibration.get(f"pixel_{side}"), unit) for side in ("height", "width")]
    return build_export(
        folder,
        table.with_columns(pl.col("channel").replace_strict(order, range(len(order)), return_dtype=pl.Int32)),
        [channels[number] for number in order],
        format="IN Cell",
        source=index.name,
        voxel_size=(None, *pixel_size),
        acquisition={"objective": calibration.get("objective_name")},
    )
