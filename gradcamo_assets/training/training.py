"""Train an encoder with Lightning, on treatment classes or self-supervised.

Classes are balanced by resampling. Every epoch ends with a checkpoint, and its random numbers depend on the seed and
the epoch's number only, so a killed training resumes with the same result.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import sys
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader

from gradcamo_assets.cells.dataset import BalancedSampler, CropDataset
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.networks.checks import check_network
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.networks.weights import collect_weights
from gradcamo_assets.provenance import digest
from gradcamo_assets.training.lightning_module import EncoderModule, Report, best_epoch, is_finished
from gradcamo_assets.training.self_supervised import (
    PairSampler,
    SelfSupervisedModule,
    compute_embeddings,
    find_pooled_head,
    fit_prototypes,
    well_indices,
)
from gradcamo_assets.training.settings import TrainingConfig

_CODE_VERSION = "6"
"""Increase it when changed code gives other weights, so that old checkpoints are not resumed."""


@dataclass
class TrainingResult:
    """A trained network with its evidence.

    Attributes:
        metrics: averages of the epoch whose weights the network has.
        curves: averages of every epoch, by metric.
        checkpoints: folder of the finished training. Until it is deleted, an equal training returns at once.
        embeddings: for every epoch, those of the first ``TRACKED_CELLS`` validation crops, (n, d).
    """

    model: nn.Module
    layer: str
    metrics: dict[str, float]
    curves: dict[str, list[float]]
    checkpoints: Path
    embeddings: list[np.ndarray] = field(default_factory=list)


def train_encoder(
    train: CropDataset,
    validation: CropDataset,
    classes: Sequence[str],
    config: TrainingConfig,
    *,
    work: Path,
    progress: bool = True,
    report: Report | None = None,
    modules: Collection[str] = (),
) -> TrainingResult:
    """Train an encoder, or resume the same training where it was killed.

    Args:
        classes: treatment class of each index in the datasets.
        work: the checkpoints go to its subfolder ``training/<digest of everything that determines the result>``.
        progress: show a progress bar on a terminal.
        report: called with one line per epoch.
        modules: see ``build_encoder``.

    Raises:
        GradcamoError: if a class has no training crop, early stopping has no validation crops, the encoder has no head
            for prototypes, or the loss diverges.
        BundleError: see ``build_encoder`` and ``check_network``; raised before training.
    """
    counts = np.bincount(train.targets, minlength=len(classes))
    if not counts.all():
        empty = ", ".join(name for name, count in zip(classes, counts, strict=True) if not count)
        raise GradcamoError(f"no training crop of class {empty}", "Lower test_fraction, or leave the class out.")
    self_supervised = config.objective != "treatment"
    min_validation = 2 if self_supervised else 1
    if config.patience and len(validation) < min_validation:
        raise GradcamoError(
            f"early stopping needs at least {min_validation} validation crops, got {len(validation)}",
            "Raise val_fraction, or set patience to 0.",
        )
    lightning.seed_everything(config.seed, verbose=False)
    channels = len(train.orders[0])
    model, layer = build_encoder(
        config.encoder, channels, len(classes), weights=config.weights, layer=config.layer, modules=modules
    )
    # The version is loaded with this check after training. A copy, because it ends in another mode.
    check_network(deepcopy(model).eval(), layer, channels, len(classes), train[0][0].shape[1:])
    prototype_head = find_pooled_head(model, layer, train) if self_supervised else None
    processes = config.processes
    batch_share = math.ceil(config.batch_size / processes)
    steps = math.ceil(len(train) / (batch_share * processes))
    initial_weights = save(collect_weights(model))
    identity = [_CODE_VERSION, asdict(config), processes, list(classes), train.identity, validation.identity]
    folder = work / "training" / digest([*identity, hashlib.sha256(initial_weights).hexdigest()])
    state = _load_checkpoint(folder / "last.ckpt")
    if state is None:
        shutil.rmtree(folder, ignore_errors=True)
    if state is None or not is_finished(state["curves"], config):
        if state and report:
            report(f"resuming after epoch {len(state['curves']['train_loss'])}")
        sampling = (steps * batch_share, config.seed, processes)
        if self_supervised:
            wells = well_indices(train) if config.positives == "treatment" else None
            sampler: BalancedSampler = PairSampler(train.targets, wells, *sampling)
        else:
            sampler = BalancedSampler(train.targets, *sampling)
        loaders = (
            DataLoader(train, batch_share * (2 if self_supervised else 1), sampler=sampler),
            DataLoader(validation, batch_share) if len(validation) else None,
        )
        bars = [TQDMProgressBar()] if progress and sys.stderr.isatty() else []
        with _silence_lightning(), _report_from_children(report, processes) as child_report:
            # Self-supervised training does not use the head's weights.
            strategy = "ddp_spawn_find_unused_parameters_true" if self_supervised else "ddp_spawn"
            trainer = lightning.Trainer(
                max_epochs=config.epochs,
                accelerator="gpu" if torch.cuda.is_available() else "cpu",
                devices=processes,
                # Processes are spawned, because a Dagster run is not a script that Lightning could start again.
                strategy=strategy if processes > 1 else "auto",
                use_distributed_sampler=False,
                precision=config.lightning_precision,
                logger=False,
                enable_model_summary=False,
                enable_progress_bar=bool(bars),
                num_sanity_val_steps=0,
                default_root_dir=work,
                callbacks=[*bars, *_checkpoint_callbacks(folder, config)],
            )
            module_type = (
                partial(SelfSupervisedModule, width=prototype_head.in_features) if prototype_head else EncoderModule
            )
            module = module_type(model, layer, config, steps * config.epochs, child_report, donors=train)
            trainer.fit(module, *loaders, ckpt_path=folder / "last.ckpt" if state else None, weights_only=True)
        state = _load_checkpoint(folder / "last.ckpt")
    best = _load_checkpoint(folder / "best.ckpt") if config.patience else state
    if state is None or best is None:
        raise GradcamoError(
            "training ended without a readable checkpoint", "Check that the disk is not full.", path=folder
        )
    curves, seconds = state["curves"], state["seconds"]
    if not np.isfinite(curves["train_loss"]).all():
        shutil.rmtree(folder)
        raise GradcamoError("training diverged: its loss is not finite", "Lower learning_rate, or use float32.")
    weights = {name: value for name, value in best["state_dict"].items() if name.startswith("model.")}
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    if prototype_head is not None:
        embeddings = compute_embeddings(model, layer, train, batch_share).numpy()
        weight, bias = fit_prototypes(embeddings, train.targets)
        prototype_head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    metrics = {name: values[best_epoch(curves, config)] for name, values in curves.items()}
    epochs = len(curves["train_loss"])
    crops_seen = steps * batch_share * processes * epochs
    metrics |= {"epochs": epochs, "seconds": seconds, "seconds_per_crop": seconds / crops_seen}
    return TrainingResult(
        model=model.eval().requires_grad_(False),
        layer=layer,
        metrics=metrics,
        curves=curves,
        checkpoints=folder,
        embeddings=[epoch.numpy() for epoch in state["embeddings"]],
    )


def _checkpoint_callbacks(folder: Path, config: TrainingConfig) -> list[ModelCheckpoint]:
    """Save the best epoch before the last one: a kill in between repeats an epoch and loses none."""
    common: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(folder, "best", monitor="val_loss", save_weights_only=True, **common)
    return [*([best] if config.patience else []), ModelCheckpoint(folder, "last", **common)]


def _load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None if it is missing or damaged, so that its epochs are trained again."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return None


@contextmanager
def _silence_lightning() -> Iterator[None]:
    """Suppress Lightning's hints and the warnings that do not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in ("LeafSpec", "does not have many workers", "exists and is not empty", "no `val_dataloader`"):
            warnings.filterwarnings("ignore", f".*{message}")
        yield


@contextmanager
def _report_from_children(report: Report | None, processes: int) -> Iterator[Report | None]:
    """Yield a ``report`` that child processes can call."""
    if report is None or processes == 1:
        yield report
        return
    lines = get_context("spawn").SimpleQueue()
    listener = threading.Thread(target=lambda: [report(line) for line in iter(lines.get, None)], daemon=True)
    listener.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        listener.join()
