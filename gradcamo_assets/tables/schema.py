"""Definitions of the lake tables and of the lake tables that the QC database contains.

Every column comment is written once: here, or in ``columns``, ``schema_scores`` and ``schema_profiles``.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.schema_profiles import PROFILE_TABLES
from gradcamo_assets.tables.schema_scores import AUDIT, SCORES

_FIELD_COLUMNS = (c.PLATE, c.WELL, c.SITE)
_FIELD_TABLE: dict[str, Any] = {
    "keys": ("plate", "site"),
    "partitioned_by": ("plate",),
    "unique": ("Metadata_Plate", "Metadata_Well", "Metadata_Site"),
}


def _version_table(stage: str, content: str, keys: tuple[str, ...]) -> Table:
    """The version table of a stage: the versions of its stored results.

    Every row has its own file, so that the Delta log alone shows which partitions are out of date.
    """
    columns = {"plate": c.PLATE, "site": c.SITE, "model_run": c.MODEL[2]}
    return Table(
        f"{stage}_versions",
        f"One row per partition: the version of {content}; written after the content",
        (*(columns[key] for key in keys), *c.VERSIONS),
        keys=keys,
        partitioned_by=keys,
        unique=tuple(columns[key].name for key in keys),
    )


_TABLES = (
    Table(
        "plates",
        "One row per plate: source, shape, voxel size and channels",
        (
            c.PLATE,
            Column("source_path", pl.String, "Path from which the plate was ingested"),
            Column("format", pl.String, "File format of the source"),
            Column("n_wells", pl.Int32, "Number of wells with images"),
            Column("n_fields", pl.Int32, "Number of fields with images"),
            Column("n_channels", pl.Int32, "Number of channels per field"),
            *(Column(f"size_{axis}", pl.Int32, f"Size of a field along {axis}, voxels") for axis in "zyx"),
            *(Column(f"voxel_{axis}_um", pl.Float64, f"Voxel size along {axis}, um; NULL: unknown") for axis in "zyx"),
            Column("channels", c.STRING_LIST, "Channel names, in order"),
            Column("intensity_center", c.FLOAT_LIST, "Median of the raw intensities, one per channel"),
            Column("intensity_scale", c.FLOAT_LIST, "Mean of the brightest 2.5% minus the median, one per channel"),
            Column("ingested_at", c.TIMESTAMP, "Time of ingestion, UTC"),
        ),
        keys=("plate",),
        unique=("Metadata_Plate",),
    ),
    Table(
        "wells",
        "One row per well: the plate map",
        (c.PLATE, c.WELL, *c.TREATMENT),
        keys=("plate",),
        unique=("Metadata_Plate", "Metadata_Well"),
    ),
    Table(
        "fields",
        "One row per field (one site of one well): path of its images, focus and intensity QC",
        (
            *_FIELD_COLUMNS,
            Column("path", pl.String, "Path of the field's images within the plate"),
            Column("qc_flag", pl.String, "Why the field is excluded; NULL: it is used"),
            Column("focus_slice", pl.Int32, "Sharpest slice, from 0"),
            Column("focus_score", pl.Float64, "Sharpness of the sharpest slice; comparable within a plate only"),
            Column("saturation", pl.Float64, "Fraction of voxels at the ceiling of the intensities"),
            Column("intensity_p1", c.FLOAT_LIST, "First percentile of the raw intensities, one per channel"),
            Column("intensity_median", c.FLOAT_LIST, "Median raw intensity, one per channel"),
            Column("intensity_p99", c.FLOAT_LIST, "99th percentile of the raw intensities, one per channel"),
            Column("background", c.FLOAT_LIST, "5th percentile of the raw intensities, one per channel"),
            Column("signal_to_noise", c.FLOAT_LIST, "(brightest 2.5% - background) / noise, one per channel"),
            Column("channel_saturation", c.FLOAT_LIST, "Fraction of saturated voxels, one per channel"),
            Column("channel_focus", c.FLOAT_LIST, "Sharpness of the channel's sharpest slice, one per channel"),
            Column("channel_focus_slice", pl.List(pl.Int32), "Sharpest slice of the channel, from 0, one per channel"),
            Column("focus_profile", pl.List(c.FLOAT_LIST), "Sharpness per channel and slice"),
            Column(
                "repeated_slices", pl.List(pl.Int32), "Number of slices that repeat the previous slice, one per channel"
            ),
            Column("qc_warning", pl.String, "What to check in a field that is used"),
            Column("image_version", pl.String, "Version (digest) of the field's pixels; NULL: unusable"),
        ),
        **_FIELD_TABLE,
    ),
    Table(
        "masks",
        "One row per field: its segmentation",
        (
            *_FIELD_COLUMNS,
            Column("image_version", pl.String, "Version (digest) of the pixels that were segmented"),
            Column(
                "read_version",
                pl.String,
                "Digest of image_version, illumination correction, channels and voxel size used for reading",
            ),
            Column("mask_version", pl.String, "Version (digest) of the masks; NULL: no masks"),
            Column("n_cells", pl.Int32, "Number of cells in the field's masks; NULL: no masks"),
            Column("foreground_share", pl.Float64, "Fraction of the field's voxels inside cells"),
            Column("qc_flag", pl.String, "Why the field has no masks; NULL: it has masks"),
        ),
        **_FIELD_TABLE,
    ),
    Table(
        "field_verdicts",
        "One row per field with masks: quality of the masks",
        (
            *_FIELD_COLUMNS,
            Column("qc_flag", pl.String, "Why all cells of the field are excluded; NULL: they are used"),
            Column("qc_warning", pl.String, "What to check in a field that is used"),
        ),
        **_FIELD_TABLE,
    ),
    Table(
        "field_crops",
        "One row per field with masks: its crops",
        (
            *_FIELD_COLUMNS,
            Column("crop_version", pl.String, "Version (digest) of the field's crops; NULL: no crops"),
            Column("n_crops", pl.Int32, "Number of crops; NULL: cropping failed"),
            Column("qc_flag", pl.String, "Why the field has no crops; NULL: it has crops"),
        ),
        **_FIELD_TABLE,
    ),
    Table(
        "cells",
        "One row per segmented cell",
        (
            *c.CELL,
            Column("label", pl.Int32, "Label of the cell in the field's mask", nullable=False),
            *(Column(f"centroid_{axis}", pl.Float64, f"Centroid along {axis}, voxels") for axis in "zyx"),
            *(
                Column(f"bbox_{axis}{end}", pl.Int32, f"{text} of the bounding box along {axis}, voxels")
                for axis in "zyx"
                for end, text in enumerate(("First index", "One past the last index"))
            ),
            Column("volume_voxels", pl.Int64, "Volume, voxels"),
            Column("volume_um3", pl.Float64, "Volume, cubic micrometres; NULL: unknown voxel size"),
            Column("touches_xy_border", pl.Boolean, "Whether the cell touches a lateral border of the field"),
            Column("touches_z_border", pl.Boolean, "Whether the cell touches the first or the last slice"),
            Column("nucleus_label", pl.Int32, "Label of the cell's nucleus; NULL: none found, or no nucleus stain"),
            Column("n_nuclei", pl.Int32, "Number of nuclei inside the cell; NULL: no nucleus stain"),
            Column("nucleus_share", pl.Float64, "Fraction of the cell inside its nuclei; NULL: no nucleus stain"),
            Column(
                "sphericity",
                pl.Float64,
                "Surface area of a sphere of equal volume / surface of the cell; in 2D: circularity; NULL: unknown",
            ),
            Column("solidity", pl.Float64, "Volume / volume of the convex hull"),
            Column("mean_intensity", c.FLOAT_LIST, "Mean raw intensity inside the cell, one per channel"),
            Column("n_slices", pl.Int32, "Number of slices that contain the cell"),
            Column(
                "stitch_breaks",
                pl.Int32,
                "Number of transitions between slices at which the overlap of the cell is low",
            ),
            Column(
                "nearest_neighbour_um",
                pl.Float64,
                "Distance to the nearest other cell, micrometres; 0: touching; NULL: no other, or unknown voxel size",
            ),
            Column("cell_probability", pl.Float64, "Mean cell probability of the segmentation network"),
            Column("flow_error", pl.Float64, "Mean squared error of the segmentation network's flows inside the cell"),
            Column("qc_flag", pl.String, "Why the cell is excluded; NULL: it is kept"),
            Column("qc_warning", pl.String, "What to check in the cell; the cell is not excluded for it"),
            c.MADE_FROM[0],
            Column(
                "treatment_class",
                pl.String,
                "Class for training the encoder: compound x dose; all controls form one class",
            ),
        ),
        **{**_FIELD_TABLE, "unique": ("Metadata_CellID",)},
    ),
    Table(
        "crops",
        "One row per cell: its crop, or the reason why it has none",
        (
            *_FIELD_COLUMNS,
            c.CELL_ID,
            Column("crop_index", pl.Int32, "Index of the cell's crop in the crop array; NULL: no crop"),
            Column("qc_flag", pl.String, "Why the cell has no crop; NULL: it has a crop"),
            *c.MADE_FROM,
        ),
        **{**_FIELD_TABLE, "unique": ("Metadata_CellID",)},
    ),
    Table(
        "models",
        "One row per registered model version",
        (
            *c.MODEL,
            Column("run_id", pl.String, "MLflow run that trained it"),
            Column("architecture", pl.String, "Name of the encoder in the encoder registry"),
            Column("layer", pl.String, "Layer whose Grad-CAM maps are scored"),
            Column(
                "objective",
                pl.String,
                "Training objective: treatment; or vicreg, simclr: self-supervised, logits are similarities to the "
                "prototypes of the training cells' classes; NULL: unknown",
            ),
            Column("classes", c.STRING_LIST, "Classes, in the order of the logits"),
            Column("train_plates", c.STRING_LIST, "Training plates"),
            Column("train_wells", c.STRING_LIST, "Training wells, as plate/well"),
            Column(
                "swap",
                pl.Float64,
                "Fraction of training crops whose surroundings came from another crop; NULL: unknown",
            ),
            Column(
                "regulariser",
                pl.String,
                "Training penalty on maps outside the cell: gradcamo. Training optimises the scores of such a version, "
                "so that they are no evidence by themselves; none: no penalty; NULL: unknown",
            ),
            Column("regulariser_weight", pl.Float64, "Weight (lambda) of the penalty"),
            Column("metrics", pl.Map(pl.String, pl.Float64), "Metrics of the run, for example metrics['accuracy']"),
            Column("aliases", c.STRING_LIST, "Current aliases; their history is in promotions"),
            Column("created_at", c.TIMESTAMP, "Time of registration, UTC"),
        ),
        unique=("model_name", "model_version"),
    ),
    SCORES,
    AUDIT,
    Table(
        "promotions",
        "One row per move of an alias; MLflow keeps the current alias only",
        (
            c.MODEL[0],
            Column("alias", pl.String, "Alias that moved: champion, challenger", nullable=False),
            Column("from_version", pl.Int32, "Previous version with the alias; NULL: none"),
            Column("to_version", pl.Int32, "New version with the alias; NULL: the alias was removed"),
            Column("from_run", pl.String, "MLflow run of from_version"),
            Column("to_run", pl.String, "MLflow run of to_version"),
            Column(
                "promoted_at", c.TIMESTAMP, "Time of the move, or time at which it was first seen, UTC", nullable=False
            ),
            Column("promoted_by", pl.String, "Person or process that moved the alias"),
            Column("reason", pl.String, "Reason for the move"),
        ),
        unique=("model_name", "alias", "promoted_at", "to_version"),
    ),
    Table(
        "unscored",
        "One row per plate x site that a model version cannot score, with the reason",
        (c.PLATE, c.SITE, *c.MODEL, Column("reason", pl.String, "Why the plate x site is not scored", nullable=False)),
        keys=("model_run",),
        unique=("Metadata_Plate", "Metadata_Site", "model_run"),
    ),
    Table(
        "embeddings",
        "One row per cell x model version: the encoder's activations",
        (
            *c.CELL,
            *c.MODEL,
            Column("embedding", pl.List(pl.Float32), "Pooled activations; the length depends on the version"),
        ),
        keys=("plate", "site", "model_run"),
        partitioned_by=("plate", "model_run"),
        unique=("Metadata_CellID", "model_run"),
    ),
    *PROFILE_TABLES,
    _version_table("image", "the images of a plate x site", ("plate", "site")),
    _version_table("mask", "the masks of a plate x site", ("plate", "site")),
    _version_table("cell", "the cell table of a plate x site", ("plate", "site")),
    _version_table("crop", "the crops of a plate x site", ("plate", "site")),
    _version_table("score", "the scores and embeddings of a plate x site by a model", ("plate", "site", "model_run")),
    _version_table("audit", "the audit of a plate by a model", ("plate", "model_run")),
    _version_table("profile", "the profiles of a plate by a model", ("plate", "model_run")),
    _version_table("umap", "the UMAP coordinates of a plate's cells by a model", ("plate", "model_run")),
    _version_table("confounder", "the probes of a plate by a model", ("plate", "model_run")),
)

LAKE_TABLES: dict[str, Table] = {table.name: table for table in _TABLES}

# The QC database contains an index of what is to be scored, copies of small tables, and views of big tables' files.
INDEX_TABLES = {name: LAKE_TABLES[name] for name in ("crop_versions", "score_versions")}
COPIED_TABLES = {name: table for name, table in LAKE_TABLES.items() if not table.partitioned_by}
VIEWED_TABLES = {
    name: table for name, table in LAKE_TABLES.items() if table.partitioned_by and not name.endswith("_versions")
}


def lake_table(name: str) -> Table:
    """The definition of one lake table.

    Raises:
        StoreError: for an unknown name.
    """
    if name not in LAKE_TABLES:
        raise StoreError(f"the lake has no table {name!r}", f"Use one of {', '.join(LAKE_TABLES)}.")
    return LAKE_TABLES[name]


def tables_keyed_by(*keys: str) -> list[str]:
    """The names of the lake tables whose keys include all of these."""
    return [table.name for table in LAKE_TABLES.values() if set(keys) <= set(table.keys)]
