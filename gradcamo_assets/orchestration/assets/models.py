"""``data_split``, ``trained_model`` and ``champion_model``: what is learned from, what came of it, and who scores."""

from enum import StrEnum
from pathlib import Path

import dagster as dg
import polars as pl
from pydantic import Field as Setting

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.crops.table import cells_with_crops
from gradcamo_assets.figures import to_markdown
from gradcamo_assets.learning.registry import CHAMPION
from gradcamo_assets.learning.runs import Links
from gradcamo_assets.orchestration.assets.crops import crops
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.stores import FIELD, crop_folder

_KEPT = ("Metadata_CellID", *FIELD, "treatment_class", "mask_version", "crop_version")
_ALT = {
    "curves": "Training curves",
    "confusion": "Predicted by true class on test wells",
    "reliability": "Accuracy against confidence on test wells",
    "maps": "Best, middle and worst maps on test wells",
}


Apart = StrEnum("Apart", ["well", "plate", "position"])
SwapKind = StrEnum("SwapKind", ["any", "neighbours", "controls"])
Objective = StrEnum("Objective", ["treatment", "vicreg", "simclr"])
Positives = StrEnum("Positives", ["crop", "treatment"])
Penalty = StrEnum("Penalty", ["none", "gradcamo", "energy", "rrr"])
Precision = StrEnum("Precision", ["auto", "float32", "bfloat16", "float16"])


class SplitConfig(dg.Config):
    """How wells are dealt."""

    plates: list[str] = Setting(default=[], description="Plates to learn from; empty means all that have crops.")
    apart: Apart = Setting(
        default=Apart.well,
        description="What no two parts share: a well, a whole plate, or a position (the same well of every plate).",
    )
    seed: int = Setting(default=0, description="Of the draw.")
    val_fraction: float = Setting(default=0.17, description="Share of each class's wells that tune training.")
    test_fraction: float = Setting(default=0.33, description="Share of each class's wells that are held out.")


class TrainConfig(dg.Config):
    """How the encoder is trained; what is left empty stands in [training] of gradcamo.toml, or has its default."""

    encoder: str | None = Setting(default=None, description="Built-in encoder, or module:function of your own.")
    weights: str | None = Setting(default=None, description="Safetensors file to start from; else fresh weights.")
    layer: str | None = Setting(default=None, description="Dotted name of the layer to explain, if another.")
    objective: Objective | None = Setting(
        default=None, description="What is learned: the treatment; or without classes, by vicreg or simclr."
    )
    positives: Positives | None = Setting(
        default=None, description="Of those: the second view is of the same crop, or of another of its treatment."
    )
    epochs: int | None = Setting(default=None, description="Passes over the training crops.")
    patience: int | None = Setting(
        default=None, description="Epochs without a lower validation loss that end training; 0 trains all epochs."
    )
    batch_size: int | None = Setting(default=None, description="Crops a step, shared out among the devices.")
    learning_rate: float | None = Setting(default=None, description="Highest rate of the one-cycle schedule.")
    weight_decay: float | None = Setting(default=None, description="Of AdamW.")
    label_smoothing: float | None = Setting(default=None, description="Share of the target spread over all classes.")
    flip: float | None = Setting(default=None, description="Chance of each mirror image and of a quarter turn.")
    rotate: float | None = Setting(default=None, description="Chance of a turn in plane by any angle.")
    shift_z: float | None = Setting(default=None, description="Chance of a shift by one slice.")
    gain: float | None = Setting(default=None, description="Deviation of the factor on a stain.")
    offset: float | None = Setting(default=None, description="Deviation of the term on a stain, standardised units.")
    noise: float | None = Setting(default=None, description="Deviation of the noise on a voxel, standardised units.")
    swap: float | None = Setting(default=None, description="Share of crops that get other surroundings; 0 is off.")
    swap_kind: SwapKind | None = Setting(default=None, description="Whose surroundings, or the neighbours alone.")
    swap_soften: int | None = Setting(default=None, description="Width of the seam, voxels.")
    swap_pool: int | None = Setting(
        default=None, description="Crops a step reads to lend theirs; 0: those of the batch."
    )
    regulariser: Penalty | None = Setting(default=None, description="Penalty on maps beside the cell.")
    regulariser_weight: float | None = Setting(default=None, description="Its weight (lambda).")
    regulariser_target: float | None = Setting(
        default=None, description="Adjusted score from which gradcamo asks for no more."
    )
    regulariser_after: int | None = Setting(default=None, description="Epochs before it sets in.")
    precision: Precision | None = Setting(default=None, description="auto: 16 bits on a GPU, 32 elsewhere.")
    devices: int | None = Setting(default=None, description="GPUs (without: processes); -1 takes every GPU.")
    seed: int | None = Setting(default=None, description="Of weights, order and augmentation.")


