"""Where things live: one folder, ``GRADCAMO_HOME``, and the names of everything below it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class _Below:
    """A path below the root of a ``Home``."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, home: Home, kind: type[Home] | None = None) -> Path:
        return home.root / self.name


@dataclass(frozen=True)
class Home:
    """The folders of one installation. Making a ``Home`` creates nothing; ``create`` does.

    Paths are local: every store relies on a rename that either happens whole or not at all, which buckets lack.
    """

    root: Path

    inbox = _Below("inbox")
    plates = _Below("plates")
    masks = _Below("masks")
    crops = _Below("crops")
    lake = _Below("lake")
    mlflow = _Below("mlflow")
    reports = _Below("reports")
    exports = _Below("exports")
    fitted = _Below("fitted")
    unfinished = _Below("unfinished")
    dagster = _Below("dagster")
    database = _Below("qc.duckdb")
    split_file = _Below("data_split.csv")
    settings_file = _Below("gradcamo.toml")

    @classmethod
    def from_environment(cls) -> Home:
        """``GRADCAMO_HOME``, or ``data/`` in the working folder."""
        return cls(Path(os.environ.get("GRADCAMO_HOME") or "data").absolute())

    def create(self) -> Home:
        """Make the folders that are missing."""
        for folder in (
            self.inbox, self.plates, self.masks, self.crops, self.lake, self.mlflow, self.reports, self.dagster,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        return self
