"""What is explained where there are no classes: similarity of an embedding to a reference.

For networks whose output is the embedding, (B, K). A reference is, say, a treatment's centroid less the controls'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradcamo_assets.common.errors import ExplainError


def similarity_to(reference: Any, kind: str = "cosine") -> Callable[[Tensor], Tensor]:
    """A target for ``gradcamo``: similarity of each embedding to a reference, (B, K) to (B,).

    Args:
        reference: (K,). kind: ``cosine`` or ``dot``.

    Raises:
        ExplainError: for another kind.
    """
    if kind not in ("cosine", "dot"):
        raise ExplainError(f"there is no similarity {kind!r}", "Choose cosine or dot.")

    def target(output: Tensor) -> Tensor:
        direction = torch.as_tensor(reference).to(output)
        if kind == "cosine":
            return torch.nn.functional.cosine_similarity(output, direction[None])
        return output @ direction

    return target
