"""Define and check the settings of a training."""

from __future__ import annotations

from typing import Literal

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.networks.bundle import ShortcutMitigation
from gradcamo_assets.settings import Amount, Count, Share, section, setting

Regulariser = Literal["none", "gradcamo"]
Objective = Literal["treatment", "vicreg", "simclr"]
Positives = Literal["crop", "treatment"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
_LIGHTNING_NAMES = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@section
class TrainingConfig:
    """Settings of a training: section ``[training]`` of ``gradcamo.toml``."""

    encoder: str = setting("efficientnet3d-small", "Name of a built-in encoder, or module:function of your own.")
    weights: str | None = setting(None, "Safetensors file with initial weights; by default random weights.")
    layer: str | None = setting(None, "Dotted name of the layer to explain; by default the encoder's own choice.")
    objective: Objective = setting(
        "treatment",
        "treatment: predict a crop's treatment. vicreg, simclr: learn without classes, from two views of a crop.",
    )
    positives: Positives = setting(
        "crop", "For vicreg and simclr, the source of the second view: the same crop, or another crop of its treatment."
    )
    epochs: int = setting(20, "Passes over the training crops.", ge=1)
    batch_size: int = setting(16, "Crops per step, over all devices.", ge=1)
    learning_rate: float = setting(4e-3, "Highest learning rate of AdamW's one-cycle schedule.", gt=0)
    weight_decay: Amount = setting(1e-2, "Weight decay of AdamW.")
    label_smoothing: Share = setting(0.05, "Share of the target probability spread over all classes.")
    patience: Count = setting(
        0, "Stop after this many epochs without a lower validation loss and keep the best epoch; 0: train all epochs."
    )
    flip: Share = setting(0.5, "Probability of a mirror image along each axis, and of exchanging y and x.")
    rotate: Share = setting(0.0, "Probability of a rotation in plane by any angle.")
    shift_z: Share = setting(0.0, "Probability of a shift by one slice.")
    gain: Amount = setting(0.1, "Standard deviation of a stain's brightness factor.")
    offset: Amount = setting(0.05, "Standard deviation of a stain's offset, in standardised units.")
    noise: Amount = setting(0.0, "Standard deviation of the noise per voxel, in standardised units.")
    crosstalk: Amount = setting(0.0, "Standard deviation of the share of one stain that is added to another.")
    swap: Share = setting(0.5, "Share of crops that get the surroundings of another crop; 0: off.")
    swap_alone: Share = setting(0.0, "Share of these crops that get background only, without neighbours.")
    swap_soften: Count = setting(2, "Width of the blended seam, in voxels.")
    swap_pool: Count = setting(0, "Training crops read per step as donors of surroundings; 0: the batch itself.")
    regulariser: Regulariser = setting("none", "Penalty on maps outside the cell, added to the loss.")
    regulariser_weight: Amount = setting(3.0, "Weight of the penalty (lambda).")
    regulariser_target: float = setting(0.9, "Adjusted score from which the penalty is 0.", gt=0, le=1)
    regulariser_after: Count = setting(2, "Epochs before the penalty is added.")
    precision: Precision = setting("auto", "auto: 16 bits on a GPU, 32 elsewhere. Weights are stored in 32 bits.")
    devices: int = setting(1, "Number of GPUs, or of processes without a GPU; -1: all GPUs.")
    seed: Count = setting(0, "Seed of weights, crop order and augmentation.")

    def __post_init__(self) -> None:
        self_supervised, smallest_batch = self.objective != "treatment", 2 * max(1, self.devices)
        problems = []
        if not self_supervised and self.positives != "crop":
            problems.append(f"positives must be crop if objective is treatment, got {self.positives}")
        if self_supervised and self.regulariser != "none":
            problems.append(f"regulariser must be none if objective is {self.objective}, got {self.regulariser}")
        if self_supervised and self.batch_size < smallest_batch:
            problems.append(
                f"batch_size must be at least {smallest_batch} (2 per device) if objective is {self.objective}, "
                f"got {self.batch_size}"
            )
        if self.devices != -1 and not 1 <= self.devices <= self.batch_size:
            problems.append(f"devices must be -1 or between 1 and batch_size ({self.batch_size}), got {self.devices}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def mitigation(self) -> ShortcutMitigation:
        """The measures against shortcuts that a bundle records."""
        weight = 0.0 if self.regulariser == "none" else self.regulariser_weight
        return ShortcutMitigation(self.swap, self.regulariser, weight)

    @property
    def processes(self) -> int:
        """Number of processes that share a batch on this machine."""
        import torch

        return self.devices if self.devices > 0 else max(1, torch.cuda.device_count())

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision on this machine.

        Raises:
            GradcamoError: for float16 without a GPU.
        """
        import torch

        has_gpu = torch.cuda.is_available()
        if self.precision == "float16" and not has_gpu:
            raise GradcamoError(
                "precision float16 needs a GPU",
                "Set precision to auto, float32 or bfloat16.",
            )
        if self.precision != "auto":
            return _LIGHTNING_NAMES[self.precision]
        if not has_gpu:
            return _LIGHTNING_NAMES["float32"]
        return _LIGHTNING_NAMES["bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"]
