"""Where two lakes differ in more than times, runs and the last digits of numbers."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl
from polars.testing import assert_frame_equal

from gradcamo_assets.tables import LAKE_TABLES, Lake

_MODEL_COLUMNS = {"model_run", "from_run", "to_run", "promoted_by", "metrics"}
"""Columns with identifiers of MLflow runs, and the metrics of a training, among them its seconds."""
_MADE_FROM_RUN = {f"{stage}_versions" for stage in ("score", "audit", "profile", "umap", "confounder")}
"""Tables whose versions are digests of the MLflow run, among others."""


def differences(one: Lake, other: Lake, *, same_training: bool = False) -> list[str]:
    """Where two lakes differ.

    Args:
        same_training: whether the models of both are from the same MLflow runs.
    """
    found = []
    for table in LAKE_TABLES:
        left_out = set() if same_training else _MODEL_COLUMNS
        if table in _MADE_FROM_RUN and not same_training:
            left_out = left_out | {"version", "made_from"}
        found += frame_differences(table, one.read(table), other.read(table), left_out)
    return found


def frame_differences(name: str, one: pl.DataFrame, other: pl.DataFrame, left_out: Collection[str] = ()) -> list[str]:
    """Where two tables differ, in any order of their rows. Times and runs of Dagster are left out."""
    if one.schema != other.schema:
        return [f"{name}: the columns are {other.schema}, expected {one.schema}"]
    kept = [
        column
        for column, kind in one.schema.items()
        if not isinstance(kind, pl.Datetime) and column not in {"run_id", *left_out}
    ]
    exact = [column for column in kept if not one.schema[column].is_float() and not one.schema[column].is_nested()]
    one_rows, other_rows = (frame.select(kept).sort(exact, nulls_last=True) for frame in (one, other))
    try:
        assert_frame_equal(one_rows, other_rows, check_exact=False, rel_tol=1e-5, abs_tol=1e-5)
    except AssertionError as error:
        gaps = {}
        if len(one_rows) == len(other_rows):
            floats = [column for column in kept if one.schema[column].is_float()]
            gaps = {column: (one_rows[column] - other_rows[column]).abs().max() for column in floats}
        return [f"{name}: {error}; largest differences: { ({c: gap for c, gap in gaps.items() if gap}) }"]
    return []
