"""Grad-CAM and its overlap with masks: pure tensor functions for any torch CNN, in 2D and 3D.

Scope: layers, maps, projected masks, the score and the tests of a map's faithfulness. Reading crops, batching a plate,
choosing a model, storing rows and drawing figures belong to other packages. Importing this package imports torch.
"""

from gradcamo_assets.explain.methods import METHODS
from gradcamo_assets.explain.overlap import LOOKS_AT, NULL_REASONS
from gradcamo_assets.explain.result import COLUMNS, GradcamoResult
from gradcamo_assets.explain.score import gradcamo
from gradcamo_assets.explain.targets import similarity_to

__all__ = ["COLUMNS", "LOOKS_AT", "METHODS", "NULL_REASONS", "GradcamoResult", "gradcamo", "similarity_to"]
