"""Training an encoder to predict the treatment of a crop, with Lightning.

Classes are balanced by resampling; augmentation keeps to what a microscope could have seen (flips and quarter turns in
plane, small gain and offset per stain).
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler

from gradcamo_assets.common.errors import GradcamoError
from gradcamo_assets.crops.dataset import CropDataset
from gradcamo_assets.networks.registry import build_encoder


@dataclass(frozen=True)
class TrainingConfig:
    """How an encoder is trained.

    Attributes:
        encoder: a name for ``build_encoder``. epochs, batch_size, learning_rate, weight_decay: of AdamW under a
            one-cycle schedule. gain, offset: deviation of the per-stain intensity jitter, in standardised units.
        seed: of weights, order and augmentation.
    """

    encoder: str = "efficientnet3d-small"
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    gain: float = 0.1
    offset: float = 0.05
    seed: int = 0


@dataclass
class TrainingResult:
    """A trained network with its evidence: metrics of the last epoch and the curve of every epoch."""

    model: nn.Module
    layer: str
    metrics: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)


def augment(images: Tensor, gain: float, offset: float, generator: torch.Generator) -> Tensor:
    """(B, C, Z, Y, X) with random flips, one quarter turn a batch where crops are square, and jitter per stain."""
    draws = torch.rand(3, generator=generator)
    for axis, draw in zip((-1, -2, -3), draws, strict=True):
        if draw < 0.5:
            images = images.flip(axis)
    if images.shape[-1] == images.shape[-2] and torch.rand((), generator=generator) < 0.5:
        images = images.transpose(-1, -2)
    shape = (*images.shape[:2], 1, 1, 1)
    gains = 1 + gain * torch.randn(shape, generator=generator)
    return images * gains.to(images) + offset * torch.randn(shape, generator=generator).to(images)


class EncoderModule(lightning.LightningModule):
    """Cross-entropy on treatment classes."""

    def __init__(self, model: nn.Module, config: TrainingConfig, steps: int):
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.generator = torch.Generator().manual_seed(config.seed)
        self.curves: dict[str, list[float]] = {}
        self._sums: dict[str, list[float]] = {}

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        """One step on (images, labels, classes)."""
        images, _, target = batch
        images = augment(images, self.config.gain, self.config.offset, self.generator)
        return self._loss("train", images, target, self.config.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> None:
        """Loss and accuracy without augmentation."""
        images, _, target = batch
        self._loss("val", images, target, 0.0)

    def _loss(self, part: str, images: Tensor, target: Tensor, smoothing: float) -> Tensor:
        logits = self.model(images)
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        totals = self._sums.setdefault(part, [0.0, 0.0, 0.0])
        for i, value in enumerate((float(loss.detach()) * len(target), float((logits.argmax(1) == target).sum()))):
            totals[i] += value
        totals[2] += len(target)
        return loss

    def _close(self, part: str) -> None:
        loss, correct, n = self._sums.pop(part, (0.0, 0.0, 0.0))
        if n and not self.trainer.sanity_checking:
            for name, value in ((f"{part}_loss", loss / n), (f"{part}_accuracy", correct / n)):
                self.curves.setdefault(name, []).append(value)
                self.log(name, value, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Close the epoch's averages."""
        self._close("train")

    def on_validation_epoch_end(self) -> None:
        """Close the epoch's averages."""
        self._close("val")

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule."""
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.config.learning_rate, total_steps=self.steps, pct_start=0.2
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Report(lightning.Callback):
    """Calls back after every epoch, for logs that have no terminal."""

    def __init__(self, report: Callable[[str], None]):
        self.report = report

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        last = {name: values[-1] for name, values in module.curves.items()}
        text = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
        self.report(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {text}")


def train_encoder(
    train: CropDataset,
    validation: CropDataset,
    classes: Sequence[str],
    config: TrainingConfig,
    *,
    work: Path,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a fresh encoder.

    Args:
        classes: treatment class of each index the datasets use. work: folder for Lightning's scratch files.
        progress: show a progress bar. report: called with one line an epoch.

    Raises:
        GradcamoError: if a class has no training crop.
    """
    counts = np.bincount(train.targets, minlength=len(classes))
    if not counts.all():
        empty = ", ".join(name for name, count in zip(classes, counts, strict=True) if not count)
        raise GradcamoError(f"no training crop of class {empty}", "Lower test_fraction, or leave the class out.")
    lightning.seed_everything(config.seed, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    channels = len(train.orders[0])
    model, layer = build_encoder(config.encoder, channels, len(classes))
    steps_an_epoch = math.ceil(len(train) / config.batch_size)
    module = EncoderModule(model, config, steps_an_epoch * config.epochs)
    sampler = WeightedRandomSampler(
        torch.from_numpy(1.0 / counts[train.targets]),
        steps_an_epoch * config.batch_size,
        generator=torch.Generator().manual_seed(config.seed),
    )
    start = time.perf_counter()
    trainer = lightning.Trainer(
        max_epochs=config.epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        num_sanity_val_steps=0,
        default_root_dir=work,
        callbacks=[_Report(report)] if report else [],
    )
    trainer.fit(
        module,
        DataLoader(train, config.batch_size, sampler=sampler, drop_last=False),
        DataLoader(validation, config.batch_size) if len(validation) else None,
    )
    seconds = time.perf_counter() - start
    metrics = {name: values[-1] for name, values in module.curves.items()}
    metrics |= {"seconds": seconds, "seconds_per_crop": seconds / max(1, len(sampler) * config.epochs)}
    return TrainingResult(model.eval().requires_grad_(False), layer, metrics, module.curves)


@torch.inference_mode()
def accuracy(model: nn.Module, dataset: CropDataset, batch_size: int = 16) -> dict[str, float]:
    """Accuracy and balanced accuracy (mean recall over classes) on a dataset; empty for an empty dataset."""
    if not len(dataset):
        return {}
    device = next(model.parameters()).device
    predicted = torch.cat([model(x.to(device)).argmax(1).cpu() for x, _, _ in DataLoader(dataset, batch_size)]).numpy()
    hits = predicted == dataset.targets
    recalls = [hits[dataset.targets == target].mean() for target in np.unique(dataset.targets)]
    return {"accuracy": float(hits.mean()), "balanced_accuracy": float(np.mean(recalls))}
