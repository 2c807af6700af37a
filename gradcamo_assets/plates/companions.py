"""The tables that lie beside a plate in the inbox, found by the plate's name. Nothing here reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradcamo_assets.plates.hcs import name_of

_MAP_ENDINGS = (".csv", ".tsv", ".platemap.csv")
"""How the plate map beside a plate may end, after the plate's name."""
LABELS_ENDING = ".labels.csv"


@dataclass(frozen=True)
class Companions:
    """``maps``: the plate maps; there should be one. ``labels``: the label table of a pooled screen."""

    maps: tuple[Path, ...]
    labels: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.maps, *([self.labels] if self.labels else []))


def companions(source: Path) -> Companions:
    """What lies beside the plate folder ``source``.

    Raises:
        PlateError: where the folder's name is no usable plate name.
    """
    name = name_of(source)
    maps = tuple(path for ending in _MAP_ENDINGS if (path := source.with_name(name + ending)).is_file())
    labels = source.with_name(name + LABELS_ENDING)
    return Companions(maps, labels if labels.is_file() else None)
