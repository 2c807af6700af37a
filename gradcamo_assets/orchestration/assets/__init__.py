"""The assets, one module a stage, in pipeline order."""

import dagster as dg

from gradcamo_assets.orchestration.assets.audit import audit
from gradcamo_assets.orchestration.assets.crops import cells, crops
from gradcamo_assets.orchestration.assets.exploration import encoder_exploration, model_comparison
from gradcamo_assets.orchestration.assets.masks import masks
from gradcamo_assets.orchestration.assets.models import champion_model, data_split, trained_model
from gradcamo_assets.orchestration.assets.plates import plate_images
from gradcamo_assets.orchestration.assets.profiles import confounder_audit, profiles, replicability, umap
from gradcamo_assets.orchestration.assets.promotion import promotion
from gradcamo_assets.orchestration.assets.qc import qc_database
from gradcamo_assets.orchestration.assets.report import qc_report
from gradcamo_assets.orchestration.assets.scores import scores_and_embeddings
from gradcamo_assets.orchestration.assets.stains import channel_correlation

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
