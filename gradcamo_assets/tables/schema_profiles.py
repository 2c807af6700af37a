"""What profiles are and what they are worth: well profiles, the map of cells, replicability, probes, stains."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.schema_scores import SPLITS

_POPULATION = Column("population", pl.String, "Cells it is made of: all, on_target, trusted, matched, weighted")
_TRAINED_SHARE = Column("trained_share", pl.Float64, "Share that the model was trained on, and so knows by heart")
_QUARTILES = {"median": "Median", "q25": "Lower quartile", "q75": "Upper quartile"}

PROFILE_TABLES = (
    Table(
        "profiles",
        "One row a well x model version x population of cells: embeddings aggregated to wells, then sphered",
        (
            c.PLATE,
            c.WELL,
            *c.TREATMENT,
            *c.MODEL,
            _POPULATION,
            Column("split", pl.String, "What the well was to the model", allowed=SPLITS),
            Column("n_cells", pl.Int32, "Cells aggregated"),
            Column("sphering", pl.String, "Digest of the sphering it went through; NULL: it is not sphered"),
            Column("profile", pl.List(pl.Float32), "Profile of the well"),
        ),
        keys=("plate", "model_run"),
        partitioned_by=("plate", "model_run"),
        unique=("Metadata_Plate", "Metadata_Well", "model_run", *c.DOSE_NAMES, "population"),
    ),
    Table(
        "umap",
        "One row a cell x model version: its place on the two-dimensional map",
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
        "One row a treatment x model version x population of cells: do replicate wells find each other",
        (
            *c.MODEL,
            _POPULATION,
            *c.DOSE,
            Column("mean_average_precision", pl.Float64, "Mean average precision of retrieving replicate wells"),
            Column("p_value", pl.Float64, "Permutation p value of the mean average precision"),
            Column("n_wells", pl.Int32, "Replicate wells"),
            _TRAINED_SHARE,
        ),
        keys=("model_run",),
        unique=("model_run", *c.DOSE_NAMES, "population"),
    ),
    Table(
        "confounder_audit",
        "One row a probe x model version x population of cells: what a simple classifier reads, beside chance",
        (
            *c.MODEL,
            _POPULATION,
            Column("Metadata_Plate", pl.String, "Plate; NULL: all plates together"),
            Column(
                "target", pl.String, "What is predicted: treatment, dose, site, well_row, well_column, plate", False
            ),
            Column(
                "representation", pl.String, "What from: embedding, cell_count, background (cells taken out)", False
            ),
            Column("score", pl.Float64, "Balanced accuracy of the probe, cross-validated over wells"),
            Column("chance", pl.Float64, "Score of guessing"),
            Column("silhouette", pl.Float64, "Mean silhouette of the target's groups, -1 to 1; 0: they overlap"),
            Column("n", pl.Int32, "Cells the probe saw"),
            _TRAINED_SHARE,
        ),
        keys=("model_run",),
        unique=("model_run", "Metadata_Plate", "target", "representation", "population"),
    ),
    Table(
        "channel_correlation",
        "One row a plate x pair of stains: Pearson's correlation over the voxels of a cell, in a sample of cells",
        (
            c.PLATE,
            Column("channel_a", pl.String, "One stain", nullable=False),
            Column("channel_b", pl.String, "The other", nullable=False),
            *(Column(f"{name}_correlation", pl.Float64, f"{text} over cells") for name, text in _QUARTILES.items()),
            Column("n_cells", pl.Int32, "Cells in which both stains vary"),
        ),
        keys=("plate",),
        unique=("Metadata_Plate", "channel_a", "channel_b"),
    ),
)
