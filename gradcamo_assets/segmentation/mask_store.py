"""Masks of one field on disk: OME-Zarr (NGFF 0.5) label images in one folder, written whole and never changed.

``<folder>/labels/cells`` and ``<folder>/labels/nuclei``, one resolution each; the confidence of the cells stands in the
properties of their label image, where viewers show it. Not here: which folder a field has.
Specification: https://ngff.openmicroscopy.org/0.5/#labels-md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.segmentation.masks import CONFIDENCE_SCHEMA, Masks
from gradcamo_assets.storage import atomic_folder

_KINDS = ("cells", "nuclei")
_CHUNK_VOXELS = 2**20


def write_masks(folder: Path, masks: Masks, voxel_size: Sequence[float], provenance: Provenance) -> None:
    """Write both label images and the provenance into ``folder``, which is not there yet.

    Args:
        voxel_size: (z, y, x) in micrometres.

    Raises:
        SegmentationError: where the two masks differ in shape or have no three axes.
    """
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle

    if masks.cells.shape != masks.nuclei.shape or masks.cells.ndim != 3:
        problem = f"masks of shapes {masks.cells.shape} and {masks.nuclei.shape} are no masks of one field"
        raise SegmentationError(problem, "Give cells and nuclei (Z, Y, X) of one shape.", path=folder)
    scale = {"type": "scale", "scale": [float(step) for step in voxel_size]}
    multiscale = {
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    depth, height, width = masks.cells.shape
    slices = int(np.clip(_CHUNK_VOXELS // max(1, height * width), 1, max(1, depth)))
    with atomic_folder(folder) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        labels = root.create_group("labels", attributes={"ome": {"version": "0.5", "labels": list(_KINDS)}})
        for kind in _KINDS:
            # One object a label, as the specification words it; a number that is none is null, since JSON has no NaN.
            rows = masks.confidence.rename({"label": "label-value"}).fill_nan(None).to_dicts()
            about = {"properties": rows} if kind == "cells" and rows else {}
            image = {"version": "0.5", "multiscales": [{"name": kind, **multiscale}], "image-label": about}
            labels.create_group(kind, attributes={"ome": image}).create_array(
                "0", data=getattr(masks, kind).astype(np.uint32, copy=False), chunks=(slices, height, width),
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle),
                dimension_names=("z", "y", "x"),
            )  # fmt: skip
        provenance.write(temporary)


def read_masks(folder: Path) -> Masks:
    """The masks that ``write_masks`` wrote; without confidence where none was written.

    Raises:
        SegmentationError: where there are none, or they cannot be read.
    """
    import zarr

    try:
        root = zarr.open_group(folder, mode="r")
        cells, nuclei = (np.asarray(root[f"labels/{kind}/0"][:], np.uint32) for kind in _KINDS)  # type: ignore[index]
        about: Any = root["labels/cells"].attrs.asdict()["ome"]
        rows = about.get("image-label", {}).get("properties", [])
        values = [[row["label-value" if name == "label" else name] for name in CONFIDENCE_SCHEMA] for row in rows]
        confidence = pl.DataFrame(values, schema=CONFIDENCE_SCHEMA, orient="row")
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, pl.exceptions.PolarsError) as error:
        problem = f"there are no readable masks: {error}"
        raise SegmentationError(problem, "Segment this field anew.", path=folder) from error
    return Masks(cells, nuclei, confidence)
