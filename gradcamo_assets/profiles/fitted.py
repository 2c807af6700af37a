"""What was fitted once a model version and is kept: arrays and notes in a safetensors file, named by their digest.

Nothing in such a file is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradcamo_assets.errors import StoreError
from gradcamo_assets.storage import atomic_file


def fitted_digest(arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> str:
    """First 16 hex digits of the SHA-256 of all of it: equal digests, equal content."""
    found = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name}{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def save_fitted(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Write both with their digest, whole or not at all."""
    from safetensors.numpy import save_file

    content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_file(path) as temporary:
        save_file(content, temporary, {**notes, "digest": fitted_digest(content, notes)})


def load_fitted(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and notes that ``save_fitted`` wrote.

    Raises:
        StoreError: where the file cannot be read, or is not what its digest says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            notes = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
        if notes.pop("digest", None) != fitted_digest(arrays, notes):
            raise ValueError("its content is not what its digest says")
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"what was fitted cannot be read ({error})", "Delete the file; it is made anew.", path=path
        ) from error
    return arrays, notes
