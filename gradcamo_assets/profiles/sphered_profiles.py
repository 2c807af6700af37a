"""Sphered profiles of every population of cells, as ``[profiles]`` of ``gradcamo.toml`` wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from gradcamo_assets.profiles.populations import POPULATIONS, Population
from gradcamo_assets.profiles.sphering import Sphering, fit_sphering
from gradcamo_assets.profiles.well_profiles import vectors
from gradcamo_assets.settings import Amount, section, setting

SCREEN = "_screen"
"""Stands for all plates; no plate can have this name."""
Scope = tuple[str, str]
"""A population, and a plate or ``SCREEN``."""


@section
class ProfilesConfig:
    """How profiles are made: section ``[profiles]`` of ``gradcamo.toml``."""

    populations: tuple[Population, ...] = setting(
        ("all", "on_target", "matched"), "; ".join(f"{name}: {text}" for name, text in POPULATIONS.items())
    )
    fit_on: Literal["controls", "all"] = setting("controls", "Sphering is fitted on the controls, or on all wells.")
    scope: Literal["plate", "screen"] = setting(
        "plate", "Of each plate by itself, or over the screen: once a version has scored all plates, then kept."
    )
    regularisation: Amount = setting(1e-2, "Of the sphering, relative to the widest variance; little stretches noise.")
    formats: tuple[Literal["parquet", "h5ad"], ...] = setting(("parquet",), "Exports; none: no exports.")
    audit_cells: int = setting(1000, "Cells a plate and population that confounders are probed on.", ge=1)
    background: bool = setting(True, "Embed these crops without their cells too, as a baseline: a forward pass each.")


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
