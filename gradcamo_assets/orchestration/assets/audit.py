"""``audit``: whether the champion's maps are to be believed, on a sample of every plate's cells."""

from typing import Any

import dagster as dg
import polars as pl

from gradcamo_assets.crops import open_crops
from gradcamo_assets.orchestration.catalogue import column_lineage
from gradcamo_assets.orchestration.launchpad import used
from gradcamo_assets.orchestration.partitions import AUTOMATIC, PLATES
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.stores import crop_folder
from gradcamo_assets.warehouse import publish, run_sql
from gradcamo_assets.warehouse.schema import lake_table

_CELLS = 32


@dg.asset(
    partitions_def=PLATES,
    deps=["gradcamo_scores"],
    group_name="scores",
    kinds={"pytorch", "parquet"},
    automation_condition=AUTOMATIC,
    pool="scoring",
)
def audit(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """What the champion does when image or weights are changed, on a sample of a plate's cells."""
    from gradcamo_assets.scoring.audit import audit_crops, sample_cells
    from gradcamo_assets.scoring.score import Scorer

    plate, lake, registry = context.partition_key, platform.lake, platform.registry
    champion, scoring = platform.champion(), platform.settings.scoring
    keys: dict[str, Any] = {"plate": plate, "model_name": champion.name, "model_version": champion.version}
    scored = lake.read("scores", **keys).select("Metadata_CellID", "crop_version")
    cells = lake.read("cells", plate=plate).join(scored, on=["Metadata_CellID", "crop_version"], how="semi")
    sampled = sample_cells(cells, _CELLS)
    if len(sampled) < 2:
        raise dg.Failure(f"Plate {plate} has {len(sampled)} cells scored by {champion}; an audit needs two.")
    names = ["Metadata_CellID", "crop_version"]
    # What an earlier release audited lacks the swap test.
    done = lake.read("audit", **keys).filter(pl.col("logit_drop_background_only").is_not_null()).select(names)
    if done.sort(names).equals(sampled.select(names).sort(names)):
        context.log.info("These cells have been audited with this encoder; nothing is computed again.")
    else:
        fields = {
            f"{plate}/{well}/{site}": open_crops(crop_folder(platform.home, plate, well, site))
            for well, site in sampled.select("Metadata_Well", "Metadata_Site").unique().iter_rows()
        }
        scorer = Scorer(registry.fetch(champion), scoring)
        found = audit_crops(scorer, fields, sampled["Metadata_CellID"].to_list(), sampled["treatment_class"].to_list())
        rows = sampled.join(found, on="Metadata_CellID").with_columns(
            model_name=pl.lit(champion.name), model_version=pl.lit(champion.version, pl.Int32)
        )
        lake.write("audit", rows.select(lake_table("audit").empty().columns), **keys)
    publish(lake, platform.home.database)
    summary = run_sql(
        platform.home.database,
        "SELECT * EXCLUDE (Metadata_Plate, model_name, model_version) FROM audit_by_plate "
        "WHERE Metadata_Plate = $plate AND model_name = $model_name AND model_version = $model_version",
        keys,
    )
    numbers = {name: value for name, value in summary.row(0, named=True).items() if value is not None}
    return dg.MaterializeResult(
        metadata={"model_version": champion.version, **numbers, **column_lineage("audit"), **used(scoring=scoring)}
    )
