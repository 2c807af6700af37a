"""Cut crops from their field when they are read, where no pixels of crops are stored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from gradcamo_assets.cells.crop import CropConfig, cut_crops
from gradcamo_assets.cells.crop_field import REMEDY, CropField
from gradcamo_assets.errors import CropError, GradcamoError
from gradcamo_assets.plates import field_version, load_plate, read_field
from gradcamo_assets.segmentation import read_masks

_CACHED_BYTES = 1 << 30
"""Fields that stay in memory after they were read; the last one stays whatever its size."""


@dataclass(frozen=True)
class FieldSource:
    """The field and the masks that crops are cut from.

    Attributes:
        plates: folder of the ingested plates.
        masks: folder of the field's masks.
        illumination: whether the pixels are corrected for uneven illumination.
        field_version: version of the pixels, ``plates.field_version``.
    """

    plates: Path
    masks: Path
    plate: str
    well: str
    site: int
    illumination: bool
    field_version: str

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the image (C, Z, Y, X) uint16 and the cell masks (Z, Y, X) uint32.

        Raises:
            CropError: if they cannot be read or have changed since the cells were found.
        """
        try:
            plate = load_plate(self.plates, self.plate, illumination=self.illumination)
            field = next((f for f in plate.fields if (f.well, f.site) == (self.well, self.site)), None)
            if field is None or field_version(plate, field) != self.field_version:
                problem = "the field was ingested again since its cells were found"
                raise CropError(problem, "Launch process_fields again.")
            return read_field(plate, field), read_masks(self.masks).cells
        except GradcamoError as error:
            raise error.at(CropError, plate=self.plate, well=self.well, site=self.site) from error


@dataclass(frozen=True)
class FieldCrops(CropField):
    """Crops that are cut from their field. Read them in the order of fields: each field is read as a whole.

    Attributes:
        source: where they are cut from.
        cells: ``label`` and centroids of each crop's cell, as for ``cut_crops``.
        fill: (C,) intensity outside the field.
    """

    source: FieldSource
    cells: pl.DataFrame
    fill: np.ndarray

    def read(self, rows: slice | int, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        image, masks = _LOADED.get(self.source)
        cells = self.cells[rows] if isinstance(rows, slice) else self.cells[rows : rows + 1]
        if image.shape[0] != len(self.channels):
            raise CropError(f"the field has {image.shape[0]} channels, its crops {len(self.channels)}", REMEDY)
        config = CropConfig(shape=self.crop_shape)  # type: ignore[arg-type]
        if images is None:
            images = np.empty((len(cells), len(self.channels), *self.crop_shape), np.uint16)
        labels = np.empty((len(cells), *self.crop_shape), np.uint8)
        for row, (crop, regions) in enumerate(cut_crops(image, masks, cells, config, self.fill)):
            images[row], labels[row] = crop, regions
        return (images, labels) if isinstance(rows, slice) else (images[0], labels[0])


class _LoadedFields:
    """Images and masks of the fields read last."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._fields: OrderedDict[FieldSource, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def get(self, source: FieldSource) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if source not in self._fields:
                self._fields[source] = source.load()
            self._fields.move_to_end(source)
            while len(self._fields) > 1 and self._total_bytes() > self._max_bytes:
                self._fields.popitem(last=False)
            return self._fields[source]

    def _total_bytes(self) -> int:
        return sum(array.nbytes for arrays in self._fields.values() for array in arrays)


_LOADED = _LoadedFields(_CACHED_BYTES)
