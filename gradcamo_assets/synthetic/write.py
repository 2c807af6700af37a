"""Write a synthetic plate as OME-Zarr HCS (NGFF 0.5) with true masks, and its plate map and label table beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from gradcamo_assets.plates.omezarr_writer import create_field, create_plate
from gradcamo_assets.storage import atomic_file, remove, replaced_folder
from gradcamo_assets.synthetic.design import VOXEL_SIZE, SyntheticPlate, make_plate_map
from gradcamo_assets.synthetic.render import render_field


def write_synthetic_plate(directory: Path, config: SyntheticPlate, progress: bool = False) -> Path:
    """Write ``<directory>/<name>.zarr`` field by field, and return its path.

    Files beside the plate: the plate map ``<name>.csv``, and ``<name>.labels.csv`` with a row for each true cell if the
    cells of a well differ (a pooled screen, bystanders). Every field has the true masks as labels ``cells`` and
    ``nuclei``. The plate appears in one step at the end (in a bucket, file by file), in place of an earlier one.
    """
    import zarr

    target = directory / f"{config.name}.zarr"
    tables: list[pl.DataFrame] = []
    sites = range(1, config.sites + 1)
    with replaced_folder(target) as folder, TemporaryDirectory() as scratch:
        create_plate(folder, config.name, {well: [str(site - 1) for site in sites] for well in config.well_names})
        template = Path(scratch) / "field"
        create_field(template, (config.channels, *config.shape), config.stains, VOXEL_SIZE, ("cells", "nuclei"))
        fields = [(index, name, site) for index, name in enumerate(config.well_names) for site in sites]
        progress_bar = tqdm(fields, desc=f"synthesising {config.name}", unit="field", disable=not progress)
        for index, name, site in progress_bar:
            path = folder / name[0] / name[1:] / str(site - 1)
            shutil.copytree(template, path, dirs_exist_ok=True)
            field = render_field(config, index, site)
            arrays: dict[str, NDArray[Any]] = {
                "0": field.image,
                "labels/cells/0": field.cells,
                "labels/nuclei/0": field.nuclei,
            }
            for array_path, pixels in arrays.items():
                zarr.open_array(path / array_path, mode="r+")[:] = pixels
            tables.append(field.table)
        with atomic_file(directory / f"{config.name}.csv") as file:
            make_plate_map(config).write_csv(file)
        labels = directory / f"{config.name}.labels.csv"
        remove(labels)
        if config.labels == "cell" or config.shortcut == "neighbour":
            with atomic_file(labels) as file:
                pl.concat(tables).write_csv(file)
    return target
