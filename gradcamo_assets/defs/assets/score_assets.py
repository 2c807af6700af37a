"""Assets ``embeddings`` and ``gradcamo_scores``, computed by the current champion in one pass over the crops."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field as Setting

from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.assets.cell_assets import crops
from gradcamo_assets.defs.assets.model_assets import champion_model
from gradcamo_assets.defs.field_results import FIELD, crop_folder, require_version
from gradcamo_assets.defs.launchpad import settings_metadata
from gradcamo_assets.defs.partitions import PLATE_SITES, plate_site_of
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.local_copies import temporary_copies
from gradcamo_assets.provenance import digest
from gradcamo_assets.report import crops_with_maps
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.training.model_registry import ModelVersion
from gradcamo_assets.training.split import part_of_well

_CROPS_SHOWN = 6


class ScoringRun(dg.Config):
    """Options of a run launched by hand."""

    again: bool = Setting(default=False, description="Compute existing scores of the champion again.")


@dg.multi_asset(
    name="scores_and_embeddings",
    specs=[
        dg.AssetSpec(
            "embeddings",
            deps=[crops, champion_model],
            group_name="scores",
            kinds={"pytorch", "deltalake"},
            skippable=True,
            description="The champion's activations averaged over the crop, one vector per cell.",
        ),
        dg.AssetSpec(
            "gradcamo_scores",
            deps=[crops, champion_model],
            group_name="scores",
            kinds={"pytorch", "deltalake"},
            skippable=True,
            description="Where the champion looks: Grad-CAMO and related scores, one row per cell.",
        ),
    ],
    partitions_def=PLATE_SITES,
    pool="scoring",
    check_specs=[dg.AssetCheckSpec("cells_scored", asset="gradcamo_scores", description="Every kept cell has a row.")],
)
@explain_storage_errors
def scores_and_embeddings(
    context: dg.AssetExecutionContext, platform: Platform, config: ScoringRun
) -> Iterator[dg.MaterializeResult | dg.AssetObservation | dg.AssetCheckResult]:
    """Embed and score every crop of a plate x site in one pass. Rows of other model versions are unchanged.

    The champion is looked up once, so that all rows are of one version. Existing scores of the current crops are kept.
    """
    from gradcamo_assets.scoring.scorer import Scorer

    plate, site = plate_site_of(context)
    home, lake, registry = platform.home, platform.lake, platform.registry
    champion, settings = platform.champion(), platform.settings
    keys: dict[str, Any] = {"plate": plate, "site": site, "model_run": champion.run_id}
    made_from = require_version(lake, "crops", plate, site)
    kept = cells_with_crops(lake, plate=plate, site=site).filter(pl.col("crop_index").is_not_null()).collect()
    before = lake.partition_version("score_versions", **keys)
    if not config.again and before is not None and before["made_from"] == made_from:
        note = f"{champion} has already scored plate {plate}, site {site}. To score it again, set `again`."
        context.log.info(note)
        observation = {"partition": context.partition_key, "metadata": {"model_version": champion.version}}
        for asset in ("embeddings", "gradcamo_scores"):
            yield dg.AssetObservation(asset, note, **observation)
        yield _check_result(kept, lake.read("scores", **keys))
        return
    if not len(kept):
        context.log.warning(f"Plate {plate}, site {site} has no kept cells; there is nothing to score.")
    scorer = Scorer(registry.fetch(champion), settings.scoring, settings.encoders.modules)
    frames: list[pl.DataFrame] = []
    embeddings: list[np.ndarray] = []
    picture: tuple[Any, str] | None = None
    stores = kept.select(*FIELD, "crop_version").unique().sort("Metadata_Well").to_dicts()
    for count, row in enumerate(stores, start=1):
        with temporary_copies():
            field, well = open_crops(crop_folder(home, row)), row["Metadata_Well"]
            scored = scorer.score(field, keep_maps=0 if picture else _CROPS_SHOWN)
            frames.append(scored.scores)
            embeddings.append(scored.embeddings)
            if picture is None:
                images, labels = field.read(slice(0, len(scored.maps)))
                titles = [
                    f"{row['predicted_class']}: {row['gradcamo'] or float('nan'):.2f}, {row['looks_at']}"
                    for row in scored.scores.head(len(scored.maps)).iter_rows(named=True)
                ]
                figure = crops_with_maps(images, labels, scored.maps, titles)
                picture = figure, f"Crops of {plate} {well} with their Grad-CAM maps"
        context.log.info(f"{well}: {len(field)} cells scored, {count} of {len(stores)} wells")
    scores = _score_rows(kept, frames, champion, scorer.config.split, context.run.run_id)
    vectors = [row for part in embeddings for row in part]
    columns = lake_table("embeddings").empty().columns
    vector_frame = pl.concat(frames).select("Metadata_CellID") if frames else pl.DataFrame({"Metadata_CellID": []})
    vector_frame = vector_frame.cast(pl.String).with_columns(pl.Series("embedding", vectors, dtype=pl.List(pl.Float32)))
    embedded = scores.join(vector_frame, on="Metadata_CellID").select(columns)
    version = digest([made_from, champion.run_id])
    lake.write_stage(
        "score_versions", {"embeddings": embedded, "scores": scores}, version=version, made_from=made_from,
        n=len(scores), **keys,
    )  # fmt: skip
    pages = registry.page_urls(settings.links, champion.run_id, champion)
    common: dict[str, Any] = {"cells": len(scores), "model_version": champion.version}
    common |= {name: dg.MetadataValue.url(page) for name, page in pages.items()}
    common |= {"precision": scorer.precision, "runtime": scorer.runtime}
    common |= settings_metadata(scoring=settings.scoring)
    yield dg.MaterializeResult(
        asset_key="embeddings",
        data_version=dg.DataVersion(version),
        metadata={**common, "dimensions": len(vectors[0]) if vectors else 0},
    )
    yield dg.MaterializeResult(
        asset_key="gradcamo_scores",
        data_version=dg.DataVersion(version),
        metadata={
            **common,
            **_summary_metrics(scores),
            **(show_picture(context, home, "crops_and_maps", *picture) if picture else {}),
        },
        check_results=[_check_result(kept, scores)],
    )


def _check_result(kept: pl.DataFrame, scores: pl.DataFrame) -> dg.AssetCheckResult:
    missing = len(kept) - scores["Metadata_CellID"].n_unique()
    return dg.AssetCheckResult(
        check_name="cells_scored",
        asset_key="gradcamo_scores",
        passed=missing == 0,
        metadata={"missing": missing, "without_score": scores["gradcamo"].null_count()},
    )


def _score_rows(
    kept: pl.DataFrame, frames: list[pl.DataFrame], champion: ModelVersion, split: dict[str, list[str]], run_id: str
) -> pl.DataFrame:
    """Combine the cells and the champion's results to rows of the table ``scores``."""
    empty = lake_table("scores").empty()
    if not frames:
        return empty
    return (
        kept.join(pl.concat(frames), on="Metadata_CellID")
        .with_columns(
            model_name=pl.lit(champion.name),
            model_version=pl.lit(champion.version, pl.Int32),
            model_run=pl.lit(champion.run_id),
            true_class="treatment_class",
            split=part_of_well(split, default="unseen"),
            run_id=pl.lit(run_id),
            scored_at=pl.lit(datetime.now(UTC).replace(tzinfo=None)),
        )
        .select(empty.columns)
    )


def _summary_metrics(scores: pl.DataFrame) -> dict[str, Any]:
    """Summary values for plots over partitions. Unknown values are left out."""
    looks = scores["looks_at"].drop_nulls()
    values = {
        "median_gradcamo": scores["gradcamo"].median(),
        "median_adjusted": scores["gradcamo_adjusted"].median(),
        "on_target_share": scores["on_target"].mean(),
        "looks_at_target_share": (looks == "target").mean() if len(looks) else None,
    }
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
