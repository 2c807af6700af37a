"""Asset ``audit``: tests of the champion's maps on a sample of every plate's cells."""

from typing import Any

import dagster as dg
import polars as pl

from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.cell_rows import cells_with_crops, sample_cells
from gradcamo_assets.defs.each_field import as_number
from gradcamo_assets.defs.field_results import FIELD, crop_folder
from gradcamo_assets.defs.launchpad import settings_metadata
from gradcamo_assets.defs.partitions import ON_INPUT_CHANGE, PLATES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.tables.columns import DOSE_NAMES
from gradcamo_assets.tables.schema import lake_table

_MAX_CELLS = 32


@dg.asset(
    partitions_def=PLATES,
    deps=["gradcamo_scores"],
    group_name="scores",
    kinds={"pytorch", "deltalake"},
    automation_condition=ON_INPUT_CHANGE,
    pool="scoring",
)
@explain_storage_errors
def audit(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The champion's response to changed images and weights, on a sample of a plate's cells."""
    from gradcamo_assets.scoring.audit import audit_crops
    from gradcamo_assets.scoring.scorer import Scorer

    plate, lake, registry = context.partition_key, platform.lake, platform.registry
    champion, scoring = platform.champion(), platform.settings.scoring
    keys: dict[str, Any] = {"plate": plate, "model_run": champion.run_id}
    made_from = lake.combined_version("score_versions", **keys)
    previous = lake.partition_version("audit_versions", **keys)
    if previous is not None and previous["made_from"] == made_from:
        context.log.info("The audit of these scores is up to date.")
        rows = lake.read("audit", **keys)
    else:
        scored = lake.read("scores", **keys).select("Metadata_CellID", "crop_version", "split")
        cells = cells_with_crops(lake, plate=plate).collect()
        cells = cells.drop_nulls("crop_index").join(scored, on=["Metadata_CellID", "crop_version"])
        # Verdicts leave out the cells of the training.
        held_out = cells.filter(pl.col("split") != "train")
        sampled = sample_cells(held_out if len(held_out) > 1 else cells, _MAX_CELLS)
        if len(sampled) < 2:
            raise dg.Failure(f"Plate {plate} has {len(sampled)} cells scored by {champion}; an audit needs at least 2.")
        fields = {
            f"{plate}/{row['Metadata_Well']}/{row['Metadata_Site']}": open_crops(crop_folder(platform.home, row))
            for row in sampled.select(*FIELD, "crop_version").unique().to_dicts()
        }
        scorer = Scorer(registry.fetch(champion), scoring, platform.settings.encoders.modules)
        results = audit_crops(
            scorer, fields, sampled["Metadata_CellID"].to_list(), sampled["treatment_class"].to_list()
        )
        rows = sampled.join(results, on="Metadata_CellID").with_columns(
            model_name=pl.lit(champion.name),
            model_version=pl.lit(champion.version, pl.Int32),
            model_run=pl.lit(champion.run_id),
        )
        rows = rows.select(lake_table("audit").empty().columns)
        version = digest([made_from, _MAX_CELLS])
        lake.write_stage("audit_versions", {"audit": rows}, version=version, made_from=made_from, n=len(rows), **keys)
    medians = rows.select(pl.col(pl.Float64).median()).row(0, named=True)
    numbers = {name: value for name, value in medians.items() if value is not None and name not in DOSE_NAMES}
    return dg.MaterializeResult(
        metadata={
            "model_version": champion.version,
            "n_cells": len(rows),
            "survives_swap": as_number(rows["survives_swap"].mean()),
            **numbers,
            **settings_metadata(scoring=scoring),
        }
    )
