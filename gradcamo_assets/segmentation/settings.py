"""Settings of the segmentation, checked, and recorded with the masks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from gradcamo_assets.segmentation.engines import check_network_name
from gradcamo_assets.settings import Count, section, setting

NOMINAL_WIDTH = 15.0
"""Assumed width of a cell in micrometres if no diameter is set."""

DIAMETER = 30.0
"""Width of a cell in pixels for which both shipped sets of weights were trained."""


@section
class SegmenterConfig:
    """How to segment fields: section ``[segmentation]`` of ``gradcamo.toml``.

    Attributes:
        network: if it is ``module:function``, ``function(kind)`` is called for ``cells`` and ``nuclei`` and returns a
            torch module that maps (B, 3, Y, X) float32 to flows in y and x (times 5) and the logit (B, 3, Y, X), and a
            style (B, 256). Input channels: cytoplasm, nucleus, zeros for cells; nucleus, zeros, zeros for nuclei. Sides
            are 256 or 384.
        mode: ``3d`` predicts flows in planes along three axes and runs the dynamics in 3D (Cellpose's ``do_3D``). It
            takes about four times as long and breaks fewer cells along z. It fails if neither the plate nor
            ``anisotropy`` states the ratio of z step to pixel size. ``auto`` chooses it for the compact network if the
            voxel size is known and slices are at most a sixth of a cell's width apart. Single slices are always
            segmented in 2D.
        nucleus: with ``none``, cells are found by the cytoplasm stains alone, there are no masks of nuclei, and the
            columns about nuclei are NULL.
        min_volume: nuclei less than a third as wide as the median nucleus of their field, which are micronuclei or
            debris, are left out as well.
        diameter: the default is 30, the scale of the network, if the pixel size is unknown, implies less than 8 or more
            than 200 pixels, or implies 22.5 to 40 pixels. A voxel size of 1 um along every axis counts as unknown here:
            it is what files state that do not know their scale.
    """

    network: Annotated[str, AfterValidator(check_network_name)] = setting(
        "compact",
        "compact; a network of Cellpose, from its own cache; a folder with cells.safetensors and nuclei.safetensors, "
        "or a file of Cellpose weights; or module:function for your own.",
    )
    mode: Literal["auto", "stitch", "3d"] = setting(
        "auto", "stitch: slice by slice, stitched along z; 3d: stacks of 5 slices or more in 3D; auto: 3d if suitable."
    )
    anisotropy: float | None = setting(
        None, "Ratio of z step to pixel size, for 3d; by default from the voxel size.", ge=0.1, le=50
    )
    nucleus: str | None = setting(
        None, "Name of the DNA stain; by default recognised by its name; none: the plate has no nucleus stain."
    )
    cytoplasm: tuple[str, ...] | None = setting(
        None, "Stains that fill cells; by default all fluorescence channels but the nucleus; []: use the nucleus only."
    )
    diameter: float | None = setting(
        None, "Width of a cell in pixels; by default from the voxel size, for cells 15 um wide, or 30.", ge=4, le=2000
    )
    stitch_threshold: float = setting(0.25, "Lowest overlap (IoU) that joins objects of two slices.", gt=0, le=1)
    flow_threshold: float = setting(0.4, "Highest flow error of an object; 0 keeps all. Not used in 3d.", ge=0, le=4)
    cellprob_threshold: float = setting(0.0, "Lowest logit inside an object; lower: more and larger.", ge=-20, le=20)
    min_volume: Count = setting(100, "Smallest number of voxels of a cell; a quarter of it for a nucleus.")
