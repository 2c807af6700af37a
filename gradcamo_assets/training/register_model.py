"""Register an encoder that was trained elsewhere: code by import path, weights as safetensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from gradcamo_assets.networks.bundle import BundleConfig, load_network
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion


def register_weights(
    registry: ModelRegistry,
    encoder: str,
    weights: Path,
    *,
    classes: Sequence[str],
    channels: Sequence[str],
    crop_shape: Sequence[int],
    voxel_size: Sequence[float | None],
    layer: str | None = None,
    modules: Collection[str] = (),
) -> ModelVersion:
    """Build the network, load its weights, test it and register it as ``challenger``.

    Its training wells are unknown, so all its scores belong to the split ``unseen``.

    Args:
        encoder: a name for ``build_encoder``; its module is imported, so it must be one of ``modules``.
        weights: a safetensors file.
        classes: treatment class of each logit.
        channels: stains, in input order.
        crop_shape: (z, y, x) in voxels; a 2D network takes crops of one plane.
        voxel_size: (z, y, x) in micrometres, None where unknown.
        layer: dotted name of the layer to explain; by default the layer that the encoder's function returns.
        modules: see ``build_encoder``.

    Raises:
        BundleError: if network, weights, layer, classes and crops do not fit together.
    """
    if layer is None:
        _, layer = build_encoder(encoder, len(channels), len(classes), modules=modules)
    config = BundleConfig(
        encoder=encoder,
        layer=layer,
        classes=list(classes),
        channels=list(channels),
        crop_shape=[int(size) for size in crop_shape],
        voxel_size=[None if size is None else float(size) for size in voxel_size],
    )
    return registry.register(load_network(config, weights, modules), config, tags={"weights": weights.name})
