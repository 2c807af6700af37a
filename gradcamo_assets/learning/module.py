"""What an epoch of training is: its draws, its steps, its averages, and what of it goes into a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcamo_assets.crops.dataset import mixed
from gradcamo_assets.explain.cam import logits_of
from gradcamo_assets.learning.augment import augment
from gradcamo_assets.learning.configuration import TrainingConfig
from gradcamo_assets.networks.registry import is_planar

Report = Callable[[str], None]
WATCHED = 300
"""Validation cells, the first ones, whose embedding is kept at every epoch."""
_AUGMENT = ("flip", "rotate", "shift_z", "gain", "offset", "noise")


class EncoderModule(lightning.LightningModule):
    """Cross-entropy on treatment classes. The mean of ``layer`` over a crop is its embedding."""

    def __init__(self, model: nn.Module, layer: str, config: TrainingConfig, steps: int, report: Report | None = None):
        super().__init__()
        self.model, self.layer, self.config, self.steps, self.report = model, layer, config, steps, report
        self.planar = is_planar(model)
        self.curves: dict[str, list[float]] = {}
        self.embeddings: list[Tensor] = []
        self.seconds = 0.0

    def on_train_epoch_start(self) -> None:
        """An epoch's time begins."""
        self._began = time.perf_counter()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """(images, labels, classes) to augmented images and classes: on the device, before any half precision."""
        images, _, target = batch
        if self.trainer.training:
            # A step's draws, dropout's too, depend on its number and the process, not on what ran before.
            torch.manual_seed(mixed(self.config.seed, self.global_step, self.global_rank))
            images = augment(images, **{name: getattr(self.config, name) for name in _AUGMENT})
        return images.squeeze(2) if self.planar else images, target

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """One step on images and classes."""
        return self._loss("train", batch, self.config.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and accuracy without augmentation."""
        self._loss("val", batch, 0.0)

    def on_validation_epoch_start(self) -> None:
        """Watch the explained layer."""
        self._seen: list[Tensor] = []
        self._hook = self.model.get_submodule(self.layer).register_forward_hook(self._see)

    def _see(self, layer: nn.Module, inputs: object, maps: Tensor) -> None:
        if sum(map(len, self._seen)) < WATCHED:
            self._seen.append(maps.flatten(2).mean(2).float().cpu())

    def on_validation_epoch_end(self) -> None:
        """Keep what the layer made of the watched cells."""
        self._hook.remove()
        self.embeddings.append(torch.cat(self._seen)[:WATCHED])

    def _loss(self, part: str, batch: tuple[Tensor, Tensor], smoothing: float) -> Tensor:
        images, target = batch
        logits = logits_of(self.model(images))
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        hits = (logits.argmax(1) == target).float().mean()
        values = {f"{part}_loss": loss, f"{part}_accuracy": hits}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(target), sync_dist=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's averages, report them, and stop where they have not improved for long."""
        self.seconds += time.perf_counter() - self._began
        found = {name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())}
        for name, value in found.items():
            self.curves.setdefault(name, []).append(value)
        done = self.current_epoch + 1
        self.trainer.should_stop = is_over(self.curves, self.config)
        if self.report and self.trainer.is_global_zero:
            left = timedelta(seconds=round(self.seconds / done * (self.config.epochs - done)))
            text = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            self.report(f"epoch {done} of {self.config.epochs}: {text}, {left} left")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Curves, embeddings and time go with the weights."""
        checkpoint |= {"curves": self.curves, "seconds": self.seconds, "embeddings": self.embeddings}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse."""
        self.curves, self.seconds = checkpoint["curves"], checkpoint["seconds"]
        self.embeddings = checkpoint["embeddings"]

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule."""
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.config.learning_rate, total_steps=self.steps, pct_start=0.2
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def best_epoch(curves: dict[str, list[float]], config: TrainingConfig) -> int:
    """0-based epoch whose weights are kept."""
    if not config.patience:
        return len(curves["train_loss"]) - 1
    return int(np.nan_to_num(curves["val_loss"], nan=np.inf).argmin())


def is_over(curves: dict[str, list[float]], config: TrainingConfig) -> bool:
    """Whether all epochs have run, or too many since the best one."""
    done = len(curves["train_loss"])
    return done >= config.epochs or 0 < config.patience <= done - 1 - best_epoch(curves, config)
