"""Tables about models, and what is computed from their embeddings."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.warehouse.columns import (
    CELL_KEYS,
    METRICS,
    MODEL,
    MODEL_NAME,
    PERT_TYPE,
    PLATE,
    SITE,
    TEXTS,
    TIME,
    TREATMENT,
    VECTOR,
    WELL,
    Column,
    Table,
)

MODELS = Table(
    "models",
    "One row a registered model version",
    (
        *MODEL,
        Column("run_id", pl.String, "MLflow run that trained it"),
        Column("architecture", pl.String, "Encoder, by its name in the registry"),
        Column("layer", pl.String, "Layer whose maps are scored"),
        Column("classes", TEXTS, "Classes in the order of the logits"),
        Column("train_plates", TEXTS, "Plates it was trained on"),
        Column("train_wells", TEXTS, "Wells it was trained on, as plate/well"),
        Column("metrics", METRICS, "Metrics of the run: metrics['accuracy']"),
        Column("aliases", TEXTS, "Aliases it holds now; their moves are in promotions"),
        Column("created_at", TIME, "When the version was registered, UTC"),
    ),
    unique=("model_name", "model_version"),
)

PROMOTIONS = Table(
    "promotions",
    "One row a move of an alias (MLflow keeps only the present)",
    (
        MODEL_NAME,
        Column("alias", pl.String, "Alias that moved: champion, challenger", nullable=False),
        Column("from_version", pl.Int32, "Version that held the alias before; NULL: none did"),
        Column("to_version", pl.Int32, "Version that holds it after; NULL: the alias was taken away"),
        Column("promoted_at", TIME, "When the move was made or first seen, UTC", nullable=False),
        Column("promoted_by", pl.String, "Who or what moved it"),
        Column("reason", pl.String, "Why"),
    ),
    unique=("model_name", "alias", "promoted_at", "to_version"),
)

UNSCORED = Table(
    "unscored",
    "One row a plate x site that a model version leaves unscored, with the reason",
    (PLATE, SITE, *MODEL, Column("reason", pl.String, "Why it is left unscored", nullable=False)),
    keys=("plate", "site", "model_name", "model_version"),
    unique=("Metadata_Plate", "Metadata_Site", "model_name", "model_version"),
)

EMBEDDINGS = Table(
    "embeddings",
    "One row a cell x model version: the encoder's activations, read from the Parquet lake",
    (*CELL_KEYS, *MODEL, Column("embedding", VECTOR, "Pooled activations; lengths differ between versions")),
    keys=("plate", "site", "model_name", "model_version"),
    unique=("Metadata_CellID", "model_name", "model_version"),
)

PROFILES = Table(
    "profiles",
    "One row a well x model version: embeddings aggregated to wells, then sphered on control wells",
    (
        PLATE,
        WELL,
        *TREATMENT,
        PERT_TYPE,
        *MODEL,
        Column("n_cells", pl.Int32, "Cells aggregated"),
        Column("profile", VECTOR, "Sphered profile"),
    ),
    keys=("plate", "model_name", "model_version"),
    unique=(
        "Metadata_Plate",
        "Metadata_Well",
        "model_name",
        "model_version",
        "Metadata_Compound",
        "Metadata_Dose",
        "Metadata_Dose_Unit",
    ),
)

UMAP = Table(
    "umap",
    "One row a cell x model version: its place on the two-dimensional map",
    (
        *CELL_KEYS,
        *MODEL,
        Column("umap_x", pl.Float64, "First coordinate, no unit"),
        Column("umap_y", pl.Float64, "Second coordinate, no unit"),
    ),
    keys=("model_name", "model_version"),
    unique=("Metadata_CellID", "model_name", "model_version"),
)

REPLICABILITY = Table(
    "replicability",
    "One row a treatment x model version: do replicates find each other among controls",
    (
        *MODEL,
        *TREATMENT[:3],
        Column("mean_average_precision", pl.Float64, "Mean average precision of retrieving replicate wells"),
        Column("p_value", pl.Float64, "Permutation p value of the mean average precision"),
        Column("n_wells", pl.Int32, "Replicate wells"),
    ),
    keys=("model_name", "model_version"),
    unique=("model_name", "model_version", "Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"),
)

CONFOUNDER_AUDIT = Table(
    "confounder_audit",
    "One row a probe x model version: what a simple classifier reads from a representation, beside chance",
    (
        *MODEL,
        Column("Metadata_Plate", pl.String, "Plate; NULL: all plates together"),
        Column("target", pl.String, "What is predicted: dose, site, well_row, plate", nullable=False),
        Column("representation", pl.String, "What it is predicted from: embedding, cell_count", nullable=False),
        Column("score", pl.Float64, "Cross-validated score of the probe"),
        Column("chance", pl.Float64, "Score of guessing"),
        Column("n", pl.Int32, "Samples the probe saw"),
    ),
    keys=("model_name", "model_version"),
    unique=("model_name", "model_version", "Metadata_Plate", "target", "representation"),
)
