"""Define one training epoch of an encoder in Lightning: augmentation, loss, metrics, checkpoint content."""

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
from torch.utils.data import default_collate

from gradcamo_assets.cells import TARGET
from gradcamo_assets.cells.dataset import CropDataset, mix_seeds
from gradcamo_assets.explain import maps as cam
from gradcamo_assets.explain.targets import extract_logits
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.training.augment import augment
from gradcamo_assets.training.penalty import logits_and_penalty
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.swap_surroundings import swap_surroundings

Report = Callable[[str], None]
Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, *crop), target masks (B, *crop) and classes (B,)."""
TRACKED_CELLS = 300
"""Number of validation cells, from the start, whose embedding is kept at every epoch."""
_AUGMENTATIONS = ("flip", "rotate", "shift_z", "gain", "offset", "noise", "crosstalk")


class EncoderModule(lightning.LightningModule):
    """Train with cross-entropy on treatment classes and an optional penalty on maps outside the cell.

    Args:
        layer: dotted name of the layer whose mean is the embedding and whose maps are penalised.
        steps: number of optimiser steps in the whole training.
        report: called with one line per epoch.
        donors: crops whose surroundings can replace those of the batch; see ``swap_pool``.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        config: TrainingConfig,
        steps: int,
        report: Report | None = None,
        *,
        donors: CropDataset | None = None,
    ):
        super().__init__()
        self.model, self.config, self.steps, self.report = model, config, steps, report
        self.layer, self.donors = layer, donors
        self.planar = is_2d(model)
        self.curves: dict[str, list[float]] = {}
        self.embeddings: list[Tensor] = []
        self.seconds = 0.0

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock."""
        self._epoch_start = time.perf_counter()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Swap and augment a training batch on the device, before any conversion to half precision."""
        images, labels, classes = batch
        if self.trainer.training:
            # The random numbers of a step, dropout included, depend on its number and the process only. A resumed
            # training therefore repeats them.
            torch.manual_seed(mix_seeds(self.config.seed, self.global_step, self.global_rank))
            images, labels = self._swap_and_augment(images, labels)
        masks = labels == TARGET
        return (images.squeeze(2), masks.squeeze(1), classes) if self.planar else (images, masks, classes)

    def _swap_and_augment(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self._swap(images, labels)
        strengths = {name: getattr(self.config, name) for name in _AUGMENTATIONS}
        if self.config.regulariser == "none":
            return augment(images, **strengths), labels
        # The penalty needs masks that move with the image.
        with_mask = torch.cat([images, (labels == TARGET).to(images)[:, None]], 1)
        augmented = augment(with_mask, mask_channels=1, **strengths)
        return augmented[:, :-1], (augmented[:, -1] > 0.5) * TARGET

    def _swap(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        config, pool = self.config, None
        if not config.swap:
            return images, labels
        if self.donors is not None and config.swap_pool:
            rows = torch.randint(len(self.donors), (config.swap_pool,)).tolist()
            donor_images, donor_labels, _ = default_collate([self.donors[row] for row in rows])
            pool = (donor_images.to(images.device), donor_labels.to(images.device))
        return swap_surroundings(
            images, labels, share=config.swap, soften=config.swap_soften, alone=config.swap_alone, pool=pool
        )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of one step on images, masks and classes."""
        images, masks, classes = batch
        config = self.config
        if config.regulariser == "none":
            return self._classification_loss(
                "train", extract_logits(self.model(images)), classes, config.label_smoothing
            )
        logits, penalty = logits_and_penalty(self.model, self.layer, images, masks, classes, config.regulariser_target)
        self.log("train_penalty", penalty, on_step=False, on_epoch=True, batch_size=len(classes), sync_dist=True)
        loss = self._classification_loss("train", logits, classes, config.label_smoothing)
        # During the warm-up the penalty is logged but not added.
        return loss if self.current_epoch < config.regulariser_after else loss + config.regulariser_weight * penalty

    def on_validation_epoch_start(self) -> None:
        """Forget the embeddings of the previous epoch."""
        self._epoch_embeddings: list[Tensor] = []

    def track(self, embedding: Tensor) -> None:
        """Keep the embeddings (B, K) of the first validation cells."""
        if sum(map(len, self._epoch_embeddings)) < TRACKED_CELLS:
            self._epoch_embeddings.append(embedding.cpu())

    def on_validation_epoch_end(self) -> None:
        """Store the embeddings of the tracked cells."""
        self.embeddings.append(torch.cat(self._epoch_embeddings)[:TRACKED_CELLS])

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log loss and accuracy without swap, augmentation and penalty."""
        output, embedding = forward_with_embedding(self.model, self.layer, batch[0])
        self.track(embedding)
        self._classification_loss("val", extract_logits(output), batch[2], 0.0)

    def _classification_loss(self, part: str, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Compute the cross-entropy; log it with the accuracy."""
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        accuracy = (logits.argmax(1) == target).float().mean()
        values = {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(target), sync_dist=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Store and report the epoch's averages; stop when training is finished."""
        self.seconds += time.perf_counter() - self._epoch_start
        averages = {name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())}
        for name, value in averages.items():
            self.curves.setdefault(name, []).append(value)
        done = self.current_epoch + 1
        self.trainer.should_stop = is_finished(self.curves, self.config)
        if self.report and self.trainer.is_global_zero:
            left = timedelta(seconds=round(self.seconds / done * (self.config.epochs - done)))
            text = ", ".join(f"{name} {value:.3f}" for name, value in averages.items())
            self.report(f"epoch {done} of {self.config.epochs}: {text}, {left} left")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add curves, embeddings and training time to the checkpoint."""
        checkpoint |= {"curves": self.curves, "seconds": self.seconds, "embeddings": self.embeddings}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore curves, embeddings and training time."""
        self.curves, self.seconds = checkpoint["curves"], checkpoint["seconds"]
        self.embeddings = checkpoint["embeddings"]

    def configure_optimizers(self) -> Any:
        """Return AdamW with a one-cycle schedule."""
        optimiser = torch.optim.AdamW(
            self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.config.learning_rate, total_steps=self.steps, pct_start=0.2
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def forward_with_embedding(model: nn.Module, layer: str, images: Tensor) -> tuple[Any, Tensor]:
    """Return the model's output and the embedding: the layer's mean over voxels, (B, K) float32, differentiable."""
    output, activations = cam.capture_activations(model, images, {layer: model.get_submodule(layer)})
    return output, activations[layer].flatten(2).mean(2, dtype=torch.float32)


def best_epoch(curves: dict[str, list[float]], config: TrainingConfig) -> int:
    """Return the 0-based epoch whose weights are kept: the last one, or with ``patience`` the one of lowest loss."""
    if not config.patience:
        return len(curves["train_loss"]) - 1
    return int(np.nan_to_num(curves["val_loss"], nan=np.inf).argmin())


def is_finished(curves: dict[str, list[float]], config: TrainingConfig) -> bool:
    """Tell whether all epochs have run, or ``patience`` epochs have passed since the best one."""
    done = len(curves["train_loss"])
    return done >= config.epochs or 0 < config.patience <= done - 1 - best_epoch(curves, config)
