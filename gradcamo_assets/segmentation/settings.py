"""How fields are segmented: every setting, checked, as it is recorded with the masks."""

from __future__ import annotations

from dataclasses import dataclass

from gradcamo_assets.common.errors import SegmentationError
from gradcamo_assets.segmentation.engines import REMEDY, is_known

MODES = ("auto", "stitch", "3d")

NOMINAL_WIDTH = 15.0
"""Width of a cell in micrometres that is assumed where no diameter is set."""

DIAMETER = 30.0
"""Width of a cell, in pixels, at which both shipped sets of weights work best."""


@dataclass(frozen=True)
class SegmenterConfig:
    """How fields are segmented.

    Args:
        network: ``compact``; one of Cellpose's (``BUILT_IN``), from Cellpose's own cache; a path: a folder with
            ``cells.safetensors`` and ``nuclei.safetensors`` that ``train`` wrote, or a file of Cellpose weights; or
            ``module:function``, where ``function(kind)``, for ``cells`` and for ``nuclei``, returns a torch module that
            turns (B, 3, Y, X) float32 into flows in y and x times 5 and the logit (B, 3, Y, X), and a style (B, 256).
            Inputs: cytoplasm, nucleus, zeros for cells; nucleus, zeros, zeros for nuclei. Sides are 256 or 384.
        mode: ``stitch``: slice by slice, stitched along z. ``3d``: flows in three sets of planes and dynamics in 3D
            (Cellpose's ``do_3D``), for stacks of 5 slices or more; some six times the work, fewer cells broken in z.
            ``auto``: ``3d`` with the compact network, for stacks that allow it whose voxel size is known and whose
            slices are at most a sixth of a cell's width apart; else ``stitch``. A single slice is done in 2D in all.
        anisotropy: step in z over pixel size, for ``3d``; None: from the voxel size, 1 where that is unknown.
        nucleus: name of the DNA stain; None finds it by name.
        cytoplasm: names of the stains that fill cells; None takes every other fluorescence channel. Without any (also
            ``()``), cells are segmented from the nucleus stain alone.
        diameter: width of a cell in pixels. None: from the voxel size, taking cells as 15 um wide; the network's own
            scale (30 pixels) where the voxel size is unknown (1, 1, 1), gives less than 8 pixels or more than 200, or
            the two differ by less than a third.
        stitch_threshold: least intersection over union that joins objects of neighbouring slices.
        flow_threshold: highest flow error of an object; 0 keeps all. Cellpose does not use it in ``3d``.
        cellprob_threshold: least logit of a pixel inside an object; lower gives larger and more objects.
        min_volume: fewest voxels of a cell; of a nucleus a quarter of that.

    Raises:
        SegmentationError: for a value that cannot be meant.
    """

    network: str = "compact"
    mode: str = "auto"
    anisotropy: float | None = None
    nucleus: str | None = None
    cytoplasm: tuple[str, ...] | None = None
    diameter: float | None = None
    stitch_threshold: float = 0.25
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_volume: int = 100

    def __post_init__(self) -> None:
        stains = self.cytoplasm is None or not isinstance(self.cytoplasm, str)
        flat = self.anisotropy is None or 0.1 <= self.anisotropy <= 50
        for name, right, remedy in (
            ("network", is_known(self.network), REMEDY),
            ("mode", self.mode in MODES, f"Use one of {', '.join(MODES)}"),
            ("anisotropy", flat, "Give a number from 0.1 to 50, or None"),
            ("cytoplasm", stains, "Give a tuple of channel names, or None for all that are not the nucleus"),
            ("diameter", self.diameter is None or 4 <= self.diameter <= 2000, "Give 4 to 2000 pixels, or None"),
            ("stitch_threshold", 0 < self.stitch_threshold <= 1, "Give a number above 0, at most 1"),
            ("flow_threshold", 0 <= self.flow_threshold <= 4, "Give a number from 0 to 4"),
            ("cellprob_threshold", -20 <= self.cellprob_threshold <= 20, "Give a number from -20 to 20"),
            ("min_volume", self.min_volume >= 0, "Give a number of voxels"),
        ):
            if not right:
                raise SegmentationError(f"{name} cannot be {getattr(self, name)!r}", f"{remedy}.")
