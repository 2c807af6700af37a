"""What embeddings are worth as profiles: sphering, aggregation to wells, UMAP, replicability, probes, stains.

Polars frames and arrays in and out. Pictures of the results belong in ``report``, tables on disk in ``tables``.
"""

from gradcamo_assets.profiles.export import export_profiles, wide_profiles
from gradcamo_assets.profiles.fitted import fitted_digest, load_fitted, save_fitted
from gradcamo_assets.profiles.populations import POPULATIONS, population
from gradcamo_assets.profiles.probes import confounder_audit
from gradcamo_assets.profiles.replicability import replicate_map
from gradcamo_assets.profiles.sphered_profiles import ProfilesConfig, sphered_profiles
from gradcamo_assets.profiles.sphering import Sphering, fit_sphering
from gradcamo_assets.profiles.stain_correlation import correlation_table, stain_correlation
from gradcamo_assets.profiles.umap import CellMap
from gradcamo_assets.profiles.well_profiles import well_profiles

__all__ = [
    "POPULATIONS", "CellMap", "ProfilesConfig", "Sphering", "confounder_audit", "correlation_table", "export_profiles",
    "fit_sphering", "fitted_digest", "load_fitted", "population", "replicate_map", "save_fitted", "sphered_profiles",
    "stain_correlation", "well_profiles", "wide_profiles",
]  # fmt: skip
