"""Single cells cut out of fields: cutting, the crop store, and the torch dataset that reads it.

Crops are raw intensities; standardising them by the plate's own statistics happens on reading, never per crop. Nothing
here knows a network or a score.
"""

from gradcamo_assets.crops.cut import BACKGROUND, NEIGHBOUR, TARGET, CropConfig, cut_crops
from gradcamo_assets.crops.store import CropField, open_crops, write_crops

__all__ = ["BACKGROUND", "NEIGHBOUR", "TARGET", "CropConfig", "CropField", "cut_crops", "open_crops", "write_crops"]
