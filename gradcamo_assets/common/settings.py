"""Where things live: one folder, ``GRADCAMO_HOME``, the names of everything below it, and the settings file in it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from gradcamo_assets.common.errors import GradcamoError

T = TypeVar("T")


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
        except (OSError, ValueError) as error:
            problem = f"the settings cannot be read ({error})"
            raise GradcamoError(problem, "Mend the file.", path=self.settings_file) from error
        known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            problem, remedy = f"[{section}] does not know {', '.join(unknown)}", f"It knows {', '.join(sorted(known))}."
            raise GradcamoError(problem, remedy, path=self.settings_file)
        values |= {name: value for name, value in overrides.items() if value is not None}
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def create(self) -> Home:
        """Make the folders that are missing."""
        for folder in (
            self.inbox, self.plates, self.masks, self.crops, self.lake, self.mlflow, self.reports, self.dagster,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        return self
