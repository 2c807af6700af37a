"""Refuse networks whose output for a cell depends on the other cells of its batch, or on chance."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain.targets import extract_logits

_TOLERANCE, _HALF_PRECISION_TOLERANCE = 1e-3, 5e-2
"""Largest allowed difference between two runs, relative to the largest value."""

_SAMPLE_SIZE = 4096
"""Number of values that are compared per output; all outputs together may need much memory."""


def check_evaluation_mode(model: nn.Module) -> None:
    """Check that no module is in training mode or normalises with the statistics of the batch. No forward pass runs.

    Raises:
        ExplainError: naming the first such module.
    """
    for name, module in model.named_modules():
        has_statistics = not isinstance(module, _BatchNorm) or module.running_mean is not None
        if has_statistics and not module.training:
            continue
        named = f"{name or 'the network'} ({type(module).__name__})"
        if module.training:
            remedy = "Call model.eval() first: with dropout and batch statistics, scores depend on chance and batch."
            raise ExplainError(f"{named} is in training mode", remedy)
        remedy = "Use track_running_stats=True and train the network, or use GroupNorm or InstanceNorm."
        raise ExplainError(f"{named} has no running statistics, so a cell's score depends on its batch", remedy)


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Check that two runs on the same images gave the same logits.

    Raises:
        ExplainError: if they differ.
    """
    if not _is_equal(first, second):
        remedy = "Remove what depends on chance in evaluation mode, such as functional dropout that is always on."
        raise ExplainError("two runs of the network on the same images give different logits", remedy)


def check_batch_independence(model: nn.Module, crop: Tensor) -> None:
    """Check that a crop alone gives the same as in a batch, in every module: three crops are run.

    This also finds what modules do not show, such as functional dropout.

    Args:
        crop: (1, C, *crop), a typical one.

    Raises:
        ExplainError: naming the first module whose output changes; or as ``check_evaluation_mode`` does.
    """
    check_evaluation_mode(model)
    alone = _sample_outputs(model, crop)
    in_batch = _sample_outputs(model, torch.cat([crop, 1 - 3 * crop.flip(-1)]))
    for (name, one), (_, two) in zip(alone, in_batch, strict=False):
        # Modules that do not put the batch first cannot be compared; those after them can.
        if one.shape == two.shape and not _is_equal(one, two):
            raise ExplainError(
                f"a cell's output depends on the other cells of its batch, or on chance; it changes first in {name}",
                "Remove what reads the batch there or right before, such as functional dropout that is always on.",
            )


def _sample_outputs(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """Run a model; return values of the first image from every output of its innermost modules, and its logits."""
    outputs: list[tuple[str, Tensor]] = []

    def record(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim:
            values = output[:1].flatten()
            outputs.append((name, values[:: values.numel() // _SAMPLE_SIZE + 1].clone()))

    names = {module: name for name, module in model.named_modules() if not any(module.children())}
    with ExitStack() as hooks, torch.no_grad():
        for module, name in names.items():
            named = f"{name} ({type(module).__name__})"
            hooks.enter_context(
                module.register_forward_hook(lambda _module, _inputs, output, named=named: record(named, output))
            )
        returned = model(images)
    record(f"the forward function of {type(model).__name__}", extract_logits(returned))
    return outputs


def _is_equal(one: Tensor, two: Tensor) -> bool:
    tolerance = _HALF_PRECISION_TOLERANCE if one.dtype in (torch.float16, torch.bfloat16) else _TOLERANCE
    # A value that is not finite is not comparable; whoever needs finite values refuses it with its own reason.
    one, two = (values.detach().float().nan_to_num(posinf=0, neginf=0) for values in (one, two))
    return not len(one) or bool((one - two).abs().max() <= tolerance * one.abs().max().clamp_min(1e-6))
