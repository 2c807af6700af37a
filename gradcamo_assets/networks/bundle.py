"""A trained encoder as two files: ``model.safetensors`` and ``config.json``. No pickle, nothing executed on reading.

Safetensors: https://github.com/huggingface/safetensors. The configuration declares what the encoder was trained for, so
that a plate it does not fit is refused before it is scored.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from gradcamo_assets.errors import BundleError
from gradcamo_assets.storage import write_json

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_VOXEL_TOLERANCE = 0.25
_REMEDY = "Log the model again with the train_model job, or promote another version."


def _different(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return names


def _bounded(shape: list[int]) -> list[int]:
    if math.prod(shape) > _MOST_VOXELS:
        raise ValueError(f"a crop of {math.prod(shape)} voxels is beyond any encoder")
    return shape


# What a configuration may hold: a hostile one must not cost more memory than a large one.
_MOST_VOXELS = 1 << 26
_Text = Annotated[str, Field(min_length=1, max_length=500)]
_Classes = Annotated[list[_Text], Field(min_length=2, max_length=200_000), AfterValidator(_different)]
_Channels = Annotated[list[_Text], Field(min_length=1, max_length=100), AfterValidator(_different)]
_Length = Annotated[int, Field(ge=1, le=1 << 14)]
_Shape = Annotated[list[_Length], Field(min_length=3, max_length=3), AfterValidator(_bounded)]
_Micrometres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Cure:
    """What was done in training to make an encoder look at its cell, as ``training.settings`` describes it.

    With a regulariser, scores were trained for: they are no evidence by themselves.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    swap: float
    regulariser: _Text
    regulariser_weight: float


@dataclass(frozen=True)
class BundleConfig:
    """What an encoder is, what it eats and what it was trained on.

    Attributes:
        encoder: name for ``build_encoder``. layer: dotted name of the layer to explain.
        classes: treatment class of each logit. channels: stains, in input order.
        crop_shape: (z, y, x) in voxels. voxel_size: (z, y, x) in um.
        split: wells of each part, ``{"train": ["plate/A01", ...], "val": [...], "test": [...]}``.
        cure: what was done in training to make it look at its cell; None: not known.
        objective: what its weights were trained for: ``treatment``, or without classes ``vicreg`` or ``simclr``, where
            a logit is the similarity to a class's prototype; None: not known.
        sha256: digest of the weights file; filled in on saving.

    Types and bounds are checked where a configuration is saved or read.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    encoder: _Text
    layer: _Text
    classes: _Classes
    channels: _Channels
    crop_shape: _Shape
    voxel_size: Annotated[list[_Micrometres], Field(min_length=3, max_length=3)]
    split: dict[str, list[str]] = field(default_factory=dict)
    cure: Cure | None = None
    objective: _Text | None = None
    sha256: str = ""
    format: Literal[1] = 1

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


_PARSER = TypeAdapter(BundleConfig)


def save_bundle(folder: Path, model: nn.Module, config: BundleConfig) -> BundleConfig:
    """Write both files into ``folder`` and return the configuration with the weights' digest.

    Raises:
        BundleError: for a configuration that could not be read back.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / WEIGHTS))
    content = {**asdict(config), "sha256": _sha256(folder / WEIGHTS)}
    config = _parsed(json.dumps(content), folder / CONFIG)
    write_json(folder / CONFIG, content)
    return config


def read_config(folder: Path) -> BundleConfig:
    """The configuration alone.

    Raises:
        BundleError: if it is missing, is no JSON, lacks a field or has one too many, holds a value of the wrong type or
            out of bounds, names a class or channel twice, or is of another format.
    """
    path = folder / CONFIG
    try:
        return _parsed(path.read_bytes(), path)
    except OSError as error:
        raise BundleError(f"the model bundle cannot be read ({error})", _REMEDY, path=path) from error


def _parsed(text: str | bytes, path: Path) -> BundleConfig:
    try:
        return _PARSER.validate_json(text)
    except ValidationError as error:
        wrong = [": ".join([*map(str, part["loc"]), part["msg"]]) for part in error.errors()[:5]]
        raise BundleError(f"the model bundle cannot be read ({'; '.join(wrong)})", _REMEDY, path=path) from error


def read_verified_config(folder: Path) -> BundleConfig:
    """The configuration, if the weights beside it are those it was written for.

    Raises:
        BundleError: as ``read_config``, or if the weights are missing or others.
    """
    config, path = read_config(folder), folder / WEIGHTS
    try:
        if _sha256(path) != config.sha256:
            raise BundleError("the weights are not those the configuration was written for", _REMEDY, path=path)
    except OSError as error:
        raise BundleError(f"the weights cannot be loaded ({error})", _REMEDY, path=path) from error
    return config


def load_bundle(folder: Path) -> tuple[nn.Module, BundleConfig]:
    """The network in evaluation mode, and its configuration.

    Raises:
        BundleError: if a file is missing or damaged, or weights and configuration do not belong together.
    """
    config = read_verified_config(folder)
    return load_network(config, folder / WEIGHTS), config


def load_network(config: BundleConfig, weights: Path) -> nn.Module:
    """The encoder a configuration names, with weights of its own, in evaluation mode; tried on one empty crop.

    Raises:
        BundleError: if the weights are no safetensors or not the encoder's, or the encoder does not give one logit a
            class or has no such layer.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from gradcamo_assets.networks.encoders import build_encoder, is_2d

    try:
        model, _ = build_encoder(config.encoder, len(config.channels), len(config.classes))
        model.load_state_dict(load_file(str(weights)))
        model = model.eval().requires_grad_(False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"the weights cannot be loaded ({error})", _REMEDY, path=weights) from error
    except (TypeError, ValueError, AttributeError) as error:
        remedy = "The function takes the numbers of channels and classes and returns (network, name of the layer)."
        raise BundleError(f"encoder {config.encoder!r} builds no network ({error})", remedy) from error
    layer = dict(model.named_modules()).get(config.layer)
    if layer is None:
        raise BundleError(f"the encoder has no layer {config.layer!r}", "Name one of its modules.", path=weights)
    maps: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    crop = torch.zeros(1, len(config.channels), *config.crop_shape)
    crop = crop[:, :, 0] if is_2d(model) and config.crop_shape[0] == 1 else crop
    try:
        with torch.inference_mode():
            logits = model(crop)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BundleError(
            f"the encoder cannot take a crop of {len(config.channels)} x {config.crop_shape} ({error})", _REMEDY
        ) from error
    finally:
        handle.remove()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, len(config.classes)):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise BundleError(f"the encoder gives {got} for one crop, not {len(config.classes)} logits", _REMEDY)
    if not bool(logits.isfinite().all()):
        raise BundleError("the encoder's logits of an empty crop are no numbers", _REMEDY, path=weights)
    if not maps or not isinstance(maps[-1], torch.Tensor) or maps[-1].ndim != crop.ndim:
        raise BundleError(f"layer {config.layer!r} puts out no feature map", "Name a convolutional layer.")
    return model


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
