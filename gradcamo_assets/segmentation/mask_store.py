"""Read, check and write the masks of one field as OME-Zarr (NGFF 0.5) label images.

A folder is written in one step and never changed. ``<folder>/labels/cells`` and ``<folder>/labels/nuclei`` have one
resolution each, stored as one shard; the latter is absent without a nucleus stain. The properties of the label image of
cells, which viewers display, hold the confidence of each cell.
Specification: https://ngff.openmicroscopy.org/0.5/#labels-md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.local_copies import fetch_folder, temporary_copies
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.segmentation.masks import CONFIDENCE_SCHEMA, Masks
from gradcamo_assets.storage import atomic_folder
from gradcamo_assets.storage_errors import is_storage_failure

_CHUNK_VOXELS = 2**20


def write_masks(folder: Path, masks: Masks, voxel_size: Sequence[float | None], provenance: Provenance) -> None:
    """Write the label images and the provenance into the new folder ``folder``.

    Args:
        voxel_size: (z, y, x) in micrometres. An axis of unknown size (None) gets the scale 1 and no unit.

    Raises:
        SegmentationError: the two masks differ in shape or are not three-dimensional.
    """
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle

    images = {"cells": masks.cells} | ({} if masks.nuclei is None else {"nuclei": masks.nuclei})
    shapes = [labels.shape for labels in images.values()]
    if len(set(shapes)) > 1 or masks.cells.ndim != 3:
        problem = f"masks have shapes {' and '.join(map(str, shapes))}, expected equal shapes (Z, Y, X)"
        raise SegmentationError(problem, "Give cells and nuclei of one field.", path=folder)
    scale = {"type": "scale", "scale": [1.0 if step is None else float(step) for step in voxel_size]}
    units = [{} if step is None else {"unit": "micrometer"} for step in voxel_size]
    multiscale = {
        "axes": [{"name": axis, "type": "space", **unit} for axis, unit in zip("zyx", units, strict=True)],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    depth, height, width = masks.cells.shape
    slices = int(np.clip(_CHUNK_VOXELS // max(1, height * width), 1, max(1, depth)))
    with atomic_folder(folder) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        labels = root.create_group("labels", attributes={"ome": {"version": "0.5", "labels": list(images)}})
        for kind, image_labels in images.items():
            # One object a label, as in the specification. JSON has no NaN, so NaN becomes null.
            rows = masks.confidence.rename({"label": "label-value"}).fill_nan(None).to_dicts()
            properties = {"properties": rows} if kind == "cells" and rows else {}
            image = {"version": "0.5", "multiscales": [{"name": kind, **multiscale}], "image-label": properties}
            labels.create_group(kind, attributes={"ome": image}).create_array(
                "0", data=image_labels.astype(np.uint32, copy=False), chunks=(slices, height, width),
                shards=(-(-depth // slices) * slices, height, width),
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle),
                dimension_names=("z", "y", "x"),
            )  # fmt: skip
        provenance.write(temporary)


def read_masks(folder: Path) -> Masks:
    """Read masks written by ``write_masks``; the confidence is empty if none was stored.

    Raises:
        SegmentationError: there are no masks, or they cannot be read.
    """
    import zarr

    try:
        with temporary_copies():
            root = zarr.open_group(fetch_folder(folder), mode="r")
            listed: Any = root["labels"].attrs.asdict()["ome"]
            images: dict[str, Any] = {kind: root[f"labels/{kind}/0"] for kind in listed["labels"]}
            labels = {kind: np.asarray(image[:], np.uint32) for kind, image in images.items()}
            metadata: Any = root["labels/cells"].attrs.asdict()["ome"]
        rows = metadata.get("image-label", {}).get("properties", [])
        values = [[row["label-value" if name == "label" else name] for name in CONFIDENCE_SCHEMA] for row in rows]
        confidence = pl.DataFrame(values, schema=CONFIDENCE_SCHEMA, orient="row")
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, pl.exceptions.PolarsError) as error:
        if is_storage_failure(error):
            raise
        problem = f"there are no readable masks: {error}"
        raise SegmentationError(problem, "Segment this field again.", path=folder) from error
    return Masks(labels["cells"], labels.get("nuclei"), confidence)
