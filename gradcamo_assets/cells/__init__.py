"""Single cells: the cell table, cutting crops out of fields, the crop store, and the torch dataset that reads it.

Crops are raw intensities. They are standardised by the plate's own statistics when they are read, never one by one.
Nothing here knows a network or a score.
"""

from gradcamo_assets.cells.cell_table import CELL_SCHEMA, cell_table, match_labels
from gradcamo_assets.cells.crop import BACKGROUND, NEIGHBOUR, TARGET, CropConfig, cut_crops
from gradcamo_assets.cells.crop_store import CropField, open_crops, write_crops

__all__ = [
    "BACKGROUND", "CELL_SCHEMA", "NEIGHBOUR", "TARGET", "CropConfig", "CropField", "cell_table", "cut_crops",
    "match_labels", "open_crops", "write_crops",
]  # fmt: skip
