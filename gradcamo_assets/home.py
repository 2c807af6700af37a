"""Layout of ``GRADCAMO_HOME``, the folder of one installation or its place in a bucket."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gradcamo_assets.buckets import mount
from gradcamo_assets.errors import StoreError
from gradcamo_assets.storage import address, is_in_bucket


class _Subpath:
    """A path below the root of a ``Home``.

    Args:
        scratch: whether it stays on this machine where the home is in a bucket.
    """

    def __init__(self, name: str, scratch: bool = False):
        self.name, self.scratch = name, scratch

    def __get__(self, home: Home, kind: type[Home] | None = None) -> Path:
        hidden = self.scratch and home.in_bucket
        return home.root / (f".{self.name}" if hidden else self.name)


@dataclass(frozen=True)
class Home:
    """Paths of one installation. Only ``create`` makes folders.

    Attributes:
        root: its folder. For a home in a bucket, a scratch folder whose paths stand for objects; see ``buckets``.
    """

    root: Path

    inbox = _Subpath("inbox")
    plates = _Subpath("plates")
    masks = _Subpath("masks")
    crops = _Subpath("crops")
    lake = _Subpath("lake")
    mlflow = _Subpath("mlflow", scratch=True)
    reports = _Subpath("reports")
    pictures = _Subpath("pictures")
    exports = _Subpath("exports")
    fitted = _Subpath("fitted")
    unfinished = _Subpath("unfinished")
    training = _Subpath("training", scratch=True)
    database = _Subpath("qc.duckdb")
    split_file = _Subpath("data_split.csv")
    settings_file = _Subpath("gradcamo.toml")

    @classmethod
    def at(cls, place: str) -> Home:
        """The home in a folder, or at the address of a bucket such as ``s3://lab/screens``.

        Raises:
            StoreError: if the address is not one, or cannot be opened.
        """
        return cls(mount(place) if "://" in place else Path(place).absolute())

    @classmethod
    def from_environment(cls) -> Home:
        """Use ``GRADCAMO_HOME``, or ``data/`` in the working directory."""
        return cls.at(os.environ.get("GRADCAMO_HOME") or "data")

    @property
    def in_bucket(self) -> bool:
        """Whether the home is in a bucket."""
        return is_in_bucket(self.root)

    @property
    def address(self) -> str:
        """The value of ``GRADCAMO_HOME`` for other processes and machines."""
        return address(self.root)

    @property
    def dagster(self) -> Path:
        """The folder of Dagster's settings, its ``DAGSTER_HOME``.

        Raises:
            StoreError: if the home is in a bucket and ``DAGSTER_HOME`` is not set.
        """
        if not self.in_bucket:
            return self.root / "dagster"
        if not (folder := os.environ.get("DAGSTER_HOME")):
            problem = "a home in a bucket does not hold Dagster's settings, and DAGSTER_HOME is not set"
            raise StoreError(problem, "Set it to a folder with dagster.yaml.", path=self.address)
        return Path(folder)

    def create(self) -> Home:
        """Create missing folders; a bucket has none."""
        if self.in_bucket:
            return self
        for folder in (
            self.inbox, self.plates, self.masks, self.crops, self.lake, self.mlflow, self.reports, self.dagster,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        return self
