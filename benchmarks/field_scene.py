"""A plate whose fields are full of blobs on a grid, as far as its recorded crops: what scoring from fields needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import zarr

from gradcamo_assets.cells import FieldSource, cell_table, record_crops
from gradcamo_assets.home import Home
from gradcamo_assets.plates import field_version, ingest_plate
from gradcamo_assets.plates.omezarr_writer import create_field, create_plate
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.segmentation import Masks
from gradcamo_assets.segmentation.mask_store import write_masks

VOXELS = (1.0, 0.3, 0.3)


def write_recorded_crops(
    folder: Path, channels: list[str], shape: tuple[int, int, int], fields: int, *, across: int = 12, pad: bool = True
) -> list[Path]:
    """Write and ingest a plate of ``fields`` wells, each with a grid of cells; return the folders of their crops.

    Args:
        shape: (z, y, x) of a crop. A field of 12 cells is 8.5 crops wide, so that a crop shows parts of its neighbours.
        across: number of cells in a row of the grid, and of rows.
        pad: record also cells whose crop leaves the field.
    """
    home = Home(folder).create()
    edge = int(shape[1] * 8.5 * across / 12)
    wells = [f"A{number:02}" for number in range(1, fields + 1)]
    plate_folder = home.inbox / "P.zarr"
    create_plate(plate_folder, "P", {well: ["0"] for well in wells})
    labels = _labels(shape[0], edge, across)
    for well in wells:
        path = plate_folder / well[0] / well[1:] / "0"
        create_field(path, (len(channels), shape[0], edge, edge), channels, VOXELS)
        array = zarr.open_array(path / "0", mode="r+")
        rng = np.random.default_rng(int(well[1:]))
        for channel in range(len(channels)):
            array[channel] = rng.poisson(150 + 400 * (labels > 0) + 100 * rng.random()).astype(np.uint16)
    found = ingest_plate(plate_folder, home.plates)
    plate, paths = found.plate, []
    for field in plate.fields:
        provenance = Provenance(field.path, {}, "1")
        masks = home.masks / "P" / f"{field.well}_s1" / provenance.version
        write_masks(masks, Masks(labels, None), VOXELS, provenance)
        cells = cell_table(labels, None, VOXELS)
        if not pad:
            inside = pl.col("centroid_y", "centroid_x").is_between(shape[1] / 2, edge - shape[1] / 2)
            cells = cells.filter(pl.all_horizontal(inside))
        cells = cells.with_columns(Metadata_CellID=pl.format("P/{}/1/{}", pl.lit(field.well), "label"))
        path = home.crops / "P" / f"{field.well}_s1" / provenance.version
        statistics = {key: [found.statistics[name][key] for name in plate.channels] for key in ("center", "scale")}
        source = FieldSource(home.plates, masks, "P", field.well, 1, False, field_version(plate, field))
        record_crops(
            path, cells, source, shape=shape, channels=list(plate.channels), statistics=statistics,
            voxel_size=list(plate.voxel_size), provenance=provenance,
        )  # fmt: skip
        paths.append(path)
    return paths


def _labels(depth: int, edge: int, across: int) -> np.ndarray:
    """Ellipsoids on a grid of ``across`` x ``across``, (Z, Y, X) uint32."""
    pitch = edge / across
    heights = np.linspace(-1, 1, depth) if depth > 1 else np.zeros(1)
    z, y, x = np.meshgrid(heights, np.arange(edge), np.arange(edge), indexing="ij")
    row, column = (np.minimum(axis // pitch, across - 1) for axis in (y, x))
    inside = (z / 0.8) ** 2 + ((y / pitch - row - 0.5) / 0.42) ** 2 + ((x / pitch - column - 0.5) / 0.42) ** 2 < 1
    return np.where(inside, across * row + column + 1, 0).astype(np.uint32)
