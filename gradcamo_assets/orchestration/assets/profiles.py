"""``profiles``, ``umap``, ``replicability`` and ``confounder_audit``: what the champion's embeddings are worth."""

import dagster as dg
import polars as pl

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.figures import to_markdown, umap_scatter
from gradcamo_assets.learning.registry import ModelVersion
from gradcamo_assets.orchestration.partitions import AUTOMATIC
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.warehouse import publish

_MOST_CELLS = 20_000


def _keys(champion: ModelVersion) -> dict:
    return {"model_name": champion.name, "model_version": champion.version}


def _embeddings(platform: Platform, champion: ModelVersion) -> pl.DataFrame:
    frame = platform.lake.read("embeddings", **_keys(champion))
    if not len(frame):
        raise GradcamoError(f"{champion} has embedded no cell yet", "Materialise embeddings first.")
    return frame


def _publish(platform: Platform) -> None:
    """The QC database waits for none of these, so each adds itself."""
    publish(platform.lake, platform.home.database)


@dg.asset(deps=["embeddings"], group_name="profiles", kinds={"polars"}, automation_condition=AUTOMATIC)
def profiles(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Well profiles: median over the cells of a site, mean over sites, sphered on the plate's control wells."""
    from gradcamo_assets.profiling import sphered_profiles

    champion = platform.champion()
    frame, notes = sphered_profiles(_embeddings(platform, champion))
    for note in notes:
        context.log.warning(note)
    for (plate,), part in frame.group_by("Metadata_Plate"):
        platform.lake.write("profiles", part, plate=str(plate), **_keys(champion))
    _publish(platform)
    return dg.MaterializeResult(
        metadata={"profiles": len(frame), "model_version": champion.version, "notes": " ".join(notes) or "none"}
    )


@dg.asset(deps=["embeddings"], group_name="profiles", kinds={"umap"}, automation_condition=AUTOMATIC)
def umap(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Cells on a two-dimensional map of the embedding, coloured by dose and by Grad-CAMO; a sample of large screens."""
    from gradcamo_assets.profiling import umap_embedding
    from gradcamo_assets.profiling.aggregate import vectors

    champion = platform.champion()
    frame = _embeddings(platform, champion)
    if len(frame) > _MOST_CELLS:
        frame = frame.sample(_MOST_CELLS, seed=0)
    coordinates = umap_embedding(vectors(frame["embedding"]))
    table = frame.drop("embedding").with_columns(
        umap_x=pl.Series(coordinates[:, 0], dtype=pl.Float64), umap_y=pl.Series(coordinates[:, 1], dtype=pl.Float64)
    )
    platform.lake.write("umap", table, **_keys(champion))
    _publish(platform)
    scores = platform.lake.read("scores", **_keys(champion)).select("Metadata_CellID", "gradcamo")
    figure = umap_scatter(table.join(scores, on="Metadata_CellID", how="left"))
    return dg.MaterializeResult(
        metadata={
            "cells": len(table),
            "model_version": champion.version,
            "map": dg.MetadataValue.md(to_markdown(figure, "UMAP of the embeddings by dose and by Grad-CAMO")),
        }
    )


@dg.asset(deps=[profiles], group_name="profiles", kinds={"copairs"}, automation_condition=AUTOMATIC)
def replicability(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Do replicate wells find each other: mean average precision by treatment."""
    from gradcamo_assets.profiling import replicate_map

    champion = platform.champion()
    table = replicate_map(platform.lake.read("profiles", **_keys(champion)))
    platform.lake.write("replicability", table, **_keys(champion))
    _publish(platform)
    mean = table["mean_average_precision"].mean()
    return dg.MaterializeResult(
        metadata={
            "treatments": len(table),
            "model_version": champion.version,
            **({"mean_average_precision": float(mean)} if isinstance(mean, float) else {}),
        }
    )


@dg.asset(deps=["embeddings"], group_name="profiles", kinds={"scikit-learn"}, automation_condition=AUTOMATIC)
def confounder_audit(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """What simple probes read from the embedding: treatment, and also site, well position and plate, beside chance."""
    from gradcamo_assets.profiling import confounder_audit as audit

    champion = platform.champion()
    table = audit(_embeddings(platform, champion))
    platform.lake.write("confounder_audit", table, **_keys(champion))
    _publish(platform)
    found = table.filter(representation="embedding").select("target", "score")
    return dg.MaterializeResult(
        metadata={"model_version": champion.version, **{f"probe_{name}": float(v) for name, v in found.iter_rows()}}
    )
