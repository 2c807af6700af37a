"""What can be set about a training, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gradcamo_assets.common.errors import GradcamoError
from gradcamo_assets.networks.bundle import Cure

SwapKind = Literal["any", "neighbours", "controls"]
Regulariser = Literal["none", "gradcamo", "energy", "rrr"]
Objective = Literal["treatment", "vicreg", "simclr"]
Positives = Literal["crop", "treatment"]
_LIGHTNINGS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class TrainingConfig:
    """How an encoder is trained.

    Attributes:
        encoder, weights, layer: as ``build_encoder`` takes them.
        objective: what is learned: the ``treatment`` of a crop; or, without classes, to know a crop again in another
            view of it, by ``vicreg`` or ``simclr``. positives: of those two, what the second view is of: the same
            ``crop``, or another of its ``treatment``, from another well where there is one.
        epochs, batch_size, learning_rate, weight_decay: of AdamW under a one-cycle schedule. A batch is shared out
            among the devices. patience: epochs without a lower validation loss after which training stops, and the
            weights of the best epoch are kept; 0 trains all epochs and keeps the last.
        flip, rotate, shift_z, gain, offset, noise: augmentation, as ``augment`` takes it; 0 is off.
        swap: share of the crops that get other surroundings; 0 is off. swap_kind: those of ``any`` other crop, the
            ``neighbours`` alone, or those of ``controls``. swap_soften: width of the seam in voxels. swap_pool: crops
            of any training well that a step reads to lend theirs; 0: the batch lends among itself.
        regulariser: added to the loss: ``gradcamo``, ``energy``, ``rrr`` or ``none``. regulariser_weight: lambda.
            regulariser_target: adjusted score beyond which ``gradcamo`` asks for no more. regulariser_after: epochs
            before it sets in.
        precision: of the arithmetic; ``auto`` is 16 bits on a GPU, 32 elsewhere. Weights are kept in 32.
        devices: GPUs, or processes where there is none; -1 takes every GPU.
        seed: of weights, order and augmentation.

    Raises:
        GradcamoError: for a value that cannot be meant.
    """

    encoder: str = "efficientnet3d-small"
    weights: str | None = None
    layer: str | None = None
    objective: Objective = "treatment"
    positives: Positives = "crop"
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    patience: int = 0
    flip: float = 0.5
    rotate: float = 0.0
    shift_z: float = 0.0
    gain: float = 0.1
    offset: float = 0.05
    noise: float = 0.0
    swap: float = 0.5
    swap_kind: SwapKind = "any"
    swap_soften: int = 2
    swap_pool: int = 0
    regulariser: Regulariser = "none"
    regulariser_weight: float = 3.0
    regulariser_target: float = 0.9
    regulariser_after: int = 2
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    devices: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        chances = all(0 <= chance <= 1 for chance in (self.flip, self.rotate, self.shift_z, self.swap))
        counts = min(self.swap_soften, self.swap_pool, self.regulariser_after)
        strengths = min(self.gain, self.offset, self.noise, self.weight_decay, self.patience, self.seed) >= 0
        views = self.objective != "treatment"
        checks = (
            (self.objective in get_args(Objective), f"objective ({', '.join(get_args(Objective))})"),
            (
                self.positives in get_args(Positives) and (views or self.positives == "crop"),
                f"positives ({', '.join(get_args(Positives))}; they are of vicreg and simclr alone)",
            ),
            (
                not views or self.regulariser == "none",
                "regulariser (none for vicreg and simclr, which have no classes)",
            ),
            (
                not views or self.batch_size >= 2 * max(1, self.devices),
                "batch_size (at least 2 a device for vicreg and simclr)",
            ),
            (min(self.epochs, self.batch_size) >= 1 and self.learning_rate > 0, "epochs, batch_size, learning_rate"),
            (chances, "flip, rotate, shift_z, swap (chances, 0 to 1)"),
            (
                min(counts, self.regulariser_weight) >= 0,
                "swap_soften, swap_pool, regulariser_weight, _after (0 or more)",
            ),
            (self.swap_kind in get_args(SwapKind), f"swap_kind ({', '.join(get_args(SwapKind))})"),
            (self.regulariser in get_args(Regulariser), f"regulariser ({', '.join(get_args(Regulariser))})"),
            (0 < self.regulariser_target <= 1, "regulariser_target (above 0, up to 1)"),
            (strengths, "gain, offset, noise, weight_decay, patience, seed (0 or more)"),
            (self.precision in ("auto", *_LIGHTNINGS), f"precision (auto, {', '.join(_LIGHTNINGS)})"),
            (self.devices == -1 or 1 <= self.devices <= self.batch_size, "devices (-1, or 1 to batch_size)"),
        )
        for fine, what in checks:
            if not fine:
                raise GradcamoError("training cannot be run as configured", f"Mend one of {what}.")

    @property
    def cure(self) -> Cure:
        """What a bundle records of it."""
        weight = 0.0 if self.regulariser == "none" else float(self.regulariser_weight)
        return Cure(float(self.swap), self.swap_kind, self.regulariser, weight)

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
