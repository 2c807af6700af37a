"""Check that a network can be explained: its layer, its output, and that each crop's output is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradcamo_assets.errors import BundleError, ExplainError

if TYPE_CHECKING:
    from torch import nn


def check_network(model: nn.Module, layer: str, channels: int, classes: int, crop_shape: Sequence[int]) -> None:
    """Run a network in evaluation mode on an empty crop, and on noise alone and in a batch.

    Args:
        layer: dotted name of the layer to explain.
        crop_shape: (z, y, x); a 2D network gets planes if z is 1.

    Raises:
        BundleError: if the network is compiled, lacks the layer, fails on the crops, does not return one finite logit
            per class, or a crop's output depends on its batch or on chance.
    """
    import torch

    from gradcamo_assets.explain.batch_independence import check_batch_independence
    from gradcamo_assets.explain.maps import capture_activations, find_layer
    from gradcamo_assets.networks.encoders import is_2d

    remedy = "Correct the function that builds the encoder, or the weights."
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise BundleError("the encoder is compiled, and compiled code ignores hooks", "Build it without torch.compile.")
    size = (channels, *(crop_shape[1:] if is_2d(model) and crop_shape[0] == 1 else crop_shape))
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    try:
        layers = dict([find_layer(model, layer)])
        with torch.no_grad():
            logits, _ = capture_activations(model, torch.zeros(1, *size), layers, graph=False)
        if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise BundleError(f"the encoder returns {found} for one crop, not {classes} logits", remedy)
        if not bool(logits.isfinite().all()):
            raise BundleError("the encoder's logits of an empty crop are not finite", remedy)
        check_batch_independence(model, noise)
    except ExplainError as error:
        raise error.at(BundleError) from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        problem = f"the encoder fails on a crop of {channels} x {list(crop_shape)} ({error})"
        raise BundleError(problem, remedy) from error
