"""Definitions of the score and audit tables, and of the QC aggregates that publication stores."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.thresholds import THRESHOLDS

SPLITS = ("train", "val", "test", "unseen")
REGION_NAMES = {"target": "the cell", "neighbour": "its neighbours", "background": "the background"}
REGIONS = ("target", "neighbour", "background", "none")


def _number(name: str, comment: str) -> Column:
    return Column(name, pl.Float64, comment)


SCORES = Table(
    "scores",
    "One row per cell x model version: position of the Grad-CAM map of the predicted class",
    (
        *c.CELL,
        *c.MODEL,
        *(replace(column, nullable=False) for column in c.MADE_FROM),
        Column("true_class", pl.String, "Class of the cell's treatment"),
        Column("predicted_class", pl.String, "Class with the highest logit; the map explains this class"),
        _number("probability", "Softmax probability of the predicted class"),
        _number("logit", "Logit of the predicted class"),
        _number("logit_bias", "Bias of the predicted class in the last layer; NULL: the head has no bias"),
        Column("split", pl.String, "Data split of the cell; unseen: its plate was not trained on", False, SPLITS),
        _number("gradcamo", "Grad-CAMO score: fraction of the map inside the cell's mask"),
        _number("mask_fraction", "Fraction of the crop inside the mask: the score of a uniform map"),
        _number("gradcamo_max", "Highest possible score for this mask at the map's resolution"),
        _number("gradcamo_adjusted", "(gradcamo - mask_fraction) / (gradcamo_max - mask_fraction); 0: chance, 1: best"),
        _number("neighbour_share", "Fraction of the map on other cells; NULL: their masks were not given"),
        _number("background_share", "Fraction of the map outside all cells"),
        _number("neighbour_fraction", "Fraction of the crop inside other cells"),
        Column("looks_at", pl.String, "Region with the highest adjusted share; none: all below 0.05", allowed=REGIONS),
        _number("evidence_target", "Signed contribution of the cell to the logit"),
        _number("evidence_neighbour", "Signed contribution of other cells to the logit"),
        _number("evidence_background", "Signed contribution of the background to the logit"),
        Column("on_target", pl.Boolean, f"Whether gradcamo exceeds {THRESHOLDS.paper:g}"),
        Column("null_reason", pl.String, "Why the cell has no score; NULL: it has a score"),
        Column("run_id", pl.String, "Run that computed the row"),
        Column("scored_at", c.TIMESTAMP, "Time of computation, UTC"),
        _number("pointing_game", "1: the brightest voxel of the map lies in the cell, else 0"),
        _number(
            "relevance_rank_accuracy", "Fraction of the n brightest map voxels inside the cell; n: voxels of the cell"
        ),
    ),
    keys=("plate", "site", "model_run"),
    partitioned_by=("plate", "model_run"),
    unique=("Metadata_CellID", "model_run"),
)

SWAPS = {
    "swapped_surroundings": "the cell is placed in the surroundings of cells of other treatments",
    "swapped_target": "cells of other treatments are placed in its surroundings",
    "background_only": "background replaces all cells",
}

AUDIT = Table(
    "audit",
    "One row per sampled cell x model version: response of the encoder to changes of the image or its weights",
    (
        *c.CELL,
        *c.MODEL,
        c.MADE_FROM[1],
        *(
            _number(
                f"logit_drop_{region}", f"Drop of the predicted class's logit when other background replaces {what}"
            )
            for region, what in REGION_NAMES.items()
        ),
        *(
            _number(
                f"embedding_move_{region}",
                f"Cosine distance by which the embedding moves when other background replaces {what}",
            )
            for region, what in REGION_NAMES.items()
        ),
        _number(
            "effect_target", "The cell's fraction of the three absolute drops: the measured counterpart of gradcamo"
        ),
        _number(
            "deletion_auc", "Area under the class's probability as the map's brightest voxels are deleted; low is good"
        ),
        _number("insertion_auc", "Area under the class's probability as they are inserted; high is good"),
        _number("randomised_adjusted", "gradcamo_adjusted of the encoder with all weights randomised"),
        _number("randomised_chance", "The same maps under other cells' masks; expected value of randomised_adjusted"),
        *(
            _number(f"{measure}_{swap}", f"{description} when {change}")
            for swap, change in SWAPS.items()
            for measure, description in (
                ("probability_drop", "Drop of the predicted class's probability"),
                ("logit_drop", "Drop of the predicted class's logit"),
                ("embedding_move", "Cosine distance by which the embedding moves"),
            )
        ),
        _number(
            "swap_margin",
            "Probability of the predicted class in swapped surroundings, minus the larger of two others: of any other "
            "class in swapped surroundings, and of the predicted class with a swapped target",
        ),
        Column("survives_swap", pl.Boolean, "Whether swap_margin is above 0: the class follows the cell"),
    ),
    keys=("plate", "model_run"),
    unique=("Metadata_CellID", "model_run"),
)

_ON_TARGET_INTERVAL, _ADJUSTED_INTERVAL = (
    f"bound of the 95% interval of {name}, bootstrap over wells; NULL: fewer than {THRESHOLDS.fewest_wells} wells"
    for name in ("on_target_fraction", "mean_adjusted")
)
MEASURES = (
    Column("n_cells", pl.Int64, "Number of cells, without those of split train", nullable=False),
    Column("n_wells", pl.Int64, "Number of their wells", nullable=False),
    _number("median_gradcamo", "Median score"),
    _number("mean_gradcamo", "Mean score"),
    _number("q25_gradcamo", "Lower quartile of the score, linear interpolation"),
    _number("q75_gradcamo", "Upper quartile of the score, linear interpolation"),
    _number("on_target_fraction", f"Fraction of cells whose score exceeds {THRESHOLDS.paper:g}"),
    _number("ci_low", f"Lower {_ON_TARGET_INTERVAL}"),
    _number("ci_high", f"Upper {_ON_TARGET_INTERVAL}"),
    _number("median_adjusted", "Median adjusted score; 0: chance, 1: the highest possible"),
    _number("mean_adjusted", "Mean adjusted score"),
    _number("adjusted_low", f"Lower {_ADJUSTED_INTERVAL}"),
    _number("adjusted_high", f"Upper {_ADJUSTED_INTERVAL}"),
    _number("looks_at_target", "Fraction of cells whose map looks at the cell itself"),
    _number("looks_at_neighbour", "Fraction of cells whose map looks at other cells"),
    _number("looks_at_background", "Fraction of cells whose map looks at the background"),
    _number("looks_at_none", "Fraction of cells whose map looks at no region more than chance"),
    Column("null_cells", pl.Int64, "Number of the n_cells without a score; no statistic includes them", nullable=False),
)

QC_GROUPS: dict[str, tuple[Column, ...]] = {
    "dose": c.DOSE,
    "site": (c.SITE,),
    "dose_site": (*c.DOSE, c.SITE),
    "well": (c.WELL,),
    "plate": (),
}


def _qc_table(by: str, groups: tuple[Column, ...]) -> Table:
    names = {"dose": "compound x dose x ", "dose_site": "compound x dose x site x ", "plate": ""}
    group = names.get(by, f"{by} x ")
    return Table(
        f"qc_by_{by}",
        f"One row per {group}plate x model version: statistics of the scores",
        (*groups, *c.MODEL, c.PLATE, *MEASURES),
        unique=(*(column.name for column in groups), "model_run", "Metadata_Plate"),
    )


QC_TABLES = tuple(_qc_table(by, groups) for by, groups in QC_GROUPS.items())
