"""The tables of the lake and of the QC database, as data. What a column means is written once, here or beside."""

from __future__ import annotations

from typing import Any

import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.schema_profiles import PROFILE_TABLES
from gradcamo_assets.tables.schema_scores import AUDIT, SCORES

_FIELD = (c.PLATE, c.WELL, c.SITE)
_FIELDS: dict[str, Any] = {
    "keys": ("plate", "site"),
    "partitioned_by": ("plate",),
    "unique": ("Metadata_Plate", "Metadata_Well", "Metadata_Site"),
}


def _versions(stage: str, what: str, keys: tuple[str, ...]) -> Table:
    """What stands in the lake of each partition of a stage, one file a row: its log is the index of what is to do."""
    columns = {"plate": c.PLATE, "site": c.SITE, "model_run": c.MODEL[2]}
    return Table(
        f"{stage}_versions",
        f"One row a partition: the version of {what}, written after it",
        (*(columns[key] for key in keys), *c.VERSIONS),
        keys=keys,
        partitioned_by=keys,
        unique=tuple(columns[key].name for key in keys),
    )


_TABLES = (
    Table(
        "plates",
        "One row a plate: where it came from, its shape, voxel size and channels",
        (
            c.PLATE,
            Column("source_path", pl.String, "Where the plate was found when it was taken in"),
            Column("format", pl.String, "File format it arrived in"),
            Column("n_wells", pl.Int32, "Wells with images"),
            Column("n_fields", pl.Int32, "Fields with images"),
            Column("n_channels", pl.Int32, "Channels of a field"),
            *(Column(f"size_{axis}", pl.Int32, f"Length of a field along {axis}, voxels") for axis in "zyx"),
            *(Column(f"voxel_{axis}_um", pl.Float64, f"Length of a voxel along {axis}, micrometres") for axis in "zyx"),
            Column("channels", c.TEXTS, "Channel names in order"),
            Column("intensity_center", c.NUMBERS, "Robust centre of the raw intensities, one a channel"),
            Column("intensity_scale", c.NUMBERS, "Robust scale of the raw intensities, one a channel"),
            Column("ingested_at", c.TIME, "When the plate was taken in, UTC"),
        ),
        keys=("plate",),
        unique=("Metadata_Plate",),
    ),
    Table(
        "wells",
        "One row a well: the plate map",
        (c.PLATE, c.WELL, *c.TREATMENT),
        keys=("plate",),
        unique=("Metadata_Plate", "Metadata_Well"),
    ),
    Table(
        "fields",
        "One row a field (one well at one site): where its images are, focus and intensity QC",
        (
            *_FIELD,
            Column("path", pl.String, "Path of the field's images within the plate"),
            Column("qc_flag", pl.String, "Why the field is not used; NULL: it is used"),
            Column("focus_slice", pl.Int32, "Sharpest slice, from 0"),
            Column("focus_score", pl.Float64, "Sharpness of the sharpest slice; compare within a plate"),
            Column("saturation", pl.Float64, "Share of voxels at the top of the intensity range"),
            Column("intensity_p1", c.NUMBERS, "First percentile of the raw intensities, one a channel"),
            Column("intensity_median", c.NUMBERS, "Median raw intensity, one a channel"),
            Column("intensity_p99", c.NUMBERS, "99th percentile of the raw intensities, one a channel"),
            Column("background", c.NUMBERS, "5th percentile of the raw intensities, one a channel"),
            Column("signal_to_noise", c.NUMBERS, "(99th percentile - background) / pixel noise, one a channel"),
            Column("channel_saturation", c.NUMBERS, "Share of voxels at the top of the intensity range, one a channel"),
            Column("channel_focus", c.NUMBERS, "Sharpness of the channel's sharpest slice, one a channel"),
            Column("channel_focus_slice", pl.List(pl.Int32), "Sharpest slice of the channel, from 0, one a channel"),
            Column("focus_profile", pl.List(c.NUMBERS), "Sharpness by channel and slice"),
            Column("repeated_slices", pl.List(pl.Int32), "Slices that repeat the one before, one a channel"),
            Column("qc_warning", pl.String, "What to look at in a field that is used all the same"),
            Column("image_version", pl.String, "Version (digest) of the field's pixels; NULL: they cannot be used"),
        ),
        **_FIELDS,
    ),
    Table(
        "masks",
        "One row a field: what its masks say of it",
        (
            *_FIELD,
            Column("image_version", pl.String, "Version (digest) of the pixels that were segmented"),
            Column("read_version", pl.String, "The same with the light, channels and voxel size they were read with"),
            Column("mask_version", pl.String, "Version (digest) of the masks; NULL: there are none"),
            Column("n_cells", pl.Int32, "Cells in the field's masks; NULL where none were made"),
            Column("foreground_share", pl.Float64, "Share of the field's voxels that lie inside cells"),
            Column("qc_flag", pl.String, "Why the field has no masks; NULL: it has"),
        ),
        **_FIELDS,
    ),
    Table(
        "field_verdicts",
        "One row a field with masks: whether they are of use",
        (
            *_FIELD,
            Column("qc_flag", pl.String, "Why no cell of the field is used; NULL: they are"),
            Column("qc_warning", pl.String, "What to look at in a field that is used all the same"),
        ),
        **_FIELDS,
    ),
    Table(
        "field_crops",
        "One row a field with masks: its crops",
        (
            *_FIELD,
            Column("crop_version", pl.String, "Version (digest) of the field's crops; NULL: there are none"),
            Column("n_crops", pl.Int32, "Crops cut; NULL where it failed"),
            Column("qc_flag", pl.String, "Why the field has no crops; NULL: it has"),
        ),
        **_FIELDS,
    ),
    Table(
        "cells",
        "One row a segmented cell",
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
            Column("volume_um3", pl.Float64, "Volume, cubic micrometres"),
            Column("touches_xy_border", pl.Boolean, "Whether the cell touches a side of the field"),
            Column("touches_z_border", pl.Boolean, "Whether the cell touches the first or the last slice"),
            Column("nucleus_label", pl.Int32, "Label of the cell's nucleus; NULL where none was found"),
            Column("n_nuclei", pl.Int32, "Nuclei inside the cell"),
            Column("nucleus_share", pl.Float64, "Share of the cell's volume that its nuclei fill"),
            Column("sphericity", pl.Float64, "Surface of the sphere of its volume over the cell's; in 2D circularity"),
            Column("solidity", pl.Float64, "Volume over that of the convex hull"),
            Column("mean_intensity", c.NUMBERS, "Mean raw intensity inside the cell, one a channel"),
            Column("n_slices", pl.Int32, "Slices that the cell is in"),
            Column("stitch_breaks", pl.Int32, "Steps from slice to slice at which the cell barely hangs together"),
            Column(
                "nearest_neighbour_um", pl.Float64, "Distance to the nearest other cell, micrometres; 0: they touch"
            ),
            Column("cell_probability", pl.Float64, "Mean of the network's probability that a voxel is in a cell"),
            Column("flow_error", pl.Float64, "Mean squared error of the network's flows inside the cell"),
            Column("qc_flag", pl.String, "Why the cell is not scored; NULL: it is kept"),
            Column("qc_warning", pl.String, "What to doubt in the cell; alone no reason to leave it out"),
            c.MADE_FROM[0],
            Column("treatment_class", pl.String, "Class the encoder learns: compound x dose, controls are one class"),
        ),
        **{**_FIELDS, "unique": ("Metadata_CellID",)},
    ),
    Table(
        "crops",
        "One row a cell: its crop, or why it has none",
        (
            *_FIELD,
            c.CELL_ID,
            Column("crop_index", pl.Int32, "Index of the cell's crop in its crop array; NULL where none was kept"),
            Column("qc_flag", pl.String, "Why the cell has no crop; NULL: it has"),
            *c.MADE_FROM,
        ),
        **{**_FIELDS, "unique": ("Metadata_CellID",)},
    ),
    Table(
        "models",
        "One row a registered model version",
        (
            *c.MODEL,
            Column("run_id", pl.String, "MLflow run that trained it"),
            Column("architecture", pl.String, "Encoder, by its name in the registry"),
            Column("layer", pl.String, "Layer whose maps are scored"),
            Column(
                "objective",
                pl.String,
                "What it was trained for: treatment; or vicreg, simclr: without classes, logits are similarities to "
                "the prototypes of the training cells' classes; NULL: not known",
            ),
            Column("classes", c.TEXTS, "Classes in the order of the logits"),
            Column("train_plates", c.TEXTS, "Plates it was trained on"),
            Column("train_wells", c.TEXTS, "Wells it was trained on, as plate/well"),
            Column("swap", pl.Float64, "Share of crops trained on with surroundings of another crop; NULL: not known"),
            Column(
                "regulariser",
                pl.String,
                "Penalty on maps beside the cell in training: gradcamo. The scores of such a version were trained for "
                "and are no evidence by themselves; none: there was none; NULL: not known",
            ),
            Column("regulariser_weight", pl.Float64, "Weight (lambda) of that penalty"),
            Column("metrics", pl.Map(pl.String, pl.Float64), "Metrics of the run: metrics['accuracy']"),
            Column("aliases", c.TEXTS, "Aliases it holds now; their moves are in promotions"),
            Column("created_at", c.TIME, "When the version was registered, UTC"),
        ),
        unique=("model_name", "model_version"),
    ),
    SCORES,
    AUDIT,
    Table(
        "promotions",
        "One row a move of an alias (MLflow keeps only the present)",
        (
            c.MODEL[0],
            Column("alias", pl.String, "Alias that moved: champion, challenger", nullable=False),
            Column("from_version", pl.Int32, "Version that held the alias before; NULL: none did"),
            Column("to_version", pl.Int32, "Version that holds it after; NULL: the alias was taken away"),
            Column("from_run", pl.String, "MLflow run of the version that held the alias before"),
            Column("to_run", pl.String, "MLflow run of the version that holds it after"),
            Column("promoted_at", c.TIME, "When the move was made or first seen, UTC", nullable=False),
            Column("promoted_by", pl.String, "Who or what moved it"),
            Column("reason", pl.String, "Why"),
        ),
        unique=("model_name", "alias", "promoted_at", "to_version"),
    ),
    Table(
        "unscored",
        "One row a plate x site that a model version leaves unscored, with the reason",
        (c.PLATE, c.SITE, *c.MODEL, Column("reason", pl.String, "Why it is left unscored", nullable=False)),
        keys=("model_run",),
        unique=("Metadata_Plate", "Metadata_Site", "model_run"),
    ),
    Table(
        "embeddings",
        "One row a cell x model version: the encoder's activations, read from the lake",
        (
            *c.CELL,
            *c.MODEL,
            Column("embedding", pl.List(pl.Float32), "Pooled activations; lengths differ between versions"),
        ),
        keys=("plate", "site", "model_run"),
        partitioned_by=("plate", "model_run"),
        unique=("Metadata_CellID", "model_run"),
    ),
    *PROFILE_TABLES,
    _versions("image", "the images of a plate x site", ("plate", "site")),
    _versions("mask", "the masks of a plate x site", ("plate", "site")),
    _versions("cell", "the cell table of a plate x site", ("plate", "site")),
    _versions("crop", "the crops of a plate x site", ("plate", "site")),
    _versions("score", "the scores and embeddings of a plate x site by a model", ("plate", "site", "model_run")),
    _versions("audit", "the audit of a plate by a model", ("plate", "model_run")),
    _versions("profile", "the profiles of a plate by a model", ("plate", "model_run")),
    _versions("umap", "the places of a plate's cells on the map of a model", ("plate", "model_run")),
    _versions("confounder", "the probes of a plate by a model", ("plate", "model_run")),
)

LAKE_TABLES: dict[str, Table] = {table.name: table for table in _TABLES}

# What the QC database takes from the lake: what is to be scored, small tables as copies, big ones as views on files.
INDEX_TABLES = {name: LAKE_TABLES[name] for name in ("crop_versions", "score_versions")}
COPIED_TABLES = {name: table for name, table in LAKE_TABLES.items() if not table.partitioned_by}
VIEWED_TABLES = {
    name: table for name, table in LAKE_TABLES.items() if table.partitioned_by and not name.endswith("_versions")
}


def lake_table(name: str) -> Table:
    """The description of one lake table.

    Raises:
        StoreError: where there is no such table.
    """
    if name not in LAKE_TABLES:
        raise StoreError(f"there is no table {name!r}", f"The tables are {', '.join(LAKE_TABLES)}.")
    return LAKE_TABLES[name]


def tables_filed_by(*keys: str) -> list[str]:
    """The lake tables of which a commit replaces what stands under all of these keys."""
    return [table.name for table in LAKE_TABLES.values() if set(keys) <= set(table.keys)]
