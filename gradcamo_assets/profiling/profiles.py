"""Sphered profiles of every population of cells, as ``[profiles]`` of ``gradcamo.toml`` wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.profiling.aggregate import vectors
from gradcamo_assets.profiling.populations import check_populations
from gradcamo_assets.profiling.sphering import Sphering, fit_sphering

SCREEN = "_screen"
"""Stands for all plates; no plate can have this name."""
Scope = tuple[str, str]
"""A population, and a plate or ``SCREEN``."""
_CHOICES = {"fit_on": ("controls", "all"), "scope": ("plate", "screen"), "formats": ("parquet", "h5ad")}


@dataclass(frozen=True)
class ProfilesConfig:
    """How profiles are made: section ``[profiles]`` of ``gradcamo.toml``.

    Attributes:
        populations: which cells profiles are made of, side by side: names of ``POPULATIONS``.
        fit_on: sphering is fitted on the "controls" (negcon), or on "all" wells.
        scope: of each "plate" by itself, or over the "screen": fitted once a model version on the plates there are
            when that version has scored them all, then kept for later plates.
        regularisation: of the sphering, relative to the widest variance; small values stretch noise.
        formats: exports, of "parquet" and "h5ad"; none: no exports.
        audit_cells: cells a plate and population, drawn at random, that confounders are probed on.
        background: also embed these cells' crops with the cells taken out, as a baseline; costs a forward pass each.
    """

    populations: tuple[str, ...] = ("all", "on_target", "matched")
    fit_on: str = "controls"
    scope: str = "plate"
    regularisation: float = 1e-2
    formats: tuple[str, ...] = ("parquet",)
    audit_cells: int = 1000
    background: bool = True

    def __post_init__(self) -> None:
        check_populations(self.populations)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if unknown := set([value] if isinstance(value, str) else value) - set(allowed):
                raise GradcamoError(
                    f"[profiles] {name} does not know {', '.join(sorted(map(str, unknown)))}",
                    f"It knows {', '.join(allowed)}.",
                )


@dataclass(frozen=True)
class SpheredProfiles:
    """``table``: the profiles, with the digest of their sphering in ``sphering`` (NULL: not sphered). ``fitted``: the
    maps that were fitted for it. ``notes``: a sentence for each scope that has no sphering."""

    table: pl.DataFrame
    fitted: dict[Scope, Sphering] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def sphered_profiles(
    profiles: pl.DataFrame, config: ProfilesConfig, known: Mapping[str, Sphering] | None = None
) -> SpheredProfiles:
    """Sphere the profiles of one model version, each population by itself.

    A scope in which fewer than two wells can be fitted on keeps its profiles as they are.

    Args:
        profiles: as from ``well_profiles``.
        known: spherings of the screen by population, which are applied; what is not known is fitted on ``profiles``.
    """
    known, parts, fitted, notes = known or {}, [], {}, []
    scope = pl.lit(SCREEN) if config.scope == "screen" else pl.col("Metadata_Plate")
    groups = profiles.group_by(["population", scope.alias("scope")], maintain_order=True)
    for (population, place), wells in groups:
        sphering = known.get(str(population)) if config.scope == "screen" else None
        if sphering is None:
            base = wells if config.fit_on == "all" else wells.filter(Metadata_pert_type="negcon")
            if len(base) >= 2:
                names = base.select(pl.concat_str("Metadata_Plate", "Metadata_Well", separator="/")).to_series()
                sphering = fit_sphering(vectors(base["profile"]), config.regularisation, names.to_list())
                fitted[str(population), str(place)] = sphering
        if sphering is None:
            where = "the screen" if place == SCREEN else f"plate {place}"
            notes.append(f"Profiles of {population} cells on {where} are not sphered: fewer than two wells to fit on.")
        else:
            values = sphering(vectors(wells["profile"])).astype(np.float32)
            wells = wells.with_columns(pl.Series("profile", values).arr.to_list())
        parts.append(wells.with_columns(sphering=pl.lit(sphering.digest if sphering else None, pl.String)))
    table = pl.concat(parts) if parts else profiles.with_columns(sphering=pl.lit(None, pl.String))
    return SpheredProfiles(table, fitted, notes)
