"""The same function, faster: BatchNorm folded into the convolution before it, and bfloat16 where the machine has it.

What can be folded is found by running the network once, not by its structure, so it works for any network. Either is
believed only where the outputs agree.
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

from gradcamo_assets.explain.maps import extract_logits

TOLERANCE = 1e-3
"""How far a folded network's logits may lie from the network's own, relative to the largest."""

HALF_TOLERANCE = 0.05
"""The same for a network in bfloat16, which has three digits."""


def fold_batchnorm(model: nn.Module, images: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """A copy of the network in which every BatchNorm that directly follows a convolution is part of it.

    Args:
        model: in eval mode; stays as it is. images: (B, C, \\*axes) of the size and kind it will be run on.
        keep: dotted names of layers whose own output must not change (those to be explained).

    Returns:
        The folded copy; or an unfolded one where nothing can be folded or the outputs would differ.
    """
    pairs = _pairs(model, images)
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
    agree = (after - before).abs().max() <= TOLERANCE * before.abs().max().clamp_min(1e-6)
    return folded if bool(agree) else copy.deepcopy(model)


def _pairs(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Convolutions whose output goes straight into a BatchNorm, each run once, by name."""
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, tuple[str, Tensor]] = {}
    runs: Counter[str] = Counter()
    found: dict[str, str] = {}

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        name = names[module]
        runs[name] += 1
        if isinstance(module, _ConvNd):
            made[id(output)] = (name, output)  # Held, so that its id is not given to another.
        elif inputs and id(inputs[0]) in made:
            found[made[id(inputs[0])][0]] = name

    handles = [
        module.register_forward_hook(see) for module in model.modules() if isinstance(module, _ConvNd | _BatchNorm)
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {conv: norm for conv, norm in found.items() if runs[conv] == runs[norm] == 1}


def convert_to_bfloat16_if_native(model: nn.Module, images: Tensor) -> nn.Module | None:
    """The network in bfloat16 where its device computes in it and the logits agree; else None.

    Silent wrong results of one convolution library are why agreement is asked for, not trusted.
    """
    device = images.device
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return convert_to_bfloat16(model, images) if able else None


def convert_to_bfloat16(model: nn.Module, images: Tensor) -> nn.Module | None:
    """The network in bfloat16, whether or not the device is fast at it; None where its logits lie elsewhere."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.inference_mode():
        exact, coarse = extract_logits(model(images)), extract_logits(half(images.to(torch.bfloat16))).float()
    agree = bool((coarse - exact).abs().max() <= HALF_TOLERANCE * exact.abs().max().clamp_min(1e-6))
    return half if agree else None
