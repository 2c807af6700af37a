"""Masks of cells and nuclei: Cellpose, the compact network, what masks tell of a cell's shape, the mask store.

Plates are read in ``plates``; tables and crops of cells are made in ``cells``.
"""

from gradcamo_assets.segmentation.mask_store import read_masks, write_masks
from gradcamo_assets.segmentation.masks import Masks
from gradcamo_assets.segmentation.segment import Segmenter
from gradcamo_assets.segmentation.settings import SegmenterConfig

__all__ = [
    "Masks",
    "Segmenter",
    "SegmenterConfig",
    "read_masks",
    "write_masks",
]
