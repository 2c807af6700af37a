"""Save and load trained encoders as ``model.safetensors`` and ``config.json``, without pickle or code execution.

Safetensors: https://github.com/huggingface/safetensors. The configuration declares the channels and voxel size that the
encoder was trained on, so that plates that do not fit are refused before scoring.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from gradcamo_assets.errors import BundleError
from gradcamo_assets.storage import write_json

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_VOXEL_TOLERANCE = 0.25
_REMEDY = "Log the model again with the train_model job, or promote another version."


def _check_unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        duplicates = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"duplicate names {', '.join(duplicates)}")
    return names


def _check_size(shape: list[int]) -> list[int]:
    if math.prod(shape) > _MAX_VOXELS:
        raise ValueError(f"a crop must have at most {_MAX_VOXELS} voxels, got {math.prod(shape)}")
    return shape


# Bounds of a configuration, so that a hostile one cannot exhaust the memory.
_MAX_VOXELS = 1 << 26
_Text = Annotated[str, Field(min_length=1, max_length=500)]
_Classes = Annotated[list[_Text], Field(min_length=2, max_length=200_000), AfterValidator(_check_unique)]
_Channels = Annotated[list[_Text], Field(min_length=1, max_length=100), AfterValidator(_check_unique)]
_Length = Annotated[int, Field(ge=1, le=1 << 14)]
_Shape = Annotated[list[_Length], Field(min_length=3, max_length=3), AfterValidator(_check_size)]
_Micrometres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class ShortcutMitigation:
    """Measures taken in training to make an encoder look at its cell; ``training.settings`` describes them.

    With a regulariser, training optimised the score, so a high score alone is no evidence.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    swap: float
    regulariser: _Text
    regulariser_weight: float


