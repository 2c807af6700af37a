"""Layout of ``GRADCAMO_HOME``, the folder of one installation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class _Subpath:
    """A path below the root of a ``Home``."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, home: Home, kind: type[Home] | None = None) -> Path:
        return home.root / self.name


@dataclass(frozen=True)
class Home:
    """Paths of one installation. Only ``create`` makes folders.

    Paths must be local: every store relies on atomic renames, which object stores lack.
    """

    root: Path

    inbox = _Subpath("inbox")
    plates = _Subpath("plates")
    masks = _Subpath("masks")
    crops = _Subpath("crops")
    lake = _Subpath("lake")
    mlflow = _Subpath("mlflow")
    reports = _Subpath("reports")
    exports = _Subpath("exports")
    fitted = _Subpath("fitted")
    unfinished = _Subpath("unfinished")
    training = _Subpath("training")
    dagster = _Subpath("dagster")
    database = _Subpath("qc.duckdb")
    split_file = _Subpath("data_split.csv")
    settings_file = _Subpath("gradcamo.toml")

    @classmethod
    def from_environment(cls) -> Home:
        """Use ``GRADCAMO_HOME``, or ``data/`` in the working directory."""
        return cls(Path(os.environ.get("GRADCAMO_HOME") or "data").absolute())

    def create(self) -> Home:
        """Create missing folders."""
        for folder in (
            self.inbox, self.plates, self.masks, self.crops, self.lake, self.mlflow, self.reports, self.dagster,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        return self
