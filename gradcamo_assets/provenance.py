"""What a stored result was made from: its version, which names its folder, so that a rerun skips what is there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradcamo_assets.storage import read_json, write_json

_FILE = "provenance.json"


def digest(content: Any) -> str:
    """First 16 hex digits of the SHA-256 of ``content`` as sorted JSON: a version that needs no counter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Provenance:
    """Input digest, parameters and code version of one stored folder. Equal provenance means an equal result.

    ``code`` is bumped by hand in the module that makes the result, when its output changes.
    """

    inputs: str
    parameters: dict[str, Any]
    code: str

    @property
    def version(self) -> str:
        """The digest of all three; it stands in the rows as ``mask_version`` or ``crop_version``."""
        return digest(asdict(self))

    def write(self, folder: Path) -> None:
        """Write the record into ``folder``."""
        write_json(folder / _FILE, {**asdict(self), "version": self.version})


def stored_version(folder: Path) -> str | None:
    """The version recorded in ``folder``, or None where there is no readable record."""
    try:
        return read_json(folder / _FILE).get("version")
    except (OSError, ValueError, AttributeError):
        return None
