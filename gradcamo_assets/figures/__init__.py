"""Every picture: functions that take frames and arrays and return matplotlib figures, and the report they go into.

Nothing is computed here but what drawing needs, nothing is read, and nothing is shown: there is no pyplot and no state.
"""

from gradcamo_assets.figures.crops_with_maps import crops_with_maps
from gradcamo_assets.figures.curves import training_curves
from gradcamo_assets.figures.distributions import on_target_intervals, score_distributions
from gradcamo_assets.figures.encode import to_html_img, to_markdown, to_png
from gradcamo_assets.figures.overlays import segmentation_overlay
from gradcamo_assets.figures.plate_map import plate_heat_map
from gradcamo_assets.figures.report import qc_report_html
from gradcamo_assets.figures.umap import umap_scatter

__all__ = [
    "crops_with_maps",
    "on_target_intervals",
    "plate_heat_map",
    "qc_report_html",
    "score_distributions",
    "segmentation_overlay",
    "to_html_img",
    "to_markdown",
    "to_png",
    "training_curves",
    "umap_scatter",
]
