"""Speed up inference: fold BatchNorm into the preceding convolution, and use bfloat16 on devices that support it.

Foldable layers are found by running the network once, so any architecture works. Both changes are applied only if the
outputs agree.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gradcamo_assets.explain.targets import extract_logits

FOLDING_TOLERANCE = 1e-3
"""Largest difference between a folded network's logits and the original ones, relative to the largest logit."""

BFLOAT16_TOLERANCE = 0.05
"""The same for a network in bfloat16, which has three digits."""


def fold_batchnorm(model: nn.Module, images: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """Return a copy of the network with each BatchNorm folded into the convolution directly before it.

    Args:
        model: network in eval mode; it is not changed.
        images: (B, C, \\*axes), a sample of the expected size and type.
        keep: dotted names of layers whose output must not change, such as the explained layer.

    Returns:
        The folded copy, or a plain copy if nothing can be folded or the outputs would differ.
    """
    pairs = _find_foldable_pairs(model, images)
    folded = copy.deepcopy(model)
    for conv_name, norm_name in pairs.items():
        if conv_name in keep:
            continue
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        assert isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm)
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias, conv.transposed
        )
        folded.set_submodule(norm_name, nn.Identity().eval())
    with torch.inference_mode():
        before, after = extract_logits(model(images)), extract_logits(folded(images))
    return folded if logits_agree(before, after, FOLDING_TOLERANCE) else copy.deepcopy(model)


def logits_agree(expected: Tensor, actual: Tensor, tolerance: float) -> bool:
    """Return whether the largest difference is within the tolerance, relative to the largest expected logit."""
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-6))


def _find_foldable_pairs(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Find convolutions whose output enters a BatchNorm directly and that both run once: BatchNorm by convolution."""
    # A module under two names would have to be replaced, or kept, under both.
    names = {module: name for name, module in model.named_modules()}
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    conv_outputs: dict[int, tuple[str, Tensor]] = {}
    runs: Counter[str] = Counter()
    pairs: dict[str, str] = {}

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        name = names[module]
        runs[name] += 1
        if isinstance(module, _ConvNd):
            # Keeping the output prevents the reuse of its id.
            conv_outputs[id(output)] = (name, output)
        elif inputs and id(inputs[0]) in conv_outputs:
            conv_name, _ = conv_outputs[id(inputs[0])]
            pairs[conv_name] = name

    handles = [
        module.register_forward_hook(record)
        for module in model.modules()
        if isinstance(module, _ConvNd | _BatchNorm) and uses[module] == 1
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {conv: norm for conv, norm in pairs.items() if runs[conv] == runs[norm] == 1}


def convert_to_bfloat16_if_native(model: nn.Module, images: Tensor) -> nn.Module | None:
    """Return a bfloat16 copy of the network if the device supports bfloat16 natively and the logits agree, else None.

    Agreement is measured because one convolution library returned wrong results silently.
    """
    device = images.device
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return convert_to_bfloat16(model, images) if is_native else None


def convert_to_bfloat16(model: nn.Module, images: Tensor) -> nn.Module | None:
    """Return a bfloat16 copy of the network, or None if its logits differ."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.inference_mode():
        exact, coarse = extract_logits(model(images)), extract_logits(half(images.to(torch.bfloat16))).float()
    return half if logits_agree(exact, coarse, BFLOAT16_TOLERANCE) else None
