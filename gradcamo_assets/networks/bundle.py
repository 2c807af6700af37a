"""A trained encoder as two files: ``model.safetensors`` and ``config.json``. No pickle, nothing executed on reading.

Safetensors: https://github.com/huggingface/safetensors. The configuration declares what the encoder was trained for, so
that a plate it does not fit is refused before it is scored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcamo_assets.common.errors import BundleError
from gradcamo_assets.common.files import write_json

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_FORMAT = 1
_VOXEL_TOLERANCE = 0.25
_REMEDY = "Log the model again with the train_model job, or promote another version."


@dataclass(frozen=True)
class BundleConfig:
    """What an encoder is, what it eats and what it was trained on.

    Attributes:
        encoder: name for ``build_encoder``. layer: dotted name of the layer to explain.
        classes: treatment class of each logit. channels: stains, in input order.
        crop_shape: (z, y, x) in voxels. voxel_size: (z, y, x) in um.
        split: wells of each part, ``{"train": ["plate/A01", ...], "val": [...], "test": [...]}``.
        sha256: digest of the weights file; filled in on saving.
    """

    encoder: str
    layer: str
    classes: list[str]
    channels: list[str]
    crop_shape: list[int]
    voxel_size: list[float]
    split: dict[str, list[str]] = field(default_factory=dict)
    sha256: str = ""
    format: int = _FORMAT

    def misfit(self, channels: list[str], voxel_size: list[float]) -> str | None:
        """Why a plate with these channels and this voxel size (z, y, x; um) cannot be scored, or None if it can."""
        missing = [name for name in self.channels if name not in channels]
        if missing:
            return f"the plate lacks channel {', '.join(missing)} (it has {', '.join(channels)})"
        axes = zip("zyx", voxel_size, self.voxel_size, self.crop_shape, strict=True)
        for axis, ours, theirs, length in axes:
            # The step between slices of a single-slice crop means nothing.
            if length > 1 and abs(ours - theirs) > _VOXEL_TOLERANCE * theirs:
                return f"voxels are {ours:g} um in {axis}, the encoder was trained at {theirs:g} um"
        return None


def save_bundle(folder: Path, model: nn.Module, config: BundleConfig) -> BundleConfig:
    """Write both files into ``folder`` and return the configuration with the weights' digest."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / WEIGHTS))
    config = BundleConfig(**{**asdict(config), "sha256": _sha256(folder / WEIGHTS)})
    write_json(folder / CONFIG, asdict(config))
    return config


def read_config(folder: Path) -> BundleConfig:
    """The configuration alone.

    Raises:
        BundleError: if it is missing, is no JSON, lacks a field, or is of another format.
    """
    path = folder / CONFIG
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        config = BundleConfig(**content)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"the model bundle cannot be read ({error})", _REMEDY, path=path) from error
    if config.format != _FORMAT:
        raise BundleError(f"the model bundle is of format {config.format}, this is {_FORMAT}", _REMEDY, path=path)
    return config


def load_bundle(folder: Path) -> tuple[nn.Module, BundleConfig]:
    """The network in evaluation mode, and its configuration.

    Raises:
        BundleError: if a file is missing or damaged, or weights and configuration do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from gradcamo_assets.networks.registry import build_encoder

    config = read_config(folder)
    path = folder / WEIGHTS
    try:
        if _sha256(path) != config.sha256:
            raise BundleError("the weights are not those the configuration was written for", _REMEDY, path=path)
        state = load_file(str(path))
        model, _ = build_encoder(config.encoder, len(config.channels), len(config.classes), layer=config.layer)
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"the weights cannot be loaded ({error})", _REMEDY, path=path) from error
    return model.eval().requires_grad_(False), config


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
