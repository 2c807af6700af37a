"""Segmentation of cells and nuclei: Cellpose and the compact network, mask quality, cell shapes, and the mask store.

``plates`` reads images; ``cells`` makes tables and crops of cells.
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
