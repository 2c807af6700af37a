"""Which wells an encoder may learn from: parts are disjoint by well, or by plate or layout, every class in training."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import polars as pl

from gradcamo_assets.errors import GradcamoError

PARTS = ("train", "val", "test")
Apart = Literal["well", "plate", "position"]
_UNITS = {
    "well": ["Metadata_Plate", "Metadata_Well"],
    "plate": ["Metadata_Plate"],
    "position": ["Metadata_Well"],
}


def split_wells(
    cells: pl.DataFrame,
    *,
    seed: int = 0,
    val_fraction: float = 0.17,
    test_fraction: float = 0.33,
    apart: Apart = "well",
) -> pl.DataFrame:
    """Assign every well to train, validation or test.

    What is kept apart is dealt class by class, so that classes are in each part in proportion. A class of one well is
    trained on only, one of two wells has no validation well. Where wells (or plates) hold many classes, as in a pooled
    screen, they are dealt as one, and none leaves training that is the last of a class there.

    Args:
        cells: kept cells, with ``Metadata_Plate``, ``Metadata_Well`` and ``treatment_class`` (NULL: not trained on).
        apart: what no two parts share: a ``well``; a whole ``plate``, so that the test asks about plates not seen; or
            a ``position``, the same well of every plate, so that no layout effect is learned and tested alike.

    Returns:
        ``Metadata_Plate``, ``Metadata_Well``, ``split``, sorted; wells without a class are left out.

    Raises:
        GradcamoError: if fewer than two classes have a training well, there is no such ``apart``, or plates (positions)
            are too few for any to be held out.
    """
    if apart not in _UNITS:
        raise GradcamoError(f"wells cannot be kept apart by {apart!r}", f"Choose one of {', '.join(_UNITS)}.")
    labelled = cells.drop_nulls("treatment_class")
    units = (
        labelled.group_by(_UNITS[apart])
        .agg(pl.col("treatment_class").unique().sort())
        .with_columns(
            stratum=pl.when(pl.col("treatment_class").list.len() == 1)
            .then(pl.col("treatment_class").list.first())
            .otherwise(pl.lit("pooled"))
        )
        .sort(_UNITS[apart])
    )
    trained = Counter(units["treatment_class"].explode().to_list() if len(units) else [])
    if len(trained) < 2:
        raise GradcamoError(
            f"cells of {len(trained)} treatment class(es) cannot train an encoder",
            "Give the plate a plate map with at least two treatments and materialise its cells again.",
        )
    rng = np.random.default_rng(seed)
    parts: list[pl.DataFrame] = []
    for (_,), stratum in sorted(units.group_by("stratum"), key=lambda group: str(group[0])):
        n = len(stratum)
        n_test = min(max(1, round(n * test_fraction)), n - 1) if n > 1 else 0
        n_val = max(1, round(n * val_fraction)) if n - n_test > 1 else 0
        wanted = ["val"] * n_val + ["test"] * n_test
        labels, classes = ["train"] * n, stratum["treatment_class"].to_list()
        for index in np.argsort(rng.permutation(n)):
            if wanted and all(trained[name] > 1 for name in classes[index]):
                labels[index] = wanted.pop()
                trained.subtract(classes[index])
        parts.append(stratum.with_columns(split=pl.Series(labels)))
    dealt = pl.concat(parts)
    if apart != "well" and "test" not in dealt["split"]:
        raise GradcamoError(
            f"of {len(dealt)} {apart}(s) none can be held out without a class leaving the training",
            f"Take more plates with the same treatments, or keep wells apart instead of {apart}s.",
        )
    wells = labelled.select("Metadata_Plate", "Metadata_Well").unique()
    return (
        wells.join(dealt, on=_UNITS[apart])
        .select("Metadata_Plate", "Metadata_Well", "split")
        .sort("Metadata_Plate", "Metadata_Well")
    )


def as_lists(split: pl.DataFrame) -> dict[str, list[str]]:
    """The split as ``{"train": ["plate/A01", ...], "val": ..., "test": ...}``, as a bundle records it."""
    names = split.with_columns(name=pl.format("{}/{}", "Metadata_Plate", "Metadata_Well"))
    return {part: names.filter(pl.col("split") == part)["name"].sort().to_list() for part in PARTS}
