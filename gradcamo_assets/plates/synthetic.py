"""Writing a synthetic plate: OME-Zarr HCS (NGFF 0.5) with true masks, a plate map and a label table beside it.

What is on the plate stands in ``synthetic_design``, how it looks in ``synthetic_field``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from gradcamo_assets.common.files import replaced_file, replaced_folder
from gradcamo_assets.plates.synthetic_design import POOLED, UNIT, VOXEL_SIZE, SyntheticPlate
from gradcamo_assets.plates.synthetic_field import SyntheticField, render_field

_COLOURS = {
    "DNA": "0000FF",
    "ER": "00FF00",
    "RNA": "FFFF00",
    "AGP": "FF8000",
    "Mito": "FF0000",
    "Brightfield": "FFFFFF",
}
_COMPRESSOR = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}}


def write_synthetic_plate(directory: Path, config: SyntheticPlate, progress: bool = False) -> Path:
    """Write ``<directory>/<name>.zarr`` field by field, and return its path.

    Beside it: ``<name>.csv``, the plate map, and, where cells of one well differ (a pooled screen, bystanders),
    ``<name>.labels.csv``, a row per true cell. Every field holds the true masks as labels ``cells`` and ``nuclei``.
    The plate appears last and whole; one of that name that was there before is replaced.
    """
    import ngio

    target = directory / f"{config.name}.zarr"
    tables: list[pl.DataFrame] = []
    with replaced_folder(target) as folder:
        wells = [(name[0], str(int(name[1:]))) for name in config.well_names]
        paths = [str(site) for site in range(config.sites)]
        plate = ngio.create_empty_plate(
            str(folder), config.name, ngff_version="0.5", overwrite=True,
            images=[ngio.ImageInWellPath(row=r, column=c, path=path) for r, c in wells for path in paths],
        )  # fmt: skip
        for well, site in _fields(config, progress):
            row, column = wells[well]
            field = render_field(config, well, site)
            _write_field(plate.get_image_store(row, column, paths[site - 1]), config, field)
            tables.append(field.table)
        with replaced_file(directory / f"{config.name}.csv") as file:
            plate_map(config).write_csv(file)
        labels = directory / f"{config.name}.labels.csv"
        labels.unlink(missing_ok=True)
        if config.labels == "cell" or config.shortcut == "neighbour":
            with replaced_file(labels) as file:
                pl.concat(tables).write_csv(file)
    return target


def plate_map(config: SyntheticPlate) -> pl.DataFrame:
    """The plate map: a row a well. In a pooled screen the well is ``pooled``, and the label table has the rest."""
    pooled = config.labels == "cell"
    layout = config.layout
    return pl.DataFrame(
        {
            "Metadata_Well": config.well_names,
            "Metadata_Compound": [POOLED if pooled else t.compound for t in layout],
            "Metadata_Dose": [0.0 if pooled else t.dose for t in layout],
            "Metadata_Dose_Unit": [UNIT] * config.wells,
            "Metadata_pert_type": ["trt" if pooled else t.pert_type for t in layout],
        }
    )


def _fields(config: SyntheticPlate, progress: bool) -> Iterator[tuple[int, int]]:
    fields: Iterable[tuple[int, int]] = [(w, s) for w in range(config.wells) for s in range(1, config.sites + 1)]
    yield from tqdm(fields, desc=f"synthesising {config.name}", unit="field", disable=not progress)


def _write_field(store: Any, config: SyntheticPlate, field: SyntheticField) -> None:
    import ngio
    from ngio.ome_zarr_meta.ngio_specs import Channel, ChannelVisualisation

    z, y, x = VOXEL_SIZE
    channels = [
        Channel(label=stain, channel_visualisation=ChannelVisualisation(color=_COLOURS[stain], start=100, end=2500))
        for stain in config.stains
    ]
    # An empty image filled at once: made from an array, it would be read back twice for display windows.
    image = ngio.create_empty_ome_zarr(
        store, field.image.shape, pixelsize=(y, x), z_spacing=z, axes_names="czyx", levels=1, ngff_version="0.5",
        channels_meta=channels, chunks=(1, *config.shape), compressors=_COMPRESSOR, overwrite=True,
    )  # fmt: skip
    image.get_image().set_array(field.image)
    for name, mask in (("cells", field.cells), ("nuclei", field.nuclei)):
        image.derive_label(name, dtype="uint32", overwrite=True).set_array(mask)
