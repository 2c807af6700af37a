"""Draw all figures and write the HTML report.

The functions take frames and arrays and return matplotlib figures. They read no files, and do not use pyplot or any
other global state.
"""

from gradcamo_assets.report.cell_pictures import crops_by_treatment, crops_with_maps, pipeline_on_one_cell
from gradcamo_assets.report.charts import (
    plate_heat_map,
    score_against_ceiling,
    score_distributions,
    score_intervals,
    umap_scatter,
)
from gradcamo_assets.report.colours import colour_key
from gradcamo_assets.report.field_pictures import illumination_maps, segmentation_overlay
from gradcamo_assets.report.model_pictures import (
    accuracy_against_score,
    confusion_matrix,
    layer_scores,
    map_by_epoch,
    paired_differences,
    reliability,
    training_curves,
)
from gradcamo_assets.report.page import Listing, Picture, qc_report_html
from gradcamo_assets.report.png import to_gif, to_png
from gradcamo_assets.report.stain_pictures import channel_correlations
from gradcamo_assets.report.style import treatment_name
from gradcamo_assets.report.wording import Verdict, verdict

__all__ = [
    "Listing",
    "Picture",
    "Verdict",
    "accuracy_against_score",
    "channel_correlations",
    "colour_key",
    "confusion_matrix",
    "crops_by_treatment",
    "crops_with_maps",
    "illumination_maps",
    "layer_scores",
    "map_by_epoch",
    "paired_differences",
    "pipeline_on_one_cell",
    "plate_heat_map",
    "qc_report_html",
    "reliability",
    "score_against_ceiling",
    "score_distributions",
    "score_intervals",
    "segmentation_overlay",
    "to_gif",
    "to_png",
    "training_curves",
    "treatment_name",
    "umap_scatter",
    "verdict",
]
