"""What embeddings are worth as profiles: sphering, aggregation to wells, UMAP, replicability, probes, stains.

Polars frames and arrays in and out. Pictures of the results belong in ``figures``, tables on disk in ``warehouse``.
"""

from gradcamo_assets.profiling.aggregate import well_profiles
from gradcamo_assets.profiling.confounders import confounder_audit
from gradcamo_assets.profiling.correlation import correlation_table, stain_correlation
from gradcamo_assets.profiling.export import export_profiles, wide_profiles
from gradcamo_assets.profiling.fitted import fitted_digest, load_fitted, save_fitted
from gradcamo_assets.profiling.populations import POPULATIONS, population
from gradcamo_assets.profiling.profiles import ProfilesConfig, sphered_profiles
from gradcamo_assets.profiling.replicability import replicate_map
from gradcamo_assets.profiling.sphering import Sphering, fit_sphering
from gradcamo_assets.profiling.umap import CellMap

__all__ = [
    "POPULATIONS", "CellMap", "ProfilesConfig", "Sphering", "confounder_audit", "correlation_table", "export_profiles",
    "fit_sphering", "fitted_digest", "load_fitted", "population", "replicate_map", "save_fitted", "sphered_profiles",
    "stain_correlation", "well_profiles", "wide_profiles",
]  # fmt: skip
