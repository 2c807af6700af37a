"""Assets ``data_split``, ``trained_model`` and ``champion_model``."""

from pathlib import Path

import dagster as dg
import polars as pl
from pydantic import Field as Setting

from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.assets.cell_assets import crops
from gradcamo_assets.defs.field_results import FIELD, crop_folder
from gradcamo_assets.defs.launchpad import override_settings, settings_metadata, with_section_fields
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.training_pixels import pixels_for_training
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.storage import atomic_file, folder_exists, read_bytes
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.training.mlflow_runs import DAGSTER_RUN
from gradcamo_assets.training.model_registry import CHAMPION
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.split import PARTS, SplitUnit, split_wells

_CELL_COLUMNS = ("Metadata_CellID", *FIELD, "treatment_class", "mask_version", "crop_version")
_FIGURE_TITLES = {
    "curves": "Training curves",
    "confusion": "Confusion matrix on test wells",
    "reliability": "Accuracy against confidence on test wells",
    "maps": "Best, median and worst maps on test wells",
}


class SplitConfig(dg.Config):
    """How wells are assigned to training, validation and test."""

    plates: list[str] = Setting(default=[], description="Plates to use; default: all that have crops.")
    apart: SplitUnit = Setting(
        default="well",
        description="Unit that is kept in one part: well, plate, or position (the same well of every plate).",
    )
    test_plates: list[str] = Setting(
        default=[], description="Plates to test on, for example another batch; then no well of other plates is tested."
    )
    seed: int = Setting(default=0, description="Seed of the random assignment.")
    val_fraction: float = Setting(
        default=0.17, description="Fraction of the wells of each class for validation; 0: none."
    )
    test_fraction: float = Setting(default=0.33, description="Fraction of the wells of each class for testing.")


@with_section_fields(TrainingConfig)
class TrainConfig(dg.Config):
    """Settings of the training. Empty fields have the values of [training] in gradcamo.toml, or their defaults."""


def kept_cells(platform: Platform, plates: list[str]) -> pl.DataFrame:
    """The cells that have crops, of the given plates; of all plates if the list is empty."""
    frame = cells_with_crops(platform.lake).filter(pl.col("crop_index").is_not_null()).select(_CELL_COLUMNS).collect()
    return frame.filter(pl.col("Metadata_Plate").is_in(plates)) if plates else frame


def crop_paths(platform: Platform, cells: pl.DataFrame) -> list[Path]:
    """The folders of the crops of these cells' fields."""
    fields = cells.select(*FIELD, "crop_version").unique().sort(FIELD).to_dicts()
    return [crop_folder(platform.home, row) for row in fields]


@dg.asset(deps=[crops], group_name="models", kinds={"polars"})
@explain_storage_errors
def data_split(context: dg.AssetExecutionContext, platform: Platform, config: SplitConfig) -> dg.MaterializeResult:
    """Assignment of wells to training, validation and test, with every class in each part if possible."""
    cells = kept_cells(platform, [*config.plates, *config.test_plates] if config.plates else [])
    split = split_wells(cells, **config.model_dump(exclude={"plates"}))
    with atomic_file(platform.home.split_file) as path:
        split.write_csv(path)
    wells = {part: len(split.filter(split=part)) for part in PARTS}
    return dg.MaterializeResult(
        metadata={
            **{f"{part}_wells": n for part, n in wells.items()},
            "cells": len(cells),
            "classes": ", ".join(sorted(cells["treatment_class"].drop_nulls().unique())),
            "file": dg.MetadataValue.path(platform.home.split_file.name),
        }
    )


@dg.asset(deps=[data_split], group_name="models", kinds={"pytorch", "mlflow"}, pool="training")
@explain_storage_errors
def trained_model(context: dg.AssetExecutionContext, platform: Platform, config: TrainConfig) -> dg.MaterializeResult:
    """An encoder that predicts the treatment of a crop, registered in MLflow. The first version becomes champion."""
    from gradcamo_assets.training.evaluation import unseen_cells
    from gradcamo_assets.training.promotion import promote, record_versions
    from gradcamo_assets.training.training_run import train_and_register

    settings = platform.settings
    training, links = override_settings(settings.training, config), settings.links
    modules = settings.encoders.modules
    home, lake, registry = platform.home, platform.lake, platform.registry
    if (split_rows := read_bytes(home.split_file)) is None:
        raise GradcamoError("there is no data split", "Materialise data_split first.", path=home.split_file)
    split = pl.read_csv(split_rows, schema_overrides={"Metadata_Plate": pl.String})
    cells = kept_cells(platform, [])
    unseen = unseen_cells(cells, split)
    split_cells = cells.join(split, on="Metadata_Plate", how="semi")
    keep = settings.crops.store != "never"
    paths = crop_paths(platform, split_cells)
    with pixels_for_training(home, paths, context.run.run_id, context.log.info, keep) as stored:
        fitted = train_and_register(
            split_cells,
            split,
            stored,
            training,
            registry,
            work=home.mlflow,
            progress=False,
            modules=modules,
            report=context.log.info,
            tags={
                DAGSTER_RUN: context.run.run_id,
                "dagster_job": context.run.job_name,
                "dagster_url": f"{links.dagster_url.rstrip('/')}/runs/{context.run.run_id}",
            },
            # The crops of plates outside the split may have been pruned.
            unseen=(unseen, [path for path in crop_paths(platform, unseen) if folder_exists(path)])
            if len(unseen)
            else None,
            on_run_start=lambda run_id: context.log.info(
                f"MLflow run: {registry.page_urls(links, run_id)['mlflow_run']}"
            ),
        )
    record_versions(lake, registry)
    first = registry.by_alias(CHAMPION) is None
    if first:
        by = f"run {context.run.run_id}"
        promote(lake, registry, fitted.version, by=by, reason="the first version", modules=modules)
    pages = registry.page_urls(links, fitted.version.run_id, fitted.version)
    pictures: dict[str, dg.MetadataValue] = {}
    for name, figure in fitted.figures.items():
        pictures |= show_picture(context, home, name, figure, _FIGURE_TITLES[name])
    return dg.MaterializeResult(
        metadata={
            "model_version": fitted.version.version,
            "promoted": "yes, it is the first version"
            if first
            else "no: promote it in MLflow by moving the champion alias",
            **settings_metadata(training=training),
            **fitted.result.metrics,
            **{name: dg.MetadataValue.url(page) for name, page in pages.items()},
            **pictures,
        }
    )


champion_model = dg.AssetSpec(
    "champion_model",
    deps=[trained_model],
    group_name="models",
    kinds={"mlflow"},
    description="The registered version with the alias 'champion', which scores every plate. Move the alias in MLflow.",
)
