"""How fields are segmented: every setting, checked, as it is recorded with the masks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from gradcamo_assets.segmentation.engines import known
from gradcamo_assets.settings import Count, section, setting

NOMINAL_WIDTH = 15.0
"""Width of a cell in micrometres that is assumed where no diameter is set."""

DIAMETER = 30.0
"""Width of a cell, in pixels, at which both shipped sets of weights work best."""


@section
class SegmenterConfig:
    """How fields are segmented: section ``[segmentation]`` of ``gradcamo.toml``.

    network: where it is ``module:function``, ``function(kind)``, for ``cells`` and for ``nuclei``, returns a torch
    module that turns (B, 3, Y, X) float32 into flows in y and x times 5 and the logit (B, 3, Y, X), and a style
    (B, 256). Inputs: cytoplasm, nucleus, zeros for cells; nucleus, zeros, zeros for nuclei. Sides are 256 or 384.
    mode: ``3d`` takes flows in three sets of planes and dynamics in 3D (Cellpose's ``do_3D``); some six times the work,
    fewer cells broken in z. ``auto`` takes it with the compact network, where the voxel size is known and slices are
    at most a sixth of a cell's width apart. A single slice is done in 2D in all.
    diameter: by default 30, the network's own scale, where the voxel size is unknown (1, 1, 1), gives less than 8
    pixels or more than 200, or the two differ by less than a third.
    """

    network: Annotated[str, AfterValidator(known)] = setting(
        "compact",
        "compact; one of Cellpose's, from its own cache; a folder with cells.safetensors and nuclei.safetensors, or a "
        "file of Cellpose weights; or module:function of your own.",
    )
    mode: Literal["auto", "stitch", "3d"] = setting(
        "auto", "stitch: by slice, stitched along z; 3d: stacks of 5 slices or more as a whole; auto: 3d where it pays."
    )
    anisotropy: float | None = setting(None, "Step in z over pixel size, for 3d; else the plate's.", ge=0.1, le=50)
    nucleus: str | None = setting(None, "Name of the DNA stain; else found by name.")
    cytoplasm: tuple[str, ...] | None = setting(
        None, "Stains that fill cells; else every fluorescence channel but the nucleus; []: cells from that alone."
    )
    diameter: float | None = setting(
        None, "Width of a cell in pixels; else from the voxel size, for cells 15 um wide, or 30.", ge=4, le=2000
    )
    stitch_threshold: float = setting(0.25, "Least overlap (IoU) that joins objects of two slices.", gt=0, le=1)
    flow_threshold: float = setting(0.4, "Highest flow error of an object; 0 keeps all. Not used in 3d.", ge=0, le=4)
    cellprob_threshold: float = setting(0.0, "Least logit in an object; lower: larger and more.", ge=-20, le=20)
    min_volume: Count = setting(100, "Fewest voxels of a cell; of a nucleus a quarter of that.")
