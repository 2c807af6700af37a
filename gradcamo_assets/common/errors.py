"""The errors users meet: each names the place, what was wrong and what to do about it."""

from __future__ import annotations

from pathlib import Path


class GradcamoError(Exception):
    """A failure with a place and a remedy.

    Args:
        problem: what was wrong, one sentence without a full stop.
        remedy: what to do about it, one sentence.
        plate, well, site, path: where; leave out what is not known.
    """

    def __init__(
        self,
        problem: str,
        remedy: str,
        *,
        plate: str | None = None,
        well: str | None = None,
        site: int | str | None = None,
        path: Path | str | None = None,
    ):
        self.problem, self.remedy = problem, remedy
        self.plate, self.well, self.site, self.path = plate, well, site, path
        parts = [
            f"{name} {value}"
            for name, value in (("plate", plate), ("well", well), ("site", site), ("file", path))
            if value is not None
        ]
        place = ", ".join(parts)
        super().__init__(f"{place}: {problem}. {remedy}" if place else f"{problem}. {remedy}")


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
