"""Errors shown to users: each states the place, the problem and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

E = TypeVar("E", bound="GradcamoError")

bucket_addresses: dict[str, str] = {}
"""The addresses of buckets by their scratch folders (see ``buckets``). Messages name addresses."""


def one_line(error: BaseException, length: int = 200) -> str:
    """Return the message of an error as one line of at most ``length`` characters, or its type if it has none.

    Messages of ngio and pydantic span many lines and end with an address.
    """
    text = " ".join(str(error).split()).split(" For further information visit ")[0]
    return text[:length].rstrip(".: ") or type(error).__name__


class GradcamoError(Exception):
    """Base class of errors with a place and a remedy.

    Args:
        problem: one sentence without a full stop.
        remedy: what the user can do, one sentence.
        plate, well, site, path: the place, as far as it is known.
    """

    def __init__(
        self, problem: str, remedy: str, *, plate: str | None = None, well: str | None = None,
        site: int | str | None = None, path: Path | str | None = None,
    ):  # fmt: skip
        self.problem, self.remedy = problem, remedy
        self.plate, self.well, self.site, self.path = plate, well, site, path
        place = {"plate": plate, "well": well, "site": site, "file": path}
        prefix = ", ".join(f"{name} {value}" for name, value in place.items() if value is not None)
        text = f"{prefix}: {problem}. {remedy}" if prefix else f"{problem}. {remedy}"
        for folder, address in bucket_addresses.items():
            text = text.replace(folder, address)
        super().__init__(text)

    def at(self, kind: type[E] | None = None, **place: Any) -> E:
        """Return the same error with more of its place, optionally as another ``kind`` of error."""
        current = {"plate": self.plate, "well": self.well, "site": self.site, "path": self.path}
        return (kind or type(self))(self.problem, self.remedy, **current | place)  # type: ignore[return-value]


class PlateError(GradcamoError):
    """A plate or one of its fields cannot be read."""


class PlateMapError(GradcamoError):
    """A plate map or label table is invalid."""


class SegmentationError(GradcamoError):
    """Segmentation is impossible: the network or a usable channel is missing, or the image has no finite values."""


class CropError(GradcamoError):
    """Crops cannot be cut or read."""


class ExplainError(GradcamoError, ValueError):
    """A score cannot be computed: wrong shapes, a layer that does not run, or a network in training mode."""


class BundleError(GradcamoError):
    """A model bundle is missing, damaged, or does not fit the plate."""


class StoreError(GradcamoError):
    """The lake or the QC database cannot be read, or a table does not fit its schema."""
