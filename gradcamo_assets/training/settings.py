"""What can be set about a training, checked before anything is read."""

from __future__ import annotations

from typing import Literal

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.networks.bundle import Cure
from gradcamo_assets.settings import Amount, Count, Share, section, setting

Regulariser = Literal["none", "gradcamo"]
Objective = Literal["treatment", "vicreg", "simclr"]
Positives = Literal["crop", "treatment"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
_LIGHTNINGS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@section
class TrainingConfig:
    """How an encoder is trained: section ``[training]`` of ``gradcamo.toml``."""

    encoder: str = setting("efficientnet3d-small", "Built-in, or module:function of your own.")
    weights: str | None = setting(None, "Safetensors file to start from; else fresh weights.")
    layer: str | None = setting(None, "Dotted name of the layer to explain, if another.")
    objective: Objective = setting(
        "treatment", "What is learned: a crop's treatment; or, without classes, to know a crop in another view of it."
    )
    positives: Positives = setting(
        "crop", "Of vicreg and simclr, what the other view is of: the same crop, or another of its treatment."
    )
    epochs: int = setting(20, "Passes over the training crops.", ge=1)
    batch_size: int = setting(16, "Crops a step, shared out among the devices.", ge=1)
    learning_rate: float = setting(4e-3, "Highest rate of AdamW's one-cycle schedule.", gt=0)
    weight_decay: Amount = setting(1e-2, "Of AdamW.")
    label_smoothing: Share = setting(0.05, "Share of the target spread over all classes.")
    patience: Count = setting(
        0, "Epochs without a lower validation loss that end training, of which the best is kept; 0: all are trained."
    )
    flip: Share = setting(0.5, "Chance of each mirror image and of a quarter turn.")
    rotate: Share = setting(0.0, "Chance of a turn in plane by any angle.")
    shift_z: Share = setting(0.0, "Chance of a shift by one slice.")
    gain: Amount = setting(0.1, "Deviation of the factor on a stain.")
    offset: Amount = setting(0.05, "Deviation of the term on a stain, standardised units.")
    noise: Amount = setting(0.0, "Deviation of the noise on a voxel, standardised units.")
    swap: Share = setting(0.5, "Share of crops that get the surroundings of any other crop; 0 is off.")
    swap_soften: Count = setting(2, "Width of the seam, voxels.")
    swap_pool: Count = setting(0, "Crops of any training well that a step reads to lend theirs; 0: those of the batch.")
    regulariser: Regulariser = setting("none", "Penalty on maps beside the cell, added to the loss.")
    regulariser_weight: Amount = setting(3.0, "Its weight (lambda).")
    regulariser_target: float = setting(0.9, "Adjusted score beyond which gradcamo asks for no more.", gt=0, le=1)
    regulariser_after: Count = setting(2, "Epochs before it sets in.")
    precision: Precision = setting("auto", "auto: 16 bits on a GPU, 32 elsewhere. Weights are kept in 32.")
    devices: int = setting(1, "GPUs, or processes where there is none; -1 takes every GPU.")
    seed: Count = setting(0, "Of weights, order and augmentation.")

    def __post_init__(self) -> None:
        views, least = self.objective != "treatment", 2 * max(1, self.devices)
        rules = {
            "positives is of vicreg and simclr alone": views or self.positives == "crop",
            "regulariser is none for vicreg and simclr, which have no classes": not views or self.regulariser == "none",
            "batch_size is at least 2 a device for vicreg and simclr": not views or self.batch_size >= least,
            "devices is -1, or 1 to batch_size": self.devices == -1 or 1 <= self.devices <= self.batch_size,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError("; ".join(broken))

    @property
    def cure(self) -> Cure:
        """What a bundle records of it."""
        weight = 0.0 if self.regulariser == "none" else self.regulariser_weight
        return Cure(self.swap, self.regulariser, weight)

    @property
    def processes(self) -> int:
        """Devices that share a batch, on this machine."""
        import torch

        return self.devices if self.devices > 0 else max(1, torch.cuda.device_count())

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision on this machine."""
        import torch

        gpu = torch.cuda.is_available()
        if self.precision == "float16" and not gpu:
            raise GradcamoError("float16 trains on a GPU only", "Set precision to auto, float32 or bfloat16.")
        if self.precision != "auto" or not gpu:
            return _LIGHTNINGS["float32" if self.precision == "auto" else self.precision]
        return _LIGHTNINGS["bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"]