def kept_cells(platform: Platform, plates: list[str]) -> pl.DataFrame:
    """The cells that have crops, of some plates or of all."""
    frame = cells_with_crops(platform.lake).filter(pl.col("crop_index").is_not_null()).select(_KEPT).collect()
    return frame.filter(pl.col("Metadata_Plate").is_in(plates)) if plates else frame


def crop_paths(platform: Platform, cells: pl.DataFrame) -> list[Path]:
    """Where the crops of the fields of some cells lie."""
    fields = cells.select(*FIELD, "crop_version").unique().sort(FIELD).to_dicts()
    return [crop_folder(platform.home, row) for row in fields]


@dg.asset(deps=[crops], group_name="models", kinds={"polars"})
def data_split(context: dg.AssetExecutionContext, platform: Platform, config: SplitConfig) -> dg.MaterializeResult:
    """Wells for training, validation and test: disjoint by well, every class in each part where it can be."""
    from gradcamo_assets.common.files import replaced_file
    from gradcamo_assets.learning.split import PARTS, split_wells

    cells = kept_cells(platform, config.plates)
    split = split_wells(cells, **config.model_dump(exclude={"plates"}))
    with replaced_file(platform.home.split_file) as path:
        split.write_csv(path)
    wells = {part: len(split.filter(split=part)) for part in PARTS}
    return dg.MaterializeResult(
        metadata={
            **{f"{part}_wells": n for part, n in wells.items()},
            "cells": len(cells),
            "classes": ", ".join(sorted(cells["treatment_class"].drop_nulls().unique())),
            "file": dg.MetadataValue.path(str(platform.home.split_file)),
        }
    )


@dg.asset(deps=[data_split], group_name="models", kinds={"pytorch", "mlflow"}, pool="training")
def trained_model(context: dg.AssetExecutionContext, platform: Platform, config: TrainConfig) -> dg.MaterializeResult:
    """An encoder that predicts the treatment of a crop, registered in MLflow; the first one becomes champion."""
    from gradcamo_assets.learning.evidence import unseen_cells
    from gradcamo_assets.learning.fit import fit_and_register
    from gradcamo_assets.learning.promotion import promote, record_versions
    from gradcamo_assets.learning.train import TrainingConfig

    home, lake, registry = platform.home, platform.lake, platform.registry
    if not home.split_file.exists():
        raise GradcamoError("there is no split", "Materialise data_split first.", path=home.split_file)
    split = pl.read_csv(home.split_file, schema_overrides={"Metadata_Plate": pl.String})
    cells = kept_cells(platform, [])
    unseen = unseen_cells(cells, split)
    links = home.settings("links", Links)
    fitted = fit_and_register(
        learned := cells.join(split, on="Metadata_Plate", how="semi"),
        split,
        crop_paths(platform, learned),
        home.settings("training", TrainingConfig, **config.model_dump()),
        registry,
        work=home.mlflow,
        progress=False,
        report=context.log.info,
        tags={
            "dagster_run_id": context.run_id,
            "dagster_job": context.run.job_name,
            "dagster_url": f"{links.dagster_url.rstrip('/')}/runs/{context.run_id}",
        },
        # Crops of a plate that nobody trains on may have been pruned.
        unseen=(unseen, [path for path in crop_paths(platform, unseen) if path.exists()]) if len(unseen) else None,
        started=lambda run_id: context.log.info(f"MLflow run: {registry.pages(links, run_id)['mlflow_run']}"),
    )
    record_versions(lake, registry)
    first = registry.by_alias(CHAMPION) is None
    if first:
        promote(lake, registry, fitted.version, by=f"run {context.run_id}", reason="the first version")
    pages = registry.pages(links, fitted.version.run_id, fitted.version)
    return dg.MaterializeResult(
        metadata={
            "model_version": fitted.version.version,
            "promoted": "yes, it is the first" if first else "no: promote it in MLflow by moving the champion alias",
            **fitted.result.metrics,
            **{name: dg.MetadataValue.url(page) for name, page in pages.items()},
            **{name: dg.MetadataValue.md(to_markdown(figure, _ALT[name])) for name, figure in fitted.figures.items()},
        }
    )


champion_model = dg.AssetSpec(
    "champion_model",
    deps=[trained_model],
    group_name="models",
    kinds={"mlflow"},
    description="The registered version that the alias 'champion' points at; it scores every plate. Moved in MLflow.",
)
