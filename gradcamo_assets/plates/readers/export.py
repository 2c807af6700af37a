"""What a vendor's export holds: its planes as a table, before any pixel is read. Every reader returns one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

PROJECTION = -1
"""The ``z`` of a plane that projects the whole stack."""

PLANES = {
    "well": pl.String,
    "site": pl.Int32,
    "channel": pl.Int32,
    "z": pl.Int32,
    "file": pl.String,
    "page": pl.Int32,
}


@dataclass(frozen=True)
class Export:
    """One plate of TIFF planes.

    Attributes:
        name: of the plate, checked (``common.names.plate_name``).
        path: the folder; ``file`` in ``planes`` is relative to it, and lies inside it.
        format: for people, for example ``MetaXpress``.
        channels: names in order; those for which there is no file at all are left out (and named in ``problems``).
        voxel_size: (z, y, x) in micrometres, 1.0 where the export gives none.
        planes: columns as in ``PLANES``, sorted by the first four, which together are unique. ``site`` from 1,
            ``channel`` an index into ``channels``, ``z`` from 0 or ``PROJECTION``, ``page`` from 0.
        incomplete: what fields (well, site) lack that the plate's other fields have, or that its metadata promise.
        problems: what a person should know about the plate, in sentences without a full stop.
        acquisition: what the export says of instrument and objective; text and numbers, kept with the plate.
    """

    name: str
    path: Path
    format: str
    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    planes: pl.DataFrame
    incomplete: Mapping[tuple[str, int], str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    acquisition: Mapping[str, str | float] = field(default_factory=dict)
