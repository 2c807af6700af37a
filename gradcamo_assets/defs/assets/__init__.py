"""The assets, one module per stage. ``ASSETS`` lists them in pipeline order."""

import dagster as dg

from gradcamo_assets.defs.assets.audit_assets import audit
from gradcamo_assets.defs.assets.cell_assets import cells, crops
from gradcamo_assets.defs.assets.comparison_assets import encoder_exploration, model_comparison
from gradcamo_assets.defs.assets.mask_assets import masks
from gradcamo_assets.defs.assets.model_assets import champion_model, data_split, trained_model
from gradcamo_assets.defs.assets.plate_assets import plate_images
from gradcamo_assets.defs.assets.profile_assets import confounder_audit, profiles, replicability, umap
from gradcamo_assets.defs.assets.promotion_assets import promotion
from gradcamo_assets.defs.assets.qc_assets import qc_database
from gradcamo_assets.defs.assets.report_assets import qc_report
from gradcamo_assets.defs.assets.score_assets import scores_and_embeddings
from gradcamo_assets.defs.assets.stain_assets import channel_correlation

ASSETS: list[dg.AssetsDefinition | dg.AssetSpec] = [
    plate_images,
    masks,
    cells,
    crops,
    channel_correlation,
    data_split,
    trained_model,
    promotion,
    champion_model,
    encoder_exploration,
    model_comparison,
    scores_and_embeddings,
    audit,
    qc_database,
    qc_report,
    profiles,
    umap,
    replicability,
    confounder_audit,
]

__all__ = ["ASSETS"]
