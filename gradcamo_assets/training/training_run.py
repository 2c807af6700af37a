"""From the lake and the crop store to a registered version: load, train, measure on held-out wells, log."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs
from torch.utils.data import default_collate

from gradcamo_assets.cells import TARGET
from gradcamo_assets.cells.crop_store import CropField, open_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.errors import CropError, GradcamoError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.bundle import BundleConfig
from gradcamo_assets.report import confusion_matrix, crops_with_maps, reliability, to_png, training_curves
from gradcamo_assets.training.evaluation import (
    METRICS,
    as_taken,
    best_median_worst,
    calibration,
    confusion,
    data_versions,
    judge,
    made_with,
    measured,
    peak_memory,
)
from gradcamo_assets.training.mlflow_runs import EPOCHS
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.split import PARTS, as_lists
from gradcamo_assets.training.swap_survival import audited, survived
from gradcamo_assets.training.training import TrainingResult, train_encoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CELLS, EVIDENCE = "cells.parquet", "evidence.json"
"""Artifacts of a version: its judged cells, and what the numbers and the data were."""


@dataclass(frozen=True)
class Fitted:
    """A registered version with what training measured, and the pictures of it by name."""

    version: ModelVersion
    result: TrainingResult
    crops: dict[str, int]
    figures: dict[str, Figure]


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
    unseen: tuple[pl.DataFrame, Sequence[Path]] | None = None,
    started: Callable[[str], None] | None = None,
) -> Fitted:
    """Train an encoder on the training wells of a split and register it with its evidence.

    The MLflow run is open from the start; where training fails or is killed it stands there as FAILED.

    Args:
        cells: kept cells with ``Metadata_CellID``, ``Metadata_Plate``, ``Metadata_Well``, ``treatment_class`` and,
            where known, ``mask_version``.
        split: ``Metadata_Plate``, ``Metadata_Well``, ``split``. crop_paths: stored fields to read crops from.
        unseen: cells of other plates (``evidence.unseen_cells``) and their fields; those that do not fit are left out.
        started: called with the MLflow run's identifier when it is open.

    Raises:
        GradcamoError: if the crops of the plates do not fit together, or a class has no training crop.
    """
    with registry.run(asdict(config), made_with() | (tags or {})) as run_id:
        if started:
            started(run_id)
        fields = [open_crops(path) for path in crop_paths]
        channels, shape, voxel_size = common_frame(fields)
        labelled = cells.drop_nulls("treatment_class").join(split, on=["Metadata_Plate", "Metadata_Well"])
        classes = labelled["treatment_class"].unique().sort().to_list()
        parts = {
            # What is read once need not be kept.
            part: crops_of(labelled.filter(split=part), fields, classes, channels, 0 if part == "test" else 2 << 30)
            for part in PARTS
        }
        result = train_encoder(
            parts["train"], parts["val"], classes, config, work=work, progress=progress, report=report
        )
        bundle = BundleConfig(
            encoder=config.encoder,
            layer=result.layer,
            classes=classes,
            channels=channels,
            crop_shape=list(shape),
            voxel_size=voxel_size,
            split=as_lists(split),
            cure=config.cure,
            objective=config.objective,
        )
        judged = {part: _judged(result, parts[part], classes) for part in ("val", "test")}
        if unseen is not None:
            try:
                fitting = [field for field in map(open_crops, unseen[1]) if _fits(field, bundle)]
                others = crops_of(unseen[0], fitting, classes, channels, 0)
                judged["unseen"] = _judged(result, others, classes)
                parts["unseen"] = others
                cells = pl.concat([cells, unseen[0]], how="diagonal_relaxed")
            except CropError as error:  # Damage to another plate must not cost this training.
                if report:
                    report(f"unseen plates are left out of the evidence: {error}")
        metrics = {**result.metrics, **peak_memory(), "train_crops": float(len(parts["train"]))}
        for part, found in judged.items():
            metrics |= measured(found, part)
        metrics |= survived(audited(result.model, result.layer, parts["test"], judged["test"], classes), "test")
        result = replace(result, metrics=metrics)
        data = data_versions(parts, cells)
        figures = _figures(result, parts["test"], judged["test"], classes)
        version = registry.register(
            result.model,
            bundle,
            run_id=run_id,
            metrics=metrics,
            curves=result.curves,
            files={f"figures/{name}.png": to_png(figure) for name, figure in figures.items()}
            | _files(judged, cells, classes, data)
            | {EPOCHS: _by_epoch(result, parts["val"], classes)},
            data=data,
        )
    # Not before: what was trained for hours survives a registry that is away.
    shutil.rmtree(result.checkpoints, ignore_errors=True)
    return Fitted(version, result, {part: len(dataset) for part, dataset in parts.items()}, figures)


def crops_of(
    cells: pl.DataFrame,
    fields: Sequence[CropField],
    classes: Sequence[str],
    channels: Sequence[str],
    memory: int = 2 << 30,
) -> CropDataset:
    """The crops of some cells with the index of their ``treatment_class``; ``memory`` as of ``CropDataset``."""
    index = {name: number for number, name in enumerate(classes)}
    pairs = cells.select("Metadata_CellID", "treatment_class").iter_rows()
    return CropDataset(fields, {cell_id: index[name] for cell_id, name in pairs}, channels, memory)


def _judged(result: TrainingResult, crops: CropDataset, classes: list[str]) -> pl.DataFrame:
    return judge(result.model, [result.layer], crops, classes)[result.layer]


def _fits(field: CropField, bundle: BundleConfig) -> bool:
    same = list(field.images.shape[2:]) == list(bundle.crop_shape)
    return same and bundle.find_mismatch(field.channels, field.voxel_size) is None


def _figures(result: TrainingResult, crops: CropDataset, judged: pl.DataFrame, classes: list[str]) -> dict[str, Figure]:
    """Confusion, calibration and the best, middle and worst maps on test wells."""
    figures = {
        "confusion": confusion_matrix(confusion(judged, classes), classes),
        "reliability": reliability(calibration(judged)),
        "curves": training_curves(pl.DataFrame(result.curves).with_row_index("epoch", offset=1)),
    }
    rows = best_median_worst(judged)
    if rows:
        images, labels, _ = default_collate([crops[row] for row in rows])
        taken, masks = as_taken(result.model, images, labels)
        maps = gradcamo(result.model, taken, masks == TARGET, layer=result.layer).cam.float().cpu().numpy()
        maps = maps.reshape(len(maps), -1, *maps.shape[-2:])
        titles = [
            f"{row['true_class']}, taken for {row['predicted_class']}\nadjusted {row['gradcamo_adjusted']:.2f}"
            for row in judged[rows].iter_rows(named=True)
        ]
        figures["maps"] = crops_with_maps(images.numpy(), labels.numpy(), maps, titles)
    return figures


def _files(
    judged: dict[str, pl.DataFrame], cells: pl.DataFrame, classes: list[str], data: dict[str, dict]
) -> dict[str, bytes]:
    """The judged cells that played no part in training, and the rest of the evidence as JSON."""
    tables: dict[str, Any] = {"classes": classes, "data": data, "metrics": METRICS}
    held_out = {part: found for part, found in judged.items() if part != "val"}
    for part, found in held_out.items():
        tables[part] = {"confusion": confusion(found, classes).tolist(), "calibration": calibration(found).to_dicts()}
    masks = cells.select("Metadata_CellID", cs.by_name("mask_version", require_all=False))
    rows = pl.concat([found.with_columns(split=pl.lit(part)) for part, found in held_out.items()])
    table = io.BytesIO()
    rows.join(masks, on="Metadata_CellID").write_parquet(table)
    return {CELLS: table.getvalue(), EVIDENCE: json.dumps(tables, indent=2).encode()}


def _by_epoch(result: TrainingResult, crops: CropDataset, classes: list[str]) -> bytes:
    """``epoch`` from 1, ``Metadata_CellID``, ``treatment_class`` and ``embedding`` of validation cells, as Parquet."""
    ids, names = crops.cell_ids, [classes[target] for target in crops.targets]
    rows = [
        (epoch, *row)
        for epoch, vectors in enumerate(result.embeddings, start=1)
        for row in zip(ids, names, vectors.tolist(), strict=False)
    ]
    schema = {"epoch": pl.Int32, "Metadata_CellID": pl.String, "treatment_class": pl.String}
    table = io.BytesIO()
    pl.DataFrame(rows, {**schema, "embedding": pl.List(pl.Float32)}, orient="row").write_parquet(table)
    return table.getvalue()


def common_frame(fields: Sequence[CropField]) -> tuple[list[str], tuple[int, ...], list[float]]:
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
