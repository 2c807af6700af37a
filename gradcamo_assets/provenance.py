"""Record what a stored result was computed from.

The digest of the record is the result's version and the name of its folder, so a rerun skips existing results.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradcamo_assets.storage import read_json, write_json

_FILE_NAME = "provenance.json"


def digest(content: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``content`` as sorted JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Provenance:
    """Provenance of one stored folder. Equal provenance means equal results.

    Attributes:
        inputs: digest of the inputs.
        parameters: parameters of the computation.
        code: version of the code, increased by hand when a change alters results.
    """

    inputs: str
    parameters: dict[str, Any]
    code: str

    @property
    def version(self) -> str:
        """Digest of the record, stored in rows as ``mask_version`` or ``crop_version``."""
        return digest(asdict(self))

    def write(self, folder: Path) -> None:
        """Write the record into ``folder``."""
        write_json(folder / _FILE_NAME, {**asdict(self), "version": self.version})


def read_provenance(folder: Path) -> Provenance | None:
    """Return the record in ``folder``, or None without a readable record."""
    try:
        record = read_json(folder / _FILE_NAME)
        return Provenance(record["inputs"], record["parameters"], record["code"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stored_version(folder: Path) -> str | None:
    """Return the version recorded in ``folder``, or None without a readable record."""
    try:
        return read_json(folder / _FILE_NAME).get("version")
    except (OSError, ValueError, AttributeError):
        return None
