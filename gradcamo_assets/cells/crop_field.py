"""What every source of a field's crops offers: identities, geometry, statistics and pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REMEDY = "Materialise the crops of this plate and site again."


@dataclass(frozen=True)
class CropField(ABC):
    """The crops of one field. Pixels are read on access.

    Attributes:
        path: the folder that records them.
        cell_ids: ``Metadata_CellID`` of each crop.
        channels: stains in order.
        center, scale: (C,) statistics of the plate; standardised = (raw - center) / scale.
        crop_shape: (z, y, x) in voxels.
        voxel_size: (z, y, x) in um, None where unknown.
        version: provenance digest.
    """

    path: Path
    cell_ids: list[str]
    channels: list[str]
    center: np.ndarray
    scale: np.ndarray
    crop_shape: tuple[int, ...]
    voxel_size: list[float | None]
    version: str

    def __len__(self) -> int:
        return len(self.cell_ids)

    @abstractmethod
    def read(self, rows: slice | int, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read images (n, C, z, y, x) uint16 and labels (n, z, y, x) uint8 of some crops; one row has no first axis.

        Labels are 0 in the background, 1 in the target cell and 2 in its neighbours.

        Args:
            images: array to read the images into, of their shape and type; None allocates one.

        Raises:
            CropError: if the pixels cannot be read.
        """
