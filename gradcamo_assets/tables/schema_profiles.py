"""Definitions of the tables about profiles: well profiles, UMAP, replicability, confounder probes, stains."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.schema_scores import SPLITS

_POPULATION = Column("population", pl.String, "Cell population: all, on_target, trusted, matched, weighted")
_TRAINED_SHARE = Column("trained_share", pl.Float64, "Fraction that the model was trained on")
_QUARTILES = {"median": "Median", "q25": "Lower quartile", "q75": "Upper quartile"}

PROFILE_TABLES = (
    Table(
        "profiles",
        "One row per well x model version x population of cells: embeddings aggregated to wells, then sphered",
        (
            c.PLATE,
            c.WELL,
            *c.TREATMENT,
            *c.MODEL,
            _POPULATION,
            Column("split", pl.String, "Data split of the well", allowed=SPLITS),
            Column("n_cells", pl.Int32, "Number of cells aggregated"),
            Column("sphering", pl.String, "Digest of the sphering transform; NULL: not sphered"),
            Column("profile", pl.List(pl.Float32), "Profile of the well"),
        ),
        keys=("plate", "model_run"),
        partitioned_by=("plate", "model_run"),
        unique=("Metadata_Plate", "Metadata_Well", "model_run", *c.DOSE_NAMES, "population"),
    ),
    Table(
        "umap",
        "One row per cell x model version: its coordinates on the two-dimensional map",
        (
            *c.CELL,
            *c.MODEL,
            Column("umap_x", pl.Float64, "First coordinate, no unit"),
            Column("umap_y", pl.Float64, "Second coordinate, no unit"),
        ),
        keys=("plate", "model_run"),
        partitioned_by=("plate", "model_run"),
        unique=("Metadata_CellID", "model_run"),
    ),
    Table(
        "replicability",
        "One row per treatment x model version x population of cells: similarity of replicate wells",
        (
            *c.MODEL,
            _POPULATION,
            *c.DOSE,
            Column(
                "mean_average_precision",
                pl.Float64,
                "Mean average precision of retrieving replicate wells; ties count as ranked at random",
            ),
            Column(
                "p_value", pl.Float64, "Share of random rankings that retrieve the replicate wells as well or better"
            ),
            Column("n_wells", pl.Int32, "Number of replicate wells"),
            _TRAINED_SHARE,
        ),
        keys=("model_run",),
        unique=("model_run", *c.DOSE_NAMES, "population"),
    ),
    Table(
        "confounder_audit",
        "One row per probe x model version x population of cells: accuracy of a simple classifier, and chance",
        (
            *c.MODEL,
            _POPULATION,
            Column("Metadata_Plate", pl.String, "Plate; NULL: all plates together"),
            Column(
                "target", pl.String, "Predicted variable: treatment, dose, site, well_row, well_column, plate", False
            ),
            Column("representation", pl.String, "Input: embedding, cell_count, background (cells removed)", False),
            Column("score", pl.Float64, "Balanced accuracy of the probe, cross-validated over wells"),
            Column("chance", pl.Float64, "Balanced accuracy of guessing"),
            Column("silhouette", pl.Float64, "Mean silhouette of the target's groups, -1 to 1; 0: they overlap"),
            Column("n", pl.Int32, "Number of cells of the probe"),
            _TRAINED_SHARE,
        ),
        keys=("model_run",),
        unique=("model_run", "Metadata_Plate", "target", "representation", "population"),
    ),
    Table(
        "channel_correlation",
        "One row per plate x pair of stains: Pearson correlation over the voxels of a cell, in a sample of cells",
        (
            c.PLATE,
            Column("channel_a", pl.String, "First stain", nullable=False),
            Column("channel_b", pl.String, "Second stain", nullable=False),
            *(Column(f"{name}_correlation", pl.Float64, f"{text} over cells") for name, text in _QUARTILES.items()),
            Column("n_cells", pl.Int32, "Number of cells in which both stains vary"),
        ),
        keys=("plate",),
        unique=("Metadata_Plate", "channel_a", "channel_b"),
    ),
)
