"""Sphere the well profiles of every population of cells, following ``[profiles]`` of ``gradcamo.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from gradcamo_assets.profiles.populations import POPULATIONS, Population
from gradcamo_assets.profiles.sphering import Sphering, fit_sphering
from gradcamo_assets.profiles.well_profiles import stack_vectors
from gradcamo_assets.settings import Amount, section, setting

SCREEN = "_screen"
"""Scope of all plates; no plate can have this name."""
Scope = tuple[str, str]
"""A population, and a plate or ``SCREEN``."""


@section
class ProfilesConfig:
    """Settings of profiles: section ``[profiles]`` of ``gradcamo.toml``."""

    populations: tuple[Population, ...] = setting(
        ("all", "on_target", "matched"), "; ".join(f"{name}: {text}" for name, text in POPULATIONS.items())
    )
    fit_on: Literal["controls", "all"] = setting("controls", "Wells on which sphering is fitted.")
    scope: Literal["plate", "screen"] = setting(
        "plate", "Fit sphering per plate, or once for the whole screen when all its plates are scored."
    )
    regularisation: Amount = setting(
        1e-2, "Regularisation of sphering, relative to the largest variance; small values amplify noise."
    )
    formats: tuple[Literal["parquet", "h5ad"], ...] = setting(
        ("parquet",), "File formats of the exports; empty: no exports."
    )
    audit_cells: int = setting(1000, "Number of cells per plate and population in the confounder audit.", ge=1)
    background: bool = setting(
        True, "Also embed the audited crops without their cells, as a baseline: one more forward pass per crop."
    )


@dataclass(frozen=True)
class SpheredProfiles:
    """Sphered profiles and the spherings fitted for them.

    Attributes:
        table: the profiles, with the digest of their sphering in ``sphering`` (NULL: not sphered).
        fitted: spherings that were fitted in this call, by population and scope.
        notes: one sentence for each scope without a sphering, or with one that only centres.
    """

    table: pl.DataFrame
    fitted: dict[Scope, Sphering] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def sphered_profiles(
    profiles: pl.DataFrame, config: ProfilesConfig, known: Mapping[str, Sphering] | None = None
) -> SpheredProfiles:
    """Sphere the profiles of one model version, separately for each population.

    Profiles of a scope with fewer than two wells to fit on remain unchanged.

    Args:
        profiles: result of ``well_profiles``.
        known: saved spherings of the screen by population. A missing one is fitted on ``profiles``.
    """
    known, parts, fitted, notes = known or {}, [], {}, []
    scope = pl.lit(SCREEN) if config.scope == "screen" else pl.col("Metadata_Plate")
    groups = profiles.group_by(["population", scope.alias("scope")], maintain_order=True)
    for (population, scope_name), wells in groups:
        sphering = known.get(str(population)) if config.scope == "screen" else None
        if sphering is None:
            fit_wells = wells if config.fit_on == "all" else wells.filter(Metadata_pert_type="negcon")
            if len(fit_wells) >= 2:
                names = fit_wells.select(pl.concat_str("Metadata_Plate", "Metadata_Well", separator="/")).to_series()
                sphering = fit_sphering(stack_vectors(fit_wells["profile"]), config.regularisation, names.to_list())
                fitted[str(population), str(scope_name)] = sphering
        where = f"Profiles of population {population} on " + (
            "the screen" if scope_name == SCREEN else f"plate {scope_name}"
        )
        if sphering is None:
            notes.append(f"{where} are not sphered: fewer than two wells to fit on.")
        else:
            if not sphering.spectrum.size:
                notes.append(f"{where} are only centred: the wells to fit on are all alike.")
            values = sphering(stack_vectors(wells["profile"])).astype(np.float32)
            wells = wells.with_columns(pl.Series("profile", values).arr.to_list())
        parts.append(wells.with_columns(sphering=pl.lit(sphering.digest if sphering else None, pl.String)))
    table = pl.concat(parts) if parts else profiles.with_columns(sphering=pl.lit(None, pl.String))
    return SpheredProfiles(table, fitted, notes)
