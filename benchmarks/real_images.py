"""Real fields for ``real_segmentation``, with what their authors say about them; see the notices beside the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import tifffile
from PIL import Image

from gradcamo_assets.segmentation import SegmenterConfig

LINCS_CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
_ORGANOID_SETTINGS = SegmenterConfig(mode="3d", anisotropy=2.0, diameter=45, cytoplasm=("membrane",))
"""As a user would measure: no voxel size is stated, and in the labels a cell is 45 pixels wide and 23 slices high."""


@dataclass(frozen=True)
class RealField:
    """A field: ``image`` (C, Z, Y, X), and the settings that a user would write for its plate.

    Attributes:
        centres: (n, 2) y and x of nuclei by others, None if unknown.
        nuclei, cells: labels (Z, Y, X) by others, None if unknown.
    """

    name: str
    image: np.ndarray
    channels: tuple[str, ...]
    settings: SegmenterConfig
    centres: np.ndarray | None = None
    nuclei: np.ndarray | None = None
    cells: np.ndarray | None = None


def read_lincs(centres_table: Path) -> RealField:
    """A field of five stains of ``lincs_a549``, given by its table of CellProfiler's nuclei.

    Args:
        centres_table: ``locations/<plate>/<well>-<site>-Nuclei.csv``. None of these nuclei touches the border.
    """
    plate, (well, site, _) = centres_table.parent.name, centres_table.name.split("-")
    folder = centres_table.parents[2] / "images" / plate
    stem = f"r{ord(well[0]) - ord('A') + 1:02d}c{well[1:]}f{int(site):02d}p01"
    planes = [np.asarray(Image.open(folder / f"{stem}-ch{channel}sk1fk1fl1.png")) for channel in range(1, 6)]
    centres = pl.read_csv(centres_table).select(f"Nuclei_Location_Center_{axis}" for axis in "YX").to_numpy()
    return RealField(f"{plate} {well} {site}", np.stack(planes)[:, None], LINCS_CHANNELS, SegmenterConfig(), centres)


def read_organoid(folder: Path) -> RealField:
    """A stack of an organoid with its authors' labels of nuclei and cells."""

    def read(pattern: str) -> np.ndarray:
        (path,) = folder.glob(pattern)
        return np.asarray(tifffile.imread(path))

    image = np.stack([read("*C01*TIF-OVR.tif"), read("*C04*TIF-OVR.tif")])
    labels = [read(f"*{kind}_SEG3D*.tif").astype(np.int32) for kind in ("NUC", "MEM")]
    return RealField(folder.name, image, ("nuclei", "membrane"), _ORGANOID_SETTINGS, None, *labels)


def read_transfluor(path: Path) -> RealField:
    """A field of ``bbbc016_dose``, which has no nucleus stain."""
    image = np.asarray(tifffile.imread(path))[None, None]
    return RealField(path.stem.split("_")[-1], image, ("GFP",), SegmenterConfig(nucleus="none"))
