"""How fields are segmented: every setting, checked, as it is recorded with the masks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gradcamo_assets.common.sections import Count, section
from gradcamo_assets.segmentation.engines import REMEDY, is_known

NOMINAL_WIDTH = 15.0
"""Width of a cell in micrometres that is assumed where no diameter is set."""

DIAMETER = 30.0
"""Width of a cell, in pixels, at which both shipped sets of weights work best."""


def _known(network: str) -> str:
    if not is_known(network):
        raise ValueError(f"there is no network {network!r}: {REMEDY}")
    return network


@section
class SegmenterConfig:
    """How fields are segmented: section ``[segmentation]`` of ``gradcamo.toml``.

    network: where it is ``module:function``, ``function(kind)``, for ``cells`` and for ``nuclei``, returns a torch
    module that turns (B, 3, Y, X) float32 into flows in y and x times 5 and the logit (B, 3, Y, X), and a style
    (B, 256). Inputs: cytoplasm, nucleus, zeros for cells; nucleus, zeros, zeros for nuclei. Sides are 256 or 384.
    mode: ``3d`` takes flows in three sets of planes and dynamics in 3D (Cellpose's ``do_3D``); some six times the work,
    fewer cells broken in z. ``auto`` takes it with the compact network, where the voxel size is known and slices are
    at most a sixth of a cell's width apart. A single slice is done in 2D in all.
    """

    network: Annotated[str, AfterValidator(_known)] = Field(
        default="compact",
        description="compact; one of Cellpose's, from its own cache; a path: a folder with cells.safetensors and "
        "nuclei.safetensors that train wrote, or a file of Cellpose weights; or module:function of your own.",
    )
    mode: Literal["auto", "stitch", "3d"] = Field(
        default="auto",
        description="stitch: slice by slice, stitched along z; 3d: stacks of 5 slices or more as a whole; auto: 3d "
        "where it is worth it.",
    )
    anisotropy: float | None = Field(
        default=None, ge=0.1, le=50, description="Step in z over pixel size, for 3d; else from the voxel size, or 1."
    )
    nucleus: str | None = Field(default=None, description="Name of the DNA stain; else found by name.")
    cytoplasm: tuple[str, ...] | None = Field(
        default=None,
        description="Names of the stains that fill cells; else every other fluorescence channel. Without any, cells "
        "are segmented from the nucleus stain alone.",
    )
    diameter: float | None = Field(
        default=None,
        ge=4,
        le=2000,
        description="Width of a cell in pixels; else from the voxel size, taking cells as 15 um wide; 30 where that is "
        "unknown (1, 1, 1), gives less than 8 pixels or more than 200, or is off by less than a third.",
    )
    stitch_threshold: float = Field(
        default=0.25, gt=0, le=1, description="Least intersection over union that joins objects of neighbouring slices."
    )
    flow_threshold: float = Field(
        default=0.4, ge=0, le=4, description="Highest flow error of an object; 0 keeps all. Not used in 3d."
    )
    cellprob_threshold: float = Field(
        default=0.0, ge=-20, le=20, description="Least logit of a pixel in an object; lower: larger and more objects."
    )
    min_volume: Count = Field(default=100, description="Fewest voxels of a cell; of a nucleus a quarter of that.")
