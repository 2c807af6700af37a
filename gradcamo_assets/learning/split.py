"""Which wells an encoder may learn from: parts are disjoint by well, every class in each if it can be."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.common.errors import GradcamoError

PARTS = ("train", "val", "test")


def split_wells(
    cells: pl.DataFrame, *, seed: int = 0, val_fraction: float = 0.17, test_fraction: float = 0.33
) -> pl.DataFrame:
    """Assign every well to train, validation or test.

    Wells are dealt class by class, so that classes are in each part in proportion. A class of one well is trained on
    only, one of two wells has no validation well. In a pooled screen a well holds many classes; wells are dealt as one.

    Args:
        cells: kept cells, with ``Metadata_Plate``, ``Metadata_Well`` and ``treatment_class`` (NULL: not trained on).

    Returns:
        ``Metadata_Plate``, ``Metadata_Well``, ``split``, sorted; wells without a class are left out.

    Raises:
        GradcamoError: if fewer than two classes have a training well.
    """
    wells = (
        cells.drop_nulls("treatment_class")
        .group_by("Metadata_Plate", "Metadata_Well")
        .agg(pl.col("treatment_class").unique().sort())
        .with_columns(
            stratum=pl.when(pl.col("treatment_class").list.len() == 1)
            .then(pl.col("treatment_class").list.first())
            .otherwise(pl.lit("pooled"))
        )
        .sort("Metadata_Plate", "Metadata_Well")
    )
    classes = set(wells["treatment_class"].explode().to_list()) if len(wells) else set()
    if len(classes) < 2:
        raise GradcamoError(
            f"cells of {len(classes)} treatment class(es) cannot train an encoder",
            "Give the plate a plate map with at least two treatments and materialise its cells again.",
        )
    rng = np.random.default_rng(seed)
    parts: list[pl.DataFrame] = []
    for (_,), stratum in sorted(wells.group_by("stratum"), key=lambda group: str(group[0])):
        n = len(stratum)
        n_test = min(max(1, round(n * test_fraction)), n - 1) if n > 1 else 0
        n_val = max(1, round(n * val_fraction)) if n - n_test > 1 else 0
        labels = np.array(["test"] * n_test + ["val"] * n_val + ["train"] * (n - n_test - n_val))
        parts.append(stratum.with_columns(split=pl.Series(labels[rng.permutation(n)])))
    return pl.concat(parts).select("Metadata_Plate", "Metadata_Well", "split").sort("Metadata_Plate", "Metadata_Well")


def as_lists(split: pl.DataFrame) -> dict[str, list[str]]:
    """The split as ``{"train": ["plate/A01", ...], "val": ..., "test": ...}``, as a bundle records it."""
    names = split.with_columns(name=pl.format("{}/{}", "Metadata_Plate", "Metadata_Well"))
    return {part: names.filter(pl.col("split") == part)["name"].sort().to_list() for part in PARTS}
