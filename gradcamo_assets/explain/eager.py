"""Run networks without their compiled code."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def run_eagerly(model: nn.Module, images: Tensor) -> Any:
    """Run a model and return its output; code of ``torch.compile`` is not used, since it ignores new hooks."""
    # Nothing is compiled before torch._dynamo is imported, and importing it takes seconds.
    is_imported = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if is_imported else nullcontext():
        return model(images)
