"""Grad-CAM and its overlap with masks: pure tensor functions for any torch CNN, in 2D and 3D.

Here: the score and everything it is made of (layers, maps, masks projected down, signed evidence). Not here: reading
crops, batching a plate, choosing a model, storing rows, pictures. Importing this package imports torch.
"""

from gradcamo_assets.explain.maps import similarity_to
from gradcamo_assets.explain.methods import METHODS
from gradcamo_assets.explain.overlap import LOOKS_AT, NULL_REASONS
from gradcamo_assets.explain.result import COLUMNS, GradcamoResult
from gradcamo_assets.explain.score import gradcamo

__all__ = ["COLUMNS", "LOOKS_AT", "METHODS", "NULL_REASONS", "GradcamoResult", "gradcamo", "similarity_to"]
