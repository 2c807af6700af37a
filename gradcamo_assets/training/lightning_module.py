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
from torch.utils.data import default_collate

from gradcamo_assets.cells import TARGET
from gradcamo_assets.cells.dataset import CropDataset, mix_seeds
from gradcamo_assets.explain.maps import extract_logits
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.training.augment import augment
from gradcamo_assets.training.penalty import penalised
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets.training.swap_surroundings import swap

Report = Callable[[str], None]
Batch = tuple[Tensor, Tensor, Tensor]
"""Images, (B, *crop) target masks and (B,) classes."""
WATCHED = 300
"""Validation cells, the first ones, whose embedding is kept at every epoch."""
_AUGMENT = ("flip", "rotate", "shift_z", "gain", "offset", "noise")


class EncoderModule(lightning.LightningModule):
    """Cross-entropy on treatment classes, and a penalty on maps that lie elsewhere than on the cell.

    Args:
        layer: dotted name of the layer whose mean is the embedding and whose maps the penalty is on.
        lenders: crops that lend their surroundings, beside the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        config: TrainingConfig,
        steps: int,
        report: Report | None = None,
        *,
        lenders: CropDataset | None = None,
    ):
        super().__init__()
        self.model, self.config, self.steps, self.report = model, config, steps, report
        self.layer, self.lenders = layer, lenders
        self.planar = is_2d(model)
        self.curves: dict[str, list[float]] = {}
        self.embeddings: list[Tensor] = []
        self.seconds = 0.0

    def on_train_epoch_start(self) -> None:
        """An epoch's time begins."""
        self._began = time.perf_counter()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """(images, labels, classes) as read to swapped and augmented ones: on the device, before any half precision."""
        images, labels, classes = batch
        if self.trainer.training:
            # A step's draws, dropout's too, depend on its number and the process, not on what ran before.
            torch.manual_seed(mix_seeds(self.config.seed, self.global_step, self.global_rank))
            images, labels = self._changed(images, labels)
        masks = labels == TARGET
        return (images.squeeze(2), masks.squeeze(1), classes) if self.planar else (images, masks, classes)

    def _changed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Swapped and augmented ones."""
        images, labels = self._swapped(images, labels)
        strengths = {name: getattr(self.config, name) for name in _AUGMENT}
        if self.config.regulariser == "none":
            return augment(images, **strengths), labels
        images = augment(torch.cat([images, (labels == TARGET).to(images)[:, None]], 1), unlit=1, **strengths)
        return images[:, :-1], (images[:, -1] > 0.5) * TARGET

    def _swapped(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        config, pool = self.config, None
        if not config.swap:
            return images, labels
        if self.lenders is not None and config.swap_pool:
            rows = torch.randint(len(self.lenders), (config.swap_pool,)).tolist()
            lent, lent_labels, _ = default_collate([self.lenders[row] for row in rows])
            pool = (lent.to(images.device), lent_labels.to(images.device))
        return swap(images, labels, share=config.swap, soften=config.swap_soften, pool=pool)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One step on images, masks and classes."""
        images, masks, classes = batch
        config = self.config
        if config.regulariser == "none":
            return self._loss("train", extract_logits(self.model(images)), classes, config.label_smoothing)
        logits, penalty = penalised(self.model, self.layer, images, masks, classes, config.regulariser_target)
        self.log("train_penalty", penalty, on_step=False, on_epoch=True, batch_size=len(classes), sync_dist=True)
        loss = self._loss("train", logits, classes, config.label_smoothing)
        # Before it sets in, the penalty is measured only.
        return loss if self.current_epoch < config.regulariser_after else loss + config.regulariser_weight * penalty

    def on_validation_epoch_start(self) -> None:
        """No cell is watched yet."""
        self._seen: list[Tensor] = []

    def watch(self, embedding: Tensor) -> None:
        """Keep the embeddings (B, K) of the first validation cells."""
        if sum(map(len, self._seen)) < WATCHED:
            self._seen.append(embedding.cpu())

    def on_validation_epoch_end(self) -> None:
        """Keep what the layer made of the watched cells."""
        self.embeddings.append(torch.cat(self._seen)[:WATCHED])

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss and accuracy without swap, augmentation and penalty."""
        output, embedding = embedded(self.model, self.layer, batch[0])
        self.watch(embedding)
        self._loss("val", extract_logits(output), batch[2], 0.0)

    def _loss(self, part: str, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
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
            self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.config.learning_rate, total_steps=self.steps, pct_start=0.2
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def embedded(model: nn.Module, layer: str, images: Tensor) -> tuple[Any, Tensor]:
    """What the model returns, and the embedding: a layer's mean over voxels, (B, K) float32, differentiable."""
    means: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda *call: means.append(call[2].flatten(2).mean(2, dtype=torch.float32))
    )
    try:
        return model(images), means[-1]
    finally:
        hook.remove()


def best_epoch(curves: dict[str, list[float]], config: TrainingConfig) -> int:
    """0-based epoch whose weights are kept."""
    if not config.patience:
        return len(curves["train_loss"]) - 1
    return int(np.nan_to_num(curves["val_loss"], nan=np.inf).argmin())


def is_over(curves: dict[str, list[float]], config: TrainingConfig) -> bool:
    """Whether all epochs have run, or too many since the best one."""
    done = len(curves["train_loss"])
    return done >= config.epochs or 0 < config.patience <= done - 1 - best_epoch(curves, config)
