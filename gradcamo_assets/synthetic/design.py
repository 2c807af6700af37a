"""Design of a synthetic plate: its size, its treatments, and the layout of treatments over wells."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import check_plate_name

COMPOUND, CONTROL, POOLED, UNIT = "cpd-A", "DMSO", "pooled", "uM"
STAINS = ("DNA", "ER", "RNA", "AGP", "Mito", "Brightfield")
VOXEL_SIZE = (1.0, 0.5, 0.5)
"""Micrometres in z, y, x."""
_TOP_DOSE = 10.0
_LAYOUT_STREAM = 2**31
"""Separates the random stream of the layout from those of the wells."""


@dataclass(frozen=True)
class Treatment:
    """One class: a treatment and the strength of its phenotype, ``level`` (0 control, 1 top dose)."""

    compound: str
    dose: float
    pert_type: Literal["trt", "negcon"]
    level: float


def treatment_columns(treatments: Sequence[Treatment]) -> dict[str, list[Any]]:
    """Columns of a plate map or label table that describe treatments."""
    return {
        "Metadata_Compound": [t.compound for t in treatments],
        "Metadata_Dose": [t.dose for t in treatments],
        "Metadata_Dose_Unit": [UNIT] * len(treatments),
        "Metadata_pert_type": [t.pert_type for t in treatments],
    }


@dataclass(frozen=True)
class SyntheticPlate:
    """A synthetic Cell Painting plate. Equal values give equal images, byte by byte.

    Args:
        shape: (Z, Y, X) of a field, in voxels of 1.0 x 0.5 x 0.5 um.
        channels: 4 to 6 stains, in the order of ``STAINS``.
        doses: number of doses of the single compound; with the control there are ``doses + 1`` classes.
        cells: mean number of cells in a field.
        shortcut: where the signature of a class is painted: in every cell ("none"), outside all cells ("background"),
            or in bystander cells only ("neighbour").
        background_shift: with the shortcut "background", paint the signature in cells too, and add an even glow to the
            background in the stains of another class, this many places further on. 0 makes the background show the
            cell's own class.
        labels: one treatment for each well, or one for each cell (a pooled screen).

    Raises:
        PlateError: invalid values.
    """

    name: str = "synthetic"
    wells: int = 24
    sites: int = 2
    shape: tuple[int, int, int] = (12, 160, 160)
    channels: int = 5
    doses: int = 3
    cells: int = 10
    shortcut: Literal["none", "background", "neighbour"] = "none"
    background_shift: int | None = None
    labels: Literal["well", "cell"] = "well"
    seed: int = 0

    def __post_init__(self) -> None:
        check_plate_name(self.name)
        z, y, x = self.shape
        for is_valid, name, allowed in (
            (1 <= self.wells <= 384, "wells", "1 to 384"),
            (1 <= self.sites <= 100, "sites", "1 to 100"),
            (1 <= z <= 512 and 48 <= y <= 4096 and 48 <= x <= 4096, "shape", "Z from 1, Y and X from 48 to 4096"),
            (4 <= self.channels <= 6, "channels", "4 to 6"),
            (1 <= self.doses <= 8, "doses", "1 to 8"),
            (1 <= self.cells <= 5000, "cells", "1 to 5000"),
            (self.shortcut in ("none", "background", "neighbour"), "shortcut", "none, background or neighbour"),
            (self.labels in ("well", "cell"), "labels", "well or cell"),
            (self.background_shift in (None, *range(9)), "background_shift", "0 to 8, or leave it out"),
            (self.background_shift is None or self.shortcut == "background", "background_shift", "shortcut background"),
            ((self.labels, self.shortcut) != ("cell", "neighbour"), "labels", "well with a neighbour shortcut"),
            (self.seed >= 0, "seed", "0 or more"),
        ):
            if not is_valid:
                problem = f"a synthetic plate cannot have {name} = {getattr(self, name)!r}"
                raise PlateError(problem, f"Use {allowed}.", plate=self.name)

    @property
    def stains(self) -> tuple[str, ...]:
        """Channel names, in order."""
        return STAINS[: self.channels]

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """The classes: the control, then the doses in ascending order."""
        step = 1.0 if self.doses <= 3 else 0.5
        doses = [float(f"{_TOP_DOSE * 10 ** (-step * k):.1g}") for k in reversed(range(self.doses))]
        return (
            Treatment(CONTROL, 0.0, "negcon", 0.0),
            *(Treatment(COMPOUND, dose, "trt", (k + 1) / self.doses) for k, dose in enumerate(doses)),
        )

    @property
    def well_names(self) -> tuple[str, ...]:
        """Wells row by row, on the smallest grid of about 2:3 that holds them."""
        rows = next(r for r in range(1, 17) if r * -(-3 * r // 2) >= self.wells)
        columns = -(-3 * rows // 2)
        return tuple(f"{string.ascii_uppercase[i // columns]}{i % columns + 1:02d}" for i in range(self.wells))

    @property
    def layout(self) -> tuple[Treatment, ...]:
        """The treatment of each well, shuffled in blocks of all classes, which spreads each class over the plate."""
        rng = np.random.default_rng([self.seed, _LAYOUT_STREAM])
        classes = len(self.treatments)
        order = np.concatenate([rng.permutation(classes) for _ in range(-(-self.wells // classes))])
        return tuple(self.treatments[k] for k in order[: self.wells])


def make_plate_map(config: SyntheticPlate) -> pl.DataFrame:
    """The plate map, a row a well. In a pooled screen wells are ``pooled``, and the label table has the treatments."""
    pooled = (Treatment(POOLED, 0.0, "trt", 0.0),) * config.wells
    layout = pooled if config.labels == "cell" else config.layout
    return pl.DataFrame({"Metadata_Well": config.well_names, **treatment_columns(layout)})
