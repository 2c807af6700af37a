"""Writing a synthetic plate: OME-Zarr HCS (NGFF 0.5) with true masks, a plate map and a label table beside it.

What is on the plate stands in ``synthetic_design``, how it looks in ``synthetic_field``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
from tqdm import tqdm

from gradcamo_assets.common.files import replaced_file, replaced_folder
from gradcamo_assets.plates.synthetic_design import STAINS, VOXEL_SIZE, SyntheticPlate, plate_map
from gradcamo_assets.plates.synthetic_field import render_field

_COLOURS = dict(zip(STAINS, ("0000FF", "00FF00", "FFFF00", "FF8000", "FF0000", "FFFFFF"), strict=True))
_COMPRESSOR = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}}


def write_synthetic_plate(directory: Path, config: SyntheticPlate, progress: bool = False) -> Path:
    """Write ``<directory>/<name>.zarr`` field by field, and return its path.

    Beside it: ``<name>.csv``, the plate map, and, where cells of one well differ (a pooled screen, bystanders),
    ``<name>.labels.csv``, a row per true cell. Every field holds the true masks as labels ``cells`` and ``nuclei``.
    The plate appears last and whole; one of that name that was there before is replaced.
    """
    import ngio
    import zarr

    target = directory / f"{config.name}.zarr"
    tables: list[pl.DataFrame] = []
    with replaced_folder(target) as folder:
        wells = [(name[0], name[1:]) for name in config.well_names]
        ngio.create_empty_plate(
            str(folder), config.name, ngff_version="0.5", overwrite=True,
            images=[ngio.ImageInWellPath(row=r, column=c, path=str(s)) for r, c in wells for s in range(config.sites)],
        )  # fmt: skip
        fields = {
            (well, site): folder / row / column / str(site - 1)
            for well, (row, column) in enumerate(wells)
            for site in range(1, config.sites + 1)
        }
        first, *others = fields.values()
        _create_field(first, config)
        # Fields differ in pixels alone, and ngio takes longer over the metadata of one than its drawing takes.
        for path in others:
            shutil.copytree(first, path, dirs_exist_ok=True)
        bar = tqdm(fields.items(), desc=f"synthesising {config.name}", unit="field", disable=not progress)
        for (well, site), path in bar:
            field = render_field(config, well, site)
            for at, pixels in (("0", field.image), ("labels/cells/0", field.cells), ("labels/nuclei/0", field.nuclei)):
                zarr.open_array(path / at, mode="r+")[:] = pixels
            tables.append(field.table)
        with replaced_file(directory / f"{config.name}.csv") as file:
            plate_map(config).write_csv(file)
        labels = directory / f"{config.name}.labels.csv"
        labels.unlink(missing_ok=True)
        if config.labels == "cell" or config.shortcut == "neighbour":
            with replaced_file(labels) as file:
                pl.concat(tables).write_csv(file)
    return target


def _create_field(path: Path, config: SyntheticPlate) -> None:
    """An empty image with its empty labels."""
    import ngio
    from ngio.ome_zarr_meta.ngio_specs import Channel, ChannelVisualisation

    z, y, x = VOXEL_SIZE
    channels = [
        Channel(label=stain, channel_visualisation=ChannelVisualisation(color=_COLOURS[stain], start=100, end=2500))
        for stain in config.stains
    ]
    image = ngio.create_empty_ome_zarr(
        str(path), (config.channels, *config.shape), pixelsize=(y, x), z_spacing=z, axes_names="czyx", levels=1,
        ngff_version="0.5", channels_meta=channels, chunks=(1, *config.shape), compressors=_COMPRESSOR, overwrite=True,
    )  # fmt: skip
    for name in ("cells", "nuclei"):
        image.derive_label(name, dtype="uint32")
