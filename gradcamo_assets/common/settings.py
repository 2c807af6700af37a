"""Where things live: one folder, ``GRADCAMO_HOME``, the names of everything below it, and the settings file in it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from gradcamo_assets.common.errors import GradcamoError

T = TypeVar("T")


@dataclass(frozen=True)
class Home:
    """The folders of one installation. Making a ``Home`` creates nothing; ``create`` does.

    Paths are local: every store relies on a rename that either happens whole or not at all, which buckets lack.
    """

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """``GRADCAMO_HOME``, or ``data/`` in the working folder."""
        return cls(Path(os.environ.get("GRADCAMO_HOME") or "data").absolute())

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def plates(self) -> Path:
        return self.root / "plates"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    @property
    def crops(self) -> Path:
        return self.root / "crops"

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def fitted(self) -> Path:
        return self.root / "fitted"

    @property
    def dagster(self) -> Path:
        return self.root / "dagster"

    @property
    def database(self) -> Path:
        return self.root / "qc.duckdb"

    @property
    def split_file(self) -> Path:
        return self.root / "data_split.csv"

    @property
    def settings_file(self) -> Path:
        return self.root / "gradcamo.toml"

    def settings(self, section: str, kind: type[T], **overrides: Any) -> T:
        """One section of ``gradcamo.toml`` as a ``kind`` (a dataclass); what the file leaves out keeps its default.

        Args:
            overrides: values that win over the file's; None means not given.

        Raises:
            GradcamoError: if the file is no TOML, or the section holds a key that ``kind`` does not know.
        """
        try:
            text = self.settings_file.read_text() if self.settings_file.exists() else ""
            values = dict(tomllib.loads(text).get(section, {}))
        except (OSError, tomllib.TOMLDecodeError, ValueError) as error:
            raise GradcamoError(
                f"the settings cannot be read ({error})", "Mend the file.", path=self.settings_file
            ) from error
        known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise GradcamoError(
                f"[{section}] does not know {', '.join(unknown)}",
                f"It knows {', '.join(sorted(known))}.",
                path=self.settings_file,
            )
        values |= {name: value for name, value in overrides.items() if value is not None}
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def create(self) -> Home:
        """Make the folders that are missing."""
        for folder in (
            self.inbox, self.plates, self.masks, self.crops, self.lake, self.mlflow, self.reports, self.dagster,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        return self
