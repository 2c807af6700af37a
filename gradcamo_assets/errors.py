"""The errors users meet: each names the place, what was wrong and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

E = TypeVar("E", bound="GradcamoError")


class GradcamoError(Exception):
    """A failure with a place and a remedy.

    Args:
        problem: what was wrong, one sentence without a full stop.
        remedy: what to do about it, one sentence.
        plate, well, site, path: where; leave out what is not known.
    """

    def __init__(
        self, problem: str, remedy: str, *, plate: str | None = None, well: str | None = None,
        site: int | str | None = None, path: Path | str | None = None,
    ):  # fmt: skip
        self.problem, self.remedy = problem, remedy
        self.plate, self.well, self.site, self.path = plate, well, site, path
        place = {"plate": plate, "well": well, "site": site, "file": path}
        told = ", ".join(f"{name} {value}" for name, value in place.items() if value is not None)
        super().__init__(f"{told}: {problem}. {remedy}" if told else f"{problem}. {remedy}")

    def at(self, kind: type[E] | None = None, **place: Any) -> E:
        """The same failure with more of its place, as another ``kind`` of error where one is given."""
        known = {"plate": self.plate, "well": self.well, "site": self.site, "path": self.path}
        return (kind or type(self))(self.problem, self.remedy, **known | place)  # type: ignore[return-value]


class PlateError(GradcamoError):
    """A plate, or one of its fields, that cannot be read."""


class PlateMapError(GradcamoError):
    """A plate map or label table that cannot be understood."""


class SegmentationError(GradcamoError):
    """Masks that cannot be made: no network, no usable channel, an image that holds no numbers."""


class CropError(GradcamoError):
    """Crops that cannot be cut or read."""


class ExplainError(GradcamoError, ValueError):
    """A call of the score that cannot be answered: wrong shapes, a layer that never runs, a training network."""


class BundleError(GradcamoError):
    """A model bundle that is missing, damaged, or does not fit the plate."""


class StoreError(GradcamoError):
    """The lake or the QC database cannot be read, or a table does not fit its schema."""
