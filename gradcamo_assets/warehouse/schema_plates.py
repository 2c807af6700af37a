"""Tables about what was imaged: plates, wells, fields and the cells found in them."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.warehouse.columns import (
    CELL_KEYS,
    CROP_VERSION,
    MASK_VERSION,
    NUMBERS,
    PERT_TYPE,
    PLATE,
    SITE,
    TEXTS,
    TIME,
    TREATMENT,
    WELL,
    Column,
    Table,
)

PLATES = Table(
    "plates",
    "One row a plate: where it came from, its shape, voxel size and channels",
    (
        PLATE,
        Column("source_path", pl.String, "Where the plate was found when it was taken in"),
        Column("format", pl.String, "File format it arrived in"),
        Column("n_wells", pl.Int32, "Wells with images"),
        Column("n_fields", pl.Int32, "Fields with images"),
        Column("n_channels", pl.Int32, "Channels of a field"),
        Column("size_z", pl.Int32, "Slices of a field"),
        Column("size_y", pl.Int32, "Height of a field, pixels"),
        Column("size_x", pl.Int32, "Width of a field, pixels"),
        Column("voxel_z_um", pl.Float64, "Distance between slices, micrometres"),
        Column("voxel_y_um", pl.Float64, "Height of a pixel, micrometres"),
        Column("voxel_x_um", pl.Float64, "Width of a pixel, micrometres"),
        Column("channels", TEXTS, "Channel names in order"),
        Column("intensity_center", NUMBERS, "Robust centre of the raw intensities, one a channel"),
        Column("intensity_scale", NUMBERS, "Robust scale of the raw intensities, one a channel"),
        Column("ingested_at", TIME, "When the plate was taken in, UTC"),
    ),
    keys=("plate",),
    unique=("Metadata_Plate",),
)

WELLS = Table(
    "wells",
    "One row a well: the plate map",
    (PLATE, WELL, *TREATMENT, PERT_TYPE),
    keys=("plate",),
    unique=("Metadata_Plate", "Metadata_Well"),
)

FIELDS = Table(
    "fields",
    "One row a field (one well at one site): where its images are, focus and intensity QC",
    (
        PLATE,
        WELL,
        SITE,
        Column("path", pl.String, "Path of the field's images within the plate"),
        Column("qc_flag", pl.String, "Why the field is not used; NULL: it is used"),
        Column("focus_slice", pl.Int32, "Sharpest slice, from 0"),
        Column("focus_score", pl.Float64, "Sharpness of the sharpest slice; compare within a plate"),
        Column("saturation", pl.Float64, "Share of voxels at the top of the intensity range"),
        Column("intensity_p1", NUMBERS, "First percentile of the raw intensities, one a channel"),
        Column("intensity_median", NUMBERS, "Median raw intensity, one a channel"),
        Column("intensity_p99", NUMBERS, "99th percentile of the raw intensities, one a channel"),
    ),
    keys=("plate", "site"),
    unique=("Metadata_Plate", "Metadata_Well", "Metadata_Site"),
)

_BOX = tuple(
    Column(f"bbox_{axis}{end}", pl.Int32, f"{text} of the bounding box along {axis}, voxels")
    for axis in "zyx"
    for end, text in ((0, "First index"), (1, "One past the last index"))
)

CELLS = Table(
    "cells",
    "One row a segmented cell",
    (
        *CELL_KEYS,
        Column("label", pl.Int32, "Label of the cell in the field's mask", nullable=False),
        *(Column(f"centroid_{axis}", pl.Float64, f"Centroid along {axis}, voxels") for axis in "zyx"),
        *_BOX,
        Column("volume_voxels", pl.Int64, "Volume, voxels"),
        Column("volume_um3", pl.Float64, "Volume, cubic micrometres"),
        Column("touches_xy_border", pl.Boolean, "Whether the cell touches a side of the field"),
        Column("touches_z_border", pl.Boolean, "Whether the cell touches the first or the last slice"),
        Column("nucleus_label", pl.Int32, "Label of the cell's nucleus; NULL where none was found"),
        Column("n_nuclei", pl.Int32, "Nuclei inside the cell"),
        Column("crop_index", pl.Int32, "Index of the cell's crop in its crop array; NULL where none was kept"),
        Column("qc_flag", pl.String, "Why the cell is not scored; NULL: it is kept"),
        MASK_VERSION,
        CROP_VERSION,
        Column("treatment_class", pl.String, "Class the encoder learns: compound x dose, controls are one class"),
    ),
    keys=("plate", "site"),
    unique=("Metadata_CellID",),
)
