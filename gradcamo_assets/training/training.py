"""Training an encoder with Lightning: to predict the treatment of a crop, or without classes.

Classes are balanced by resampling. Every epoch ends in a checkpoint, and its draws follow from the seed and its number
alone, so that a training that was killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.provenance import digest
from gradcamo_assets.training.lightning_module import EncoderModule, Report, best_epoch, is_over
from gradcamo_assets.training.self_supervised import (
    PairSampler,
    SelfSupervisedModule,
    embeddings_of,
    pooled_linear,
    prototypes,
    wells_of,
)
from gradcamo_assets.training.settings import TrainingConfig

_CODE = "4"


@dataclass
class TrainingResult:
    """A trained network with its evidence: metrics of the epoch whose weights it has, and the curve of every epoch.

    ``embeddings`` hold, for every epoch, those of the first ``WATCHED`` validation crops, (n, d). ``checkpoints`` holds
    the finished training until whoever keeps the network deletes it: until then, training the same again ends at once.
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
) -> TrainingResult:
    """Train an encoder, or go on where the same training was killed.

    Args:
        classes: treatment class of each index the datasets use. work: folder of the checkpoints, in ``training/``
            under a digest of all that determines the result.
        progress: show a progress bar on a terminal. report: called with one line an epoch.

    Raises:
        GradcamoError: if a class has no training crop, early stopping no validation crop, or the loss diverges.
        BundleError: as ``build_encoder``.
    """
    counts = np.bincount(train.targets, minlength=len(classes))
    if not counts.all():
        empty = ", ".join(name for name, count in zip(classes, counts, strict=True) if not count)
        raise GradcamoError(f"no training crop of class {empty}", "Lower test_fraction, or leave the class out.")
    views = config.objective != "treatment"
    if config.patience and len(validation) < 1 + views:
        raise GradcamoError("early stopping needs validation crops", "Raise val_fraction, or set patience to 0.")
    lightning.seed_everything(config.seed, verbose=False)
    model, layer = build_encoder(
        config.encoder, len(train.orders[0]), len(classes), weights=config.weights, layer=config.layer
    )
    head = pooled_linear(model, layer, train) if views else None
    ranks = config.processes
    share = math.ceil(config.batch_size / ranks)
    steps = math.ceil(len(train) / (share * ranks))
    fresh = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    identity = [_CODE, asdict(config), ranks, list(classes), train.identity, validation.identity]
    folder = work / "training" / digest([*identity, hashlib.sha256(fresh).hexdigest()])
    state = _checkpoint(folder / "last.ckpt")
    if state is None:
        shutil.rmtree(folder, ignore_errors=True)
    if state is None or not is_over(state["curves"], config):
        if state and report:
            report(f"going on behind epoch {len(state['curves']['train_loss'])}")
        draws = (steps * share, config.seed, ranks)
        wells = wells_of(train) if config.positives == "treatment" else None
        sampler = PairSampler(train.targets, wells, *draws) if views else BalancedSampler(train.targets, *draws)
        loaders = (
            DataLoader(train, share * (1 + views), sampler=sampler),
            DataLoader(validation, share) if len(validation) else None,
        )
        bars = [TQDMProgressBar()] if progress and sys.stderr.isatty() else []
        with _quiet(), _heard(report, ranks) as heard:
            trainer = lightning.Trainer(
                max_epochs=config.epochs,
                accelerator="gpu" if torch.cuda.is_available() else "cpu",
                devices=ranks,
                # Processes are spawned: a run of Dagster is no script that could be started once more.
                strategy=("ddp_spawn_find_unused_parameters_true" if views else "ddp_spawn") if ranks > 1 else "auto",
                use_distributed_sampler=False,
                precision=config.lightning_precision,
                logger=False,
                enable_model_summary=False,
                enable_progress_bar=bool(bars),
                num_sanity_val_steps=0,
                default_root_dir=work,
                callbacks=[*bars, *_keepers(folder, config)],
            )
            kind = partial(SelfSupervisedModule, width=head.in_features) if head else EncoderModule
            module = kind(model, layer, config, steps * config.epochs, heard, lenders=train)
            trainer.fit(module, *loaders, ckpt_path=folder / "last.ckpt" if state else None, weights_only=True)
        state = _checkpoint(folder / "last.ckpt")
    best = _checkpoint(folder / "best.ckpt") if config.patience else state
    if state is None or best is None:
        raise GradcamoError("training left no checkpoint", "Look whether the disk is full.", path=folder)
    curves, seconds = state["curves"], state["seconds"]
    if not np.isfinite(curves["train_loss"]).all():
        shutil.rmtree(folder)
        raise GradcamoError("training diverged: its loss is no number", "Lower learning_rate, or use float32.")
    weights = {name: value for name, value in best["state_dict"].items() if name.startswith("model.")}
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    if head is not None:
        weight, bias = prototypes(embeddings_of(model, layer, train, share).numpy(), train.targets)
        head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    metrics = {name: values[best_epoch(curves, config)] for name, values in curves.items()}
    epochs = len(curves["train_loss"])
    metrics |= {"epochs": epochs, "seconds": seconds, "seconds_per_crop": seconds / (steps * share * ranks * epochs)}
    embeddings = [epoch.numpy() for epoch in state["embeddings"]]
    return TrainingResult(model.eval().requires_grad_(False), layer, metrics, curves, folder, embeddings)


def _keepers(folder: Path, config: TrainingConfig) -> list[ModelCheckpoint]:
    """A checkpoint of the best epoch before that of the last: a kill between them repeats an epoch and loses none."""
    common: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(folder, "best", monitor="val_loss", save_weights_only=True, **common)
    return [*([best] if config.patience else []), ModelCheckpoint(folder, "last", **common)]


def _checkpoint(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None where there is none, or a damaged one, whose epochs are trained again."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*exists and is not empty.*"):
            warnings.filterwarnings("ignore", message)
        yield


@contextmanager
def _heard(report: Report | None, processes: int) -> Iterator[Report | None]:
    """A ``report`` that a child process can call."""
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
