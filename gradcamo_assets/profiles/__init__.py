"""Turn embeddings into profiles and assess them: well aggregation, sphering, UMAP, replicability, probes, stains.

All functions take and return Polars frames and arrays. ``report`` draws the results, ``tables`` stores them.
"""

from gradcamo_assets.profiles.export import export_profiles, wide_profiles
from gradcamo_assets.profiles.fitted import fitted_digest, load_fitted, save_fitted
from gradcamo_assets.profiles.populations import POPULATIONS, select_population
from gradcamo_assets.profiles.probes import audit_confounders
from gradcamo_assets.profiles.replicability import replicate_map
from gradcamo_assets.profiles.sphered_profiles import ProfilesConfig, sphered_profiles
from gradcamo_assets.profiles.sphering import Sphering, fit_sphering
from gradcamo_assets.profiles.stain_correlation import correlation_table, stain_correlation
from gradcamo_assets.profiles.umap import CellMap
from gradcamo_assets.profiles.well_profiles import well_profiles

__all__ = [
    "POPULATIONS", "CellMap", "ProfilesConfig", "Sphering", "audit_confounders", "correlation_table", "export_profiles",
    "fit_sphering", "fitted_digest", "load_fitted", "replicate_map", "save_fitted", "select_population",
    "sphered_profiles", "stain_correlation", "well_profiles", "wide_profiles",
]  # fmt: skip
