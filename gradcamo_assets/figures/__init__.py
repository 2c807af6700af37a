"""Every picture: functions that take frames and arrays and return matplotlib figures, and the report they go into.

Nothing is computed here but what drawing needs, nothing is read, and nothing is shown: there is no pyplot and no state.
"""

from gradcamo_assets.figures.charts import (
    on_target_intervals,
    plate_heat_map,
    score_distributions,
    training_curves,
    umap_scatter,
)
from gradcamo_assets.figures.images import crops_with_maps, illumination_maps, segmentation_overlay
from gradcamo_assets.figures.models import (
    accuracy_against_score,
    confusion_matrix,
    layer_scores,
    paired_differences,
    reliability,
)
from gradcamo_assets.figures.report import qc_report_html, to_markdown, to_png
from gradcamo_assets.figures.stains import channel_correlations

__all__ = [
    "accuracy_against_score",
    "channel_correlations",
    "confusion_matrix",
    "crops_with_maps",
    "illumination_maps",
    "layer_scores",
    "on_target_intervals",
    "paired_differences",
    "plate_heat_map",
    "qc_report_html",
    "reliability",
    "score_distributions",
    "segmentation_overlay",
    "to_markdown",
    "to_png",
    "training_curves",
    "umap_scatter",
]
