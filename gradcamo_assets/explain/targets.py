"""Read a network's decision: its logits, the predicted class, and the scalar to explain.

A single logit z decides between two classes by its sign: class 1 has the logit z, and class 0 has the logit -z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gradcamo_assets.errors import ExplainError

Target: TypeAlias = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None


def extract_logits(output: Any) -> Tensor:
    """Extract the logits from a model's output: a tensor, a tuple whose first item they are, or ``output.logits``.

    One logit per sample without an axis of classes, (B,), becomes (B, 1).

    Raises:
        ExplainError: if the output contains no logits.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        remedy = "Return logits, a tuple that begins with them or a mapping with the key 'logits'; or pass a callable."
        raise ExplainError(f"the model returns {type(output).__name__} instead of logits", remedy)
    return output[:, None] if output.ndim == 1 else output


def class_logits(logits: Tensor) -> Tensor:
    """Return the logit of every class, (B, classes); for a single logit z, (B, 1), the two columns -z and z."""
    return torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits


def class_probabilities(logits: Tensor) -> Tensor:
    """Return the probability of every class, (B, classes), in float32 or better: softmax, or sigmoid of one logit."""
    values = class_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    return values.sigmoid() if logits.shape[1] == 1 else values.softmax(1)


def resolve_classes(target: Any, logits: Tensor) -> Tensor:
    """Return the explained class of each sample, (B,) int64.

    Args:
        target: None (predicted class), one class for all samples, or one class per sample.

    Raises:
        ExplainError: if the model lacks a class, or the number of classes does not match the batch.
    """
    if logits.ndim != 2:
        problem = f"the model's output has shape {tuple(logits.shape)}, not (B, classes)"
        raise ExplainError(problem, "Pass a callable target that returns one scalar per sample.")
    logits = class_logits(logits)
    if target is None:
        return logits.argmax(1)
    chosen = torch.as_tensor(target, device=logits.device)
    if chosen.is_floating_point() or chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != len(logits)):
        problem = f"target has shape {tuple(chosen.shape)} and type {chosen.dtype} for {len(logits)} samples"
        raise ExplainError(
            problem, "Pass None, one integer class for all, one integer class per sample, or a callable."
        )
    if bool(((chosen < 0) | (chosen >= logits.shape[1])).any()):
        problem = f"target contains a class outside 0 to {logits.shape[1] - 1}"
        raise ExplainError(problem, "Pass class indices of the model's head.")
    return chosen.long().expand(len(logits))


def resolve_target(target: Any, output: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Select the scalars to explain from a model's output.

    Args:
        target: as in ``gradcamo``.

    Returns:
        Scalars (B,), the logit of the target class or the callable's result; logits (B, classes), as the model returns
        them; and classes (B,). For a callable the classes are None, and the logits are (B, 0) if the output contains
        none.

    Raises:
        ExplainError: if the target is unusable, or a callable does not return one value per sample.
    """
    if not callable(target):
        logits = extract_logits(output)
        classes = resolve_classes(target, logits)
        return class_logits(logits).gather(1, classes[:, None])[:, 0], logits, classes
    scalars = target(output)
    if not isinstance(scalars, Tensor) or scalars.ndim != 1:
        found = tuple(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise ExplainError(f"the target callable returned {found}", "Return one scalar per sample, a tensor (B,).")
    try:
        return scalars, extract_logits(output), None
    except ExplainError:
        return scalars, scalars.detach()[:, None][:, :0], None


def similarity_to(reference: Any) -> Callable[[Tensor], Tensor]:
    """Make a target for networks without classes: the cosine similarity of their output (B, K) to a reference (K,).

    The network's output is the embedding. A typical reference is a treatment's centroid minus the controls' centroid.
    """

    def target(output: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(output, torch.as_tensor(reference).to(output)[None])

    return target
