"""Weights of a network by name, for safetensors files, which cannot hold tensors that share memory.

A module or a weight that a network uses twice stands under two names. Files of this project hold both. Files of
``safetensors.torch.save_model`` hold one of them, and are read as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gradcamo_assets.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor, nn


def collect_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every weight and buffer in CPU memory by name; no two share memory."""
    import torch

    state = model.state_dict().items()
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state}


def read_weights(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, and add the names that it lacks because they share their tensor with another name.

    Raises:
        BundleError: if the file has different values for names that share their tensor in the network.
        OSError, SafetensorError: if it cannot be read.
    """
    from safetensors.torch import load_file

    loaded = load_file(str(path))
    for names in _find_shared(model):
        known = [name for name in names if name in loaded]
        for name in known[1:]:
            if not loaded[name].equal(loaded[known[0]]):
                problem = f"the encoder has one tensor for {known[0]} and {name}, but the weights have two"
                raise BundleError(problem, "Use weights of an encoder that shares this tensor.", path=path)
        if known:
            loaded |= {name: loaded[known[0]] for name in names if name not in loaded}
    return loaded


def _find_shared(model: nn.Module) -> Iterable[list[str]]:
    """Return groups of names that stand for one tensor."""
    groups: dict[tuple, list[str]] = {}
    for name, tensor in model.state_dict().items():
        groups.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    return (names for names in groups.values() if len(names) > 1)
