"""Train an encoder on stored crops, evaluate it on held-out wells and register it with its evidence."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs
from torch.utils.data import default_collate

from gradcamo_assets.cells import TARGET, CropField, open_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.errors import CropError, GradcamoError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.bundle import BundleConfig, check_config
from gradcamo_assets.report import confusion_matrix, crops_with_maps, reliability, to_png, training_curves
from gradcamo_assets.training.evaluation import (
    METRICS,
    best_median_worst,
    calibration_bins,
    code_versions,
    compute_metrics,
    confusion_counts,
    data_versions,
    evaluate_cells,
    peak_memory,
    to_model_input,
)
from gradcamo_assets.training.mlflow_runs import EPOCH_EMBEDDINGS
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.split import PARTS, as_lists
from gradcamo_assets.training.swap_survival import run_swap_test, swap_metrics
from gradcamo_assets.training.training import TrainingResult, train_encoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS, EVIDENCE = "cells.parquet", "evidence.json"
"""Artifacts of a version: its evaluated cells; its confusion counts, calibration and data versions."""
_MAX_CACHED_BYTES = 2 << 30


@dataclass(frozen=True)
class TrainedVersion:
    """A registered version with the training's result, the number of crops by part, and figures by name."""

    version: ModelVersion
    result: TrainingResult
    crops: dict[str, int]
    figures: dict[str, Figure]


def train_and_register(
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
    on_run_start: Callable[[str], None] | None = None,
    modules: Collection[str] = (),
) -> TrainedVersion:
    """Train an encoder on the training wells of a split and register it with its evidence.

    The MLflow run is open from the start; if training fails or is killed, the run ends as FAILED.

    Args:
        cells: kept cells with ``Metadata_CellID``, ``Metadata_Plate``, ``Metadata_Well``, ``treatment_class`` and,
            where known, ``mask_version``.
        split: ``Metadata_Plate``, ``Metadata_Well``, ``split``.
        crop_paths: fields with the crops, stored for random access.
        work, progress, report, modules: see ``train_encoder``.
        tags: additional tags of the MLflow run.
        unseen: cells of other plates (``evaluation.unseen_cells``) and their fields; fields whose channels, crop shape
            or voxel size do not fit are left out.
        on_run_start: called with the identifier of the open MLflow run.

    Raises:
        GradcamoError: if the crops of the plates do not fit together, or a class has no training crop.
        BundleError: before training, if the encoder could not be registered or scored after it.
    """
    with registry.start_run(asdict(config), code_versions() | (tags or {})) as run_id:
        if on_run_start:
            on_run_start(run_id)
        fields = [open_crops(path) for path in crop_paths]
        channels, shape, voxel_size = common_geometry(fields)
        labelled = cells.drop_nulls("treatment_class").join(split, on=["Metadata_Plate", "Metadata_Well"])
        classes = labelled["treatment_class"].unique().sort().to_list()
        parts = {
            # Test crops are read only once, so they are not cached.
            part: labelled_crops(
                labelled.filter(split=part), fields, classes, channels, 0 if part == "test" else _MAX_CACHED_BYTES
            )
            for part in PARTS
        }
        bundle = BundleConfig(
            encoder=config.encoder,
            layer=config.layer or "the encoder's choice",
            classes=classes,
            channels=channels,
            crop_shape=list(shape),
            voxel_size=voxel_size,
            split=as_lists(split),
            cure=config.mitigation,
            objective=config.objective,
        )
        check_config(bundle)
        result = train_encoder(
            parts["train"], parts["val"], classes, config, work=work, progress=progress, report=report, modules=modules
        )
        bundle = replace(bundle, layer=result.layer)
        evaluated = {part: _evaluate(result, parts[part], classes) for part in ("val", "test")}
        if unseen is not None:
            unseen_cells, unseen_paths = unseen
            try:
                unseen_fields = [field for field in map(open_crops, unseen_paths) if _fits(field, bundle)]
                unseen_crops = labelled_crops(unseen_cells, unseen_fields, classes, channels, 0)
                evaluated["unseen"] = _evaluate(result, unseen_crops, classes)
                parts["unseen"] = unseen_crops
                cells = pl.concat([cells, unseen_cells], how="diagonal_relaxed")
            except CropError as error:  # A damaged crop of another plate must not fail this training.
                if report:
                    report(f"unseen plates are left out of the evidence: {error}")
        metrics = {**result.metrics, **peak_memory(), "train_crops": float(len(parts["train"]))}
        for part, part_cells in evaluated.items():
            metrics |= compute_metrics(part_cells, part)
        swapped = run_swap_test(result.model, result.layer, parts["test"], evaluated["test"], classes)
        metrics |= swap_metrics(swapped, "test")
        result = replace(result, metrics=metrics)
        data = data_versions(parts, cells)
        figures = _draw_figures(result, parts["test"], evaluated["test"], classes)
        version = registry.register(
            result.model,
            bundle,
            run_id=run_id,
            metrics=metrics,
            curves=result.curves,
            files={f"figures/{name}.png": to_png(figure) for name, figure in figures.items()}
            | _evidence_files(evaluated, cells, classes, data)
            | {EPOCH_EMBEDDINGS: _embeddings_by_epoch(result, parts["val"], classes)},
            data=data,
        )
    # Only after registration, so that an unreachable registry does not cost hours of training.
    shutil.rmtree(result.checkpoints, ignore_errors=True)
    return TrainedVersion(version, result, {part: len(dataset) for part, dataset in parts.items()}, figures)


