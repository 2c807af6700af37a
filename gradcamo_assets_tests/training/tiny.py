"""Write plates of a few tiny crops, in two classes that differ in the brightness of the target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from gradcamo_assets.cells import write_crops
from gradcamo_assets.provenance import Provenance


def write_plate(
    folder: Path, name: str = "P", wells: int = 8, cells: int = 10, shape: tuple[int, int, int] = (2, 24, 24)
) -> tuple[pl.DataFrame, list[Path]]:
    """Write one field per well, of class a and b in turn; return the table of cells and the paths."""
    rng, rows, paths = np.random.default_rng(0), [], []
    for index in range(wells):
        well = f"A{index + 1:02d}"
        ids = [f"{name}/{well}/1/{i}" for i in range(cells)]
        labels = np.zeros((cells, *shape), np.uint8)
        labels[:, :, 8:16, 8:16] = 1
        labels[:, :, 1:5, 1:9] = 2
        images = rng.poisson(100, (cells, 2, *shape)) + (400 * (index % 2) * (labels == 1))[:, None]
        paths.append(folder / f"{name}-{well}.zarr")
        write_crops(
            paths[-1], iter(zip(images.astype(np.uint16), labels, strict=True)), cell_ids=ids, shape=shape,
            channels=["DNA", "ER"], statistics={"center": [100.0] * 2, "scale": [100.0] * 2},
            voxel_size=[1.0, 0.5, 0.5], provenance=Provenance(name + well, {}, "1"),
        )  # fmt: skip
        rows += [
            {
                "Metadata_CellID": i,
                "Metadata_Plate": name,
                "Metadata_Well": well,
                "treatment_class": "ab"[index % 2],
                "mask_version": f"masks of {well}",
            }
            for i in ids
        ]
    return pl.DataFrame(rows), paths
