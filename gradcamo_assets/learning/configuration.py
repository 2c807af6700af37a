"""What can be set about a training, checked before anything is read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gradcamo_assets.common.errors import GradcamoError
from gradcamo_assets.common.sections import Amount, Count, Share, section
from gradcamo_assets.networks.bundle import Cure

SwapKind = Literal["any", "neighbours", "controls"]
Regulariser = Literal["none", "gradcamo", "energy", "rrr"]
Objective = Literal["treatment", "vicreg", "simclr"]
Positives = Literal["crop", "treatment"]
_LIGHTNINGS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@section
class TrainingConfig:
    """How an encoder is trained: section ``[training]`` of ``gradcamo.toml``."""

    encoder: str = Field(default="efficientnet3d-small", description="Built-in, or module:function of your own.")
    weights: str | None = Field(default=None, description="Safetensors file to start from; else fresh weights.")
    layer: str | None = Field(default=None, description="Dotted name of the layer to explain, if another.")
    objective: Objective = Field(
        default="treatment",
        description="What is learned: the treatment of a crop; or, without classes, to know a crop again in another "
        "view of it, by vicreg or simclr.",
    )
    positives: Positives = Field(
        default="crop",
        description="Of vicreg and simclr, what the second view is of: the same crop, or another of its treatment, "
        "from another well where there is one.",
    )
    epochs: int = Field(default=20, ge=1, description="Passes over the training crops.")
    batch_size: int = Field(default=16, ge=1, description="Crops a step, shared out among the devices.")
    learning_rate: float = Field(default=4e-3, gt=0, description="Highest rate of AdamW's one-cycle schedule.")
    weight_decay: Amount = Field(default=1e-2, description="Of AdamW.")
    label_smoothing: Share = Field(default=0.05, description="Share of the target spread over all classes.")
    patience: Count = Field(
        default=0,
        description="Epochs without a lower validation loss that end training, and the weights of the best epoch are "
        "kept; 0 trains all epochs and keeps the last.",
    )
    flip: Share = Field(default=0.5, description="Chance of each mirror image and of a quarter turn.")
    rotate: Share = Field(default=0.0, description="Chance of a turn in plane by any angle.")
    shift_z: Share = Field(default=0.0, description="Chance of a shift by one slice.")
    gain: Amount = Field(default=0.1, description="Deviation of the factor on a stain.")
    offset: Amount = Field(default=0.05, description="Deviation of the term on a stain, standardised units.")
    noise: Amount = Field(default=0.0, description="Deviation of the noise on a voxel, standardised units.")
    swap: Share = Field(default=0.5, description="Share of crops that get other surroundings; 0 is off.")
    swap_kind: SwapKind = Field(
        default="any", description="Those of any other crop, the neighbours alone, or those of controls."
    )
    swap_soften: Count = Field(default=2, description="Width of the seam, voxels.")
    swap_pool: Count = Field(
        default=0, description="Crops of any training well that a step reads to lend theirs; 0: those of the batch."
    )
    regulariser: Regulariser = Field(default="none", description="Penalty on maps beside the cell, added to the loss.")
    regulariser_weight: Amount = Field(default=3.0, description="Its weight (lambda).")
    regulariser_target: float = Field(
        default=0.9, gt=0, le=1, description="Adjusted score beyond which gradcamo asks for no more."
    )
    regulariser_after: Count = Field(default=2, description="Epochs before it sets in.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the arithmetic; auto: 16 bits on a GPU, 32 elsewhere. Weights are kept in 32."
    )
    devices: int = Field(default=1, description="GPUs, or processes where there is none; -1 takes every GPU.")
    seed: Count = Field(default=0, description="Of weights, order and augmentation.")

    def __post_init__(self) -> None:
        views = self.objective != "treatment"
        rules = {
            "positives is of vicreg and simclr alone": views or self.positives == "crop",
            "regulariser is none for vicreg and simclr, which have no classes": not views or self.regulariser == "none",
            "batch_size is at least 2 a device for vicreg and simclr": not views
            or self.batch_size >= 2 * max(1, self.devices),
            "devices is -1, or 1 to batch_size": self.devices == -1 or 1 <= self.devices <= self.batch_size,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError("; ".join(broken))

    @property
    def cure(self) -> Cure:
        """What a bundle records of it."""
        weight = 0.0 if self.regulariser == "none" else self.regulariser_weight
        return Cure(self.swap, self.swap_kind, self.regulariser, weight)

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
