"""Synthetic plates with a planted truth: what is on them, how their cells look, and writing them as OME-Zarr."""

from gradcamo_assets.synthetic.design import SyntheticPlate
from gradcamo_assets.synthetic.render import render_field
from gradcamo_assets.synthetic.write import write_synthetic_plate

__all__ = ["SyntheticPlate", "render_field", "write_synthetic_plate"]
