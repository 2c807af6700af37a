"""Single cells: the cell table, crops cut from fields or stored, and a torch dataset of crops.

Crops are raw intensities. The dataset standardises them by plate statistics, never crop by crop. This package does
not depend on networks or scores.
"""

from gradcamo_assets.cells.cell_table import CELL_SCHEMA, cell_table, match_labels
from gradcamo_assets.cells.crop import BACKGROUND, NEIGHBOUR, TARGET, CropConfig, cut_crops
from gradcamo_assets.cells.crop_field import CropField
from gradcamo_assets.cells.crop_store import open_crops, record_crops, store_pixels, write_crops
from gradcamo_assets.cells.field_crops import FieldSource

__all__ = [
    "BACKGROUND", "CELL_SCHEMA", "NEIGHBOUR", "TARGET", "CropConfig", "CropField", "FieldSource", "cell_table",
    "cut_crops", "match_labels", "open_crops", "record_crops", "store_pixels", "write_crops",
]  # fmt: skip
