"""Single cells: the cell table, cropping cells from fields, the crop store, and a torch dataset of crops.

Crops store raw intensities. The dataset standardises them by plate statistics, never crop by crop. This package does
not depend on networks or scores.
"""

from gradcamo_assets.cells.cell_table import CELL_SCHEMA, cell_table, match_labels
from gradcamo_assets.cells.crop import BACKGROUND, NEIGHBOUR, TARGET, CropConfig, cut_crops
from gradcamo_assets.cells.crop_store import CropField, open_crops, write_crops

__all__ = [
    "BACKGROUND", "CELL_SCHEMA", "NEIGHBOUR", "TARGET", "CropConfig", "CropField", "cell_table", "cut_crops",
    "match_labels", "open_crops", "write_crops",
]  # fmt: skip
