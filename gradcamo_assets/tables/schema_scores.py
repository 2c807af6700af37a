"""The scores, one row a cell x model version, and the QC aggregates stored when they are published."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.columns import Column, Table

SPLITS = ("train", "val", "test", "unseen")
REGION_NAMES = {"target": "the cell", "neighbour": "its neighbours", "background": "the background"}
REGIONS = ("target", "neighbour", "background", "none")


def _number(name: str, comment: str) -> Column:
    return Column(name, pl.Float64, comment)


SCORES = Table(
    "scores",
    "One row a cell x model version: where the encoder looked (Grad-CAM map of the predicted class)",
    (
        *c.CELL,
        *c.MODEL,
        *(replace(column, nullable=False) for column in c.MADE_FROM),
        Column("true_class", pl.String, "Class of the cell's treatment"),
        Column("predicted_class", pl.String, "Class with the highest logit; the map explains this class"),
        _number("probability", "Softmax probability of the predicted class"),
        _number("logit", "Logit of the predicted class"),
        _number("logit_bias", "Bias of the predicted class in the last layer; NULL without such a head"),
        Column("split", pl.String, "What the cell was to the model; unseen: of a plate not trained on", False, SPLITS),
        _number("gradcamo", "Grad-CAMO score: share of the map inside the cell's mask"),
        _number("mask_fraction", "Share of the crop that the mask fills: the score of looking nowhere in particular"),
        _number("gradcamo_max", "Highest score that this map's resolution allows for this mask"),
        _number("gradcamo_adjusted", "(gradcamo - mask_fraction) / (gradcamo_max - mask_fraction): 0 chance, 1 best"),
        _number("neighbour_share", "Share of the map on other cells; NULL where their masks were not given"),
        _number("background_share", "Share of the map on no cell"),
        _number("neighbour_fraction", "Share of the crop that other cells fill"),
        Column("looks_at", pl.String, "Region of the highest adjusted share; none: all below 0.05", allowed=REGIONS),
        _number("evidence_target", "Signed part of the logit that comes from the cell"),
        _number("evidence_neighbour", "Signed part of the logit that comes from other cells"),
        _number("evidence_background", "Signed part of the logit that comes from the background"),
        Column("on_target", pl.Boolean, "Whether gradcamo exceeds the threshold, 0.5 unless configured"),
        Column("null_reason", pl.String, "Why there is no score; NULL: there is one"),
        Column("run_id", pl.String, "Run that computed the row"),
        Column("scored_at", c.TIME, "When the row was computed, UTC"),
        _number("pointing_game", "1 where the brightest voxel of the map stands in the cell, else 0"),
        _number("relevance_rank_accuracy", "Share of the cell that the brightest voxels of the cell's volume cover"),
    ),
    keys=("plate", "site", "model_run"),
    partitioned_by=("plate", "model_run"),
    unique=("Metadata_CellID", "model_run"),
)

SWAPS = {
    "swapped_surroundings": "the cell stands in the surroundings of cells of other treatments",
    "swapped_target": "cells of other treatments stand in its surroundings",
    "background_only": "all cells have given way to background",
}

AUDIT = Table(
    "audit",
    "One row a sampled cell x model version: what the encoder does when the image or its weights are changed",
    (
        *c.CELL,
        *c.MODEL,
        c.MADE_FROM[1],
        *(
            _number(f"logit_drop_{region}", f"Fall of the predicted class's logit when {what} gets other background")
            for region, what in REGION_NAMES.items()
        ),
        *(
            _number(f"embedding_move_{region}", f"Cosine distance the embedding moves when {what} gets it")
            for region, what in REGION_NAMES.items()
        ),
        _number("effect_target", "The cell's part of the three absolute drops: the measured counterpart of gradcamo"),
        _number("deletion_auc", "Area under the class's probability while the map's brightest voxels go: low is good"),
        _number("insertion_auc", "Area under the class's probability while they come: high is good"),
        _number("randomised_adjusted", "gradcamo_adjusted of the encoder with all weights shuffled"),
        _number("randomised_chance", "The same maps under other cells' masks: what randomised_adjusted should equal"),
        *(
            _number(f"{what}_{swap}", f"{told} when {where}")
            for swap, where in SWAPS.items()
            for what, told in (
                ("probability_drop", "Fall of the predicted class's probability"),
                ("logit_drop", "Fall of the predicted class's logit"),
                ("embedding_move", "Cosine distance the embedding moves"),
            )
        ),
        _number(
            "swap_margin",
            "By how much the predicted class is more probable in swapped surroundings than any other, and than with a "
            "swapped target; the lesser of the two",
        ),
        Column("survives_swap", pl.Boolean, "Whether swap_margin is above 0: the class goes with the cell"),
    ),
    keys=("plate", "model_run"),
    unique=("Metadata_CellID", "model_run"),
)

_INTERVAL = "end of the 95% interval of on_target_fraction, bootstrap over wells; NULL below 3 wells"
MEASURES = (
    Column("n_cells", pl.Int64, "Cells scored, those of split train left out", nullable=False),
    Column("n_wells", pl.Int64, "Wells they lie in", nullable=False),
    _number("median_gradcamo", "Median score"),
    _number("mean_gradcamo", "Mean score"),
    _number("q25_gradcamo", "Lower quartile of the score, linear interpolation"),
    _number("q75_gradcamo", "Upper quartile of the score, linear interpolation"),
    _number("on_target_fraction", "Share of cells whose score exceeds the threshold"),
    _number("ci_low", f"Lower {_INTERVAL}"),
    _number("ci_high", f"Upper {_INTERVAL}"),
    _number("median_adjusted", "Median adjusted score: 0 chance, 1 the best the map allows"),
    _number("looks_at_target", "Share of cells whose map looks at the cell itself"),
    _number("looks_at_neighbour", "Share of cells whose map looks at other cells"),
    _number("looks_at_background", "Share of cells whose map looks at the background"),
    _number("looks_at_none", "Share of cells whose map looks at no region beyond chance"),
    Column("null_cells", pl.Int64, "Cells of n_cells without a score; they are in no mean", nullable=False),
)

QC_GROUPS: dict[str, tuple[Column, ...]] = {
    "dose": c.DOSE,
    "site": (c.SITE,),
    "dose_site": (*c.DOSE, c.SITE),
    "well": (c.WELL,),
    "plate": (),
}


def _qc_table(by: str, groups: tuple[Column, ...]) -> Table:
    what = {"dose": "compound x dose x ", "dose_site": "compound x dose x site x ", "plate": ""}.get(by, f"{by} x ")
    return Table(
        f"qc_by_{by}",
        f"One row a {what}plate x model version: how far the scores can be trusted",
        (*groups, *c.MODEL, c.PLATE, *MEASURES),
        unique=(*(column.name for column in groups), "model_run", "Metadata_Plate"),
    )


QC_TABLES = tuple(_qc_table(by, groups) for by, groups in QC_GROUPS.items())
