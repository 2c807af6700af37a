"""From the lake and the crop store to a registered version: load, train, measure on held-out wells, log."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.crops.store import CropField, open_crops
from gradcamo_assets.learning.registry import ModelRegistry, ModelVersion
from gradcamo_assets.learning.split import PARTS, as_lists
from gradcamo_assets.learning.train import TrainingConfig, TrainingResult, accuracy, train_encoder
from gradcamo_assets.networks.bundle import BundleConfig


@dataclass(frozen=True)
class Fitted:
    """A registered version with what training measured."""

    version: ModelVersion
    result: TrainingResult
    crops: dict[str, int]


def fit_and_register(
    cells: pl.DataFrame,
    split: pl.DataFrame,
    crop_paths: Sequence[Path],
    config: TrainingConfig,
    registry: ModelRegistry,
    *,
    work: Path,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
    tags: dict[str, str] | None = None,
) -> Fitted:
    """Train an encoder on the training wells of a split and register it.

    Args:
        cells: kept cells with ``Metadata_CellID``, ``Metadata_Plate``, ``Metadata_Well``, ``treatment_class``.
        split: ``Metadata_Plate``, ``Metadata_Well``, ``split``. crop_paths: stored fields to read crops from.

    Raises:
        GradcamoError: if the crops of the plates do not fit together, or a class has no training crop.
    """
    from gradcamo_assets.crops.dataset import CropDataset

    fields = [open_crops(path) for path in crop_paths]
    channels, shape, voxel_size = _common_frame(fields)
    labelled = cells.drop_nulls("treatment_class").join(split, on=["Metadata_Plate", "Metadata_Well"])
    classes = labelled["treatment_class"].unique().sort().to_list()
    parts = {
        part: CropDataset(
            fields,
            {
                cell_id: classes.index(name)
                for cell_id, name in labelled.filter(split=part)
                .select("Metadata_CellID", "treatment_class")
                .iter_rows()
            },
            channels,
        )
        for part in PARTS
    }
    result = train_encoder(parts["train"], parts["val"], classes, config, work=work, progress=progress, report=report)
    metrics = {**result.metrics}
    for part in ("val", "test"):
        metrics |= {f"{part}_{name}": value for name, value in accuracy(result.model, parts[part]).items()}
    result = replace(result, metrics=metrics)
    bundle = BundleConfig(
        encoder=config.encoder,
        layer=result.layer,
        classes=classes,
        channels=channels,
        crop_shape=list(shape),
        voxel_size=voxel_size,
        split=as_lists(split),
    )
    version = registry.register(
        result.model, bundle, parameters=asdict(config), metrics=metrics, curves=result.curves, tags=tags
    )
    # Not before: what was trained for hours survives a registry that is away.
    shutil.rmtree(result.checkpoints, ignore_errors=True)
    return Fitted(version, result, {part: len(dataset) for part, dataset in parts.items()})


def _common_frame(fields: Sequence[CropField]) -> tuple[list[str], tuple[int, ...], list[float]]:
    """Channels, crop shape and voxel size of all fields, which must agree."""
    if not fields:
        raise GradcamoError("there are no crops to train on", "Materialise the crops of a plate first.")
    first = fields[0]
    for field in fields[1:]:
        if (field.channels, field.images.shape[1:]) != (first.channels, first.images.shape[1:]):
            raise GradcamoError(
                f"crops differ: {field.channels} {field.images.shape[1:]} against "
                f"{first.channels} {first.images.shape[1:]} of {first.path}",
                "Train on plates of one assay, cut with one crop shape.",
                path=field.path,
            )
    return first.channels, tuple(first.images.shape[2:]), first.voxel_size
