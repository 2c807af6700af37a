"""Synthetic plates with twins, which tell whether a prediction comes from the cell."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.pipeline import Prepared, prepare
from gradcamo_assets.cells import TARGET, CropConfig
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.synthetic.design import Treatment

_SIZE: dict[str, Any] = {"sites": 1, "doses": 2}


class ShiftedPlate(SyntheticPlate):
    """A plate on which every cell shows the next treatment. Everything else is equal, to the pixel."""

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """The classes, each in the place of the one before it."""
        own = super().treatments
        return own[1:] + own[:1]


@dataclass(frozen=True)
class Judged:
    """A plate, and its twins: same cells, other surroundings."""

    plate: Prepared
    twins: list[Prepared]


def make_plates(kind: str, labels: str, seed: int, wells: tuple[int, int], folder: Path) -> tuple[Prepared, Judged]:
    """Synthesise a plate to train on and one to judge, ``wells`` large, as far as their crops."""
    design: dict[str, Any] = {"labels": labels, **_SIZE}
    if kind == "background":
        design |= {"shortcut": "background", "background_shift": 0}
    elif kind == "neighbour":
        design |= {"shortcut": "neighbour"}
    made = {
        "taught": SyntheticPlate(name="taught", seed=seed, wells=wells[0], **design),
        "judged": SyntheticPlate(name="judged", seed=1000 + seed, wells=wells[1], **design),
        "shifted": ShiftedPlate(name="judged", seed=1000 + seed, wells=wells[1], **design),
    }
    if kind == "background":
        made["medium"] = replace(made["judged"], background_shift=1)
    found = {
        name: prepare(plate, folder / kind / name, CropConfig((12, 64, 64)), true_masks=True)
        for name, plate in made.items()
    }
    twins = [_with_pixels(found["judged"], found["shifted"], folder / kind / "around", only_around=True)]
    if "medium" in found:
        twins.append(_with_pixels(found["judged"], found["medium"], folder / kind / "light", only_around=False))
    return found["taught"], Judged(found["judged"], twins)


def _with_pixels(plate: Prepared, other: Prepared, folder: Path, only_around: bool) -> Prepared:
    """Copy a plate's crops, with its statistics, and take the pixels from the other (around the cell, or all)."""
    paths = []
    for own, twin in zip(plate.crops, other.crops, strict=True):
        path = Path(shutil.copytree(own, folder / own.name))
        group, source = zarr.open_group(path, mode="r+"), zarr.open_group(twin, mode="r")
        if group.attrs["cell_ids"] != source.attrs["cell_ids"]:
            raise ValueError(f"expected the cells of {own} in {twin}, found others: the plates are no twins")
        is_cell = only_around & (np.asarray(group["labels"]) == TARGET)[:, None]
        group["images"][:] = np.where(is_cell, group["images"][:], source["images"][:])
        paths.append(path)
    return Prepared(plate.cells, paths)
