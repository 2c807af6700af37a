"""What embeddings are worth as profiles: sphering, aggregation to wells, UMAP, replicability, confounder probes.

Polars frames and arrays in and out. Pictures of the results belong in ``figures``, tables on disk in ``warehouse``.
"""

from gradcamo_assets.profiling.aggregate import sphere, sphered_profiles, well_profiles
from gradcamo_assets.profiling.confounders import confounder_audit
from gradcamo_assets.profiling.replicability import replicate_map
from gradcamo_assets.profiling.umap import umap_embedding

__all__ = [
    "confounder_audit",
    "replicate_map",
    "sphere",
    "sphered_profiles",
    "umap_embedding",
    "well_profiles",
]
