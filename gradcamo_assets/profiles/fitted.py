"""Save and load parameters that are fitted once per model version: arrays and notes in a safetensors file.

Reading such a file executes no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradcamo_assets.errors import StoreError
from gradcamo_assets.local_copies import fetch_file
from gradcamo_assets.storage import atomic_file


def fitted_digest(arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> str:
    """Return the first 16 hex digits of the SHA-256 of arrays and notes."""
    content = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        content.update(f"{name}{array.dtype.str}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def save_fitted(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Write arrays and notes with their digest, atomically."""
    from safetensors.numpy import save_file

    content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_file(path) as temporary:
        save_file(content, temporary, {**notes, "digest": fitted_digest(content, notes)})


def load_fitted(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the arrays and notes that ``save_fitted`` wrote.

    Raises:
        StoreError: if the file cannot be read or its content does not match its digest.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(fetch_file(path), "np") as file:
            notes = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, file is not a dict
        if notes.pop("digest", None) != fitted_digest(arrays, notes):
            raise ValueError("its content does not match its digest")
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"the fitted parameters cannot be read ({error})",
            "Delete the file; they are then fitted again.",
            path=path,
        ) from error
    return arrays, notes
