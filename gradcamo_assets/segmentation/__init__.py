"""Masks of cells and nuclei: Cellpose, the compact network, the table of cells, the mask store.

Here: everything between a field's image and its cells. Not here: reading plates, cutting crops.
"""

from gradcamo_assets.segmentation.cells import CELL_SCHEMA, cell_table, match_labels
from gradcamo_assets.segmentation.masks import Masks
from gradcamo_assets.segmentation.segment import Segmenter
from gradcamo_assets.segmentation.settings import SegmenterConfig
from gradcamo_assets.segmentation.store import read_masks, write_masks

__all__ = [
    "CELL_SCHEMA",
    "Masks",
    "Segmenter",
    "SegmenterConfig",
    "cell_table",
    "match_labels",
    "read_masks",
    "write_masks",
]