@dataclass(frozen=True)
class BundleConfig:
    """Architecture, input and training of an encoder. Saving and reading check types and bounds.

    Attributes:
        encoder: name for ``build_encoder``.
        layer: dotted name of the layer to explain.
        classes: treatment class of each logit.
        channels: stains in input order.
        crop_shape: (z, y, x) in voxels.
        voxel_size: (z, y, x) in um, None where the training plates did not state it.
        split: wells of each part, ``{"train": ["plate/A01", ...], "val": [...], "test": [...]}``.
        cure: measures against shortcuts in training; None if unknown. Stored bundles use this name.
        objective: training objective: ``treatment``, or ``vicreg`` or ``simclr`` without classes. In the last two cases
            a logit is the similarity to a class's prototype. None if unknown.
        sha256: digest of the weights file, set on saving.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    encoder: _Text
    layer: _Text
    classes: _Classes
    channels: _Channels
    crop_shape: _Shape
    voxel_size: Annotated[list[_Micrometres | None], Field(min_length=3, max_length=3)]
    split: dict[str, list[str]] = field(default_factory=dict)
    cure: ShortcutMitigation | None = None
    objective: _Text | None = None
    sha256: str = ""
    format: Literal[1] = 1

    def find_mismatch(self, channels: list[str], voxel_size: list[float | None]) -> str | None:
        """Return the reason why a plate with these channels and voxel size (z, y, x; um) does not fit, or None.

        A size that the encoder does not state fits any. A size that only the plate does not state fits none.
        """
        missing = [name for name in self.channels if name not in channels]
        if missing:
            return f"the plate lacks channel {', '.join(missing)}; it has {', '.join(channels)}"
        axes = zip("zyx", voxel_size, self.voxel_size, self.crop_shape, strict=True)
        for axis, actual, expected, length in axes:
            # Crops of a single slice have no distance between slices.
            if length == 1 or expected is None:
                continue
            if actual is None:
                return (
                    f"the plate does not state its voxel size in {axis}, the encoder was trained at {expected:g} um; "
                    "give voxel_size = [z, y, x] in the .toml file beside the plate"
                )
            if abs(actual - expected) > _VOXEL_TOLERANCE * expected:
                return f"voxels are {actual:g} um in {axis}, the encoder was trained at {expected:g} um"
        return None


_PARSER = TypeAdapter(BundleConfig)


def save_bundle(folder: Path, model: nn.Module, config: BundleConfig) -> BundleConfig:
    """Write both files into ``folder`` and return the configuration with the weights' digest.

    Raises:
        BundleError: if the configuration is invalid.
    """
    from safetensors.torch import save_file

    from gradcamo_assets.networks.weights import collect_weights

    folder.mkdir(parents=True, exist_ok=True)
    save_file(collect_weights(model), str(folder / WEIGHTS))
    config = check_config(replace(config, sha256=_sha256(folder / WEIGHTS)), folder / CONFIG)
    write_json(folder / CONFIG, asdict(config))
    return config


def check_config(config: BundleConfig, path: Path | None = None) -> BundleConfig:
    """Return the configuration if its types and values are valid.

    Raises:
        BundleError: listing what is not, with the ``path``.
    """
    return _parse_config(json.dumps(asdict(config)), path)


def read_config(folder: Path) -> BundleConfig:
    """Read the configuration without the weights.

    Raises:
        BundleError: if the file is missing or is not JSON, or the configuration lacks a field, has an unknown one,
            contains a value of the wrong type or out of bounds, repeats a class or channel, or has another format.
    """
    path = folder / CONFIG
    try:
        return _parse_config(path.read_bytes(), path)
    except OSError as error:
        raise BundleError(f"the model bundle cannot be read ({error})", _REMEDY, path=path) from error


def _parse_config(text: str | bytes, path: Path | None) -> BundleConfig:
    try:
        return _PARSER.validate_json(text)
    except ValidationError as error:
        problems = [": ".join([*map(str, part["loc"]), part["msg"]]) for part in error.errors()[:5]]
        raise BundleError(f"the model bundle cannot be read ({'; '.join(problems)})", _REMEDY, path=path) from error


def read_verified_config(folder: Path) -> BundleConfig:
    """Read the configuration and verify the digest of the weights.

    Raises:
        BundleError: as ``read_config``, or if the weights are missing or do not match the digest.
    """
    config, path = read_config(folder), folder / WEIGHTS
    try:
        if _sha256(path) != config.sha256:
            raise BundleError("the weights do not match the digest in the configuration", _REMEDY, path=path)
    except OSError as error:
        raise BundleError(f"the weights cannot be loaded ({error})", _REMEDY, path=path) from error
    return config


def load_bundle(folder: Path, modules: Collection[str] = ()) -> tuple[nn.Module, BundleConfig]:
    """Load the network in evaluation mode, with its configuration.

    Args:
        modules: see ``build_encoder``.

    Raises:
        BundleError: if a file is missing or damaged, or weights and configuration do not match; or as ``load_network``.
    """
    config = read_verified_config(folder)
    return load_network(config, folder / WEIGHTS, modules), config


def load_network(config: BundleConfig, weights: Path, modules: Collection[str] = ()) -> nn.Module:
    """Build the configured encoder, load its weights, and test it. It is in evaluation mode.

    Args:
        modules: see ``build_encoder``.

    Raises:
        BundleError: if the encoder's module is not listed, the weights are not a safetensors file or do not fit the
            encoder, or as ``check_network``.
    """
    from safetensors import SafetensorError

    from gradcamo_assets.networks.checks import check_network
    from gradcamo_assets.networks.encoders import build_encoder
    from gradcamo_assets.networks.weights import read_weights

    try:
        model, _ = build_encoder(config.encoder, len(config.channels), len(config.classes), modules=modules)
        model.load_state_dict(read_weights(model, weights))
        model = model.eval().requires_grad_(False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"the weights cannot be loaded ({error})", _REMEDY, path=weights) from error
    except (TypeError, ValueError, AttributeError) as error:
        remedy = "The function must take the numbers of channels and classes and return (network, name of the layer)."
        raise BundleError(f"encoder {config.encoder!r} builds no network ({error})", remedy) from error
    try:
        check_network(model, config.layer, len(config.channels), len(config.classes), config.crop_shape)
    except BundleError as error:
        raise error.at(path=weights) from error
    return model


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