def labelled_crops(
    cells: pl.DataFrame,
    fields: Sequence[CropField],
    classes: Sequence[str],
    channels: Sequence[str],
    memory: int = _MAX_CACHED_BYTES,
) -> CropDataset:
    """Return the crops of cells, labelled with the index of their ``treatment_class`` in ``classes``.

    Args:
        memory: see ``CropDataset``.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    pairs = cells.select("Metadata_CellID", "treatment_class").iter_rows()
    return CropDataset(fields, {cell_id: index_of[name] for cell_id, name in pairs}, channels, memory)


def _evaluate(result: TrainingResult, crops: CropDataset, classes: list[str]) -> pl.DataFrame:
    return evaluate_cells(result.model, [result.layer], crops, classes)[result.layer]


def _fits(field: CropField, bundle: BundleConfig) -> bool:
    same_shape = list(field.crop_shape) == list(bundle.crop_shape)
    return same_shape and bundle.find_mismatch(field.channels, field.voxel_size) is None


def _draw_figures(
    result: TrainingResult, crops: CropDataset, cells: pl.DataFrame, classes: list[str]
) -> dict[str, Figure]:
    """Draw confusion, calibration, training curves, and the best, median and worst maps on test wells."""
    figures = {
        "confusion": confusion_matrix(confusion_counts(cells, classes), classes),
        "reliability": reliability(calibration_bins(cells)),
        "curves": training_curves(pl.DataFrame(result.curves).with_row_index("epoch", offset=1)),
    }
    rows = best_median_worst(cells)
    if rows:
        images, labels, _ = default_collate([crops[row] for row in rows])
        model_images, model_labels = to_model_input(result.model, images, labels)
        explained = gradcamo(result.model, model_images, model_labels == TARGET, layer=result.layer)
        maps = explained.cam.float().cpu().numpy()
        maps = maps.reshape(len(maps), -1, *maps.shape[-2:])
        titles = [
            f"{row['true_class']}, predicted {row['predicted_class']}\nadjusted {row['gradcamo_adjusted']:.2f}"
            for row in cells[rows].iter_rows(named=True)
        ]
        figures["maps"] = crops_with_maps(images.numpy(), labels.numpy(), maps, titles)
    return figures


def _evidence_files(
    evaluated: dict[str, pl.DataFrame], cells: pl.DataFrame, classes: list[str], data: dict[str, dict]
) -> dict[str, bytes]:
    """Return the evaluated held-out cells as Parquet and the other evidence as JSON, by artifact name."""
    evidence: dict[str, Any] = {"classes": classes, "data": data, "metrics": METRICS}
    held_out = {part: part_cells for part, part_cells in evaluated.items() if part != "val"}
    for part, part_cells in held_out.items():
        evidence[part] = {
            "confusion": confusion_counts(part_cells, classes).tolist(),
            "calibration": calibration_bins(part_cells).to_dicts(),
        }
    masks = cells.select("Metadata_CellID", cs.by_name("mask_version", require_all=False))
    rows = pl.concat([part_cells.with_columns(split=pl.lit(part)) for part, part_cells in held_out.items()])
    table = io.BytesIO()
    rows.join(masks, on="Metadata_CellID").write_parquet(table)
    return {CELLS: table.getvalue(), EVIDENCE: json.dumps(evidence, indent=2).encode()}


def _embeddings_by_epoch(result: TrainingResult, crops: CropDataset, classes: list[str]) -> bytes:
    """Return, as Parquet, ``epoch`` from 1, ``Metadata_CellID``, ``treatment_class`` and ``embedding`` of crops."""
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


def common_geometry(fields: Sequence[CropField]) -> tuple[list[str], tuple[int, ...], list[float | None]]:
    """Return the channels, crop shape (z, y, x) and voxel size (z, y, x) of all fields.

    The voxel size is None along an axis for which any field does not state it.

    Raises:
        GradcamoError: if there is no field, or channels or crop shapes differ.
    """
    if not fields:
        raise GradcamoError("there are no crops to train on", "Materialise the crops of a plate first.")
    first = fields[0]
    for field in fields[1:]:
        if (field.channels, field.crop_shape) != (first.channels, first.crop_shape):
            raise GradcamoError(
                f"expected crops with channels {first.channels} and shape {first.crop_shape} as in {first.path}, "
                f"got {field.channels} and {field.crop_shape}",
                "Train on plates of one assay, cut with one crop shape.",
                path=field.path,
            )
    axes = zip(*(field.voxel_size for field in fields), strict=True)
    return first.channels, tuple(first.crop_shape), [None if None in sizes else sizes[0] for sizes in axes]
