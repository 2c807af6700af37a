"""Synthetic plates with known ground truth: their design, the rendering of fields, and OME-Zarr output."""

from gradcamo_assets.synthetic.design import SyntheticPlate
from gradcamo_assets.synthetic.render import render_field
from gradcamo_assets.synthetic.write import write_synthetic_plate

__all__ = ["SyntheticPlate", "render_field", "write_synthetic_plate"]
