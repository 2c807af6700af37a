"""Split wells into training, validation and test: disjoint by well, plate or position, every class in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl

from gradcamo_assets.errors import GradcamoError

PARTS = ("train", "val", "test")
SplitUnit = Literal["well", "plate", "position"]
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
    apart: SplitUnit = "well",
    test_plates: Sequence[str] = (),
) -> pl.DataFrame:
    """Assign every well to train, validation or test.

    The units (wells, plates or positions) are assigned class by class, so that each part has the classes in proportion.
    A class with one well is used for training only; a class with two wells has no validation well. Units with several
    classes, as in a pooled screen, are assigned together, and the last training unit of a class stays in training.

    Args:
        cells: kept cells, with ``Metadata_Plate``, ``Metadata_Well`` and ``treatment_class`` (NULL: not trained on).
        seed: of the random assignment.
        val_fraction, test_fraction: share of the units of each class, at least one unit; 0: none.
        apart: the unit that no two parts share: a ``well``; a whole ``plate``, to test on unseen plates; or a
            ``position``, the same well of every plate, so that a layout effect cannot be learned and tested alike.
        test_plates: plates to test on, for example those of another batch; then no well of another plate is tested.

    Returns:
        ``Metadata_Plate``, ``Metadata_Well``, ``split``, sorted. Wells without a class are left out.

    Raises:
        GradcamoError: if ``apart`` or a test plate is unknown, fewer than two classes have a training well, or no plate
            (position) can be held out.
    """
    if apart not in _UNITS:
        raise GradcamoError(f"apart must be one of {', '.join(_UNITS)}, got {apart!r}", "Choose one of these.")
    labelled = cells.drop_nulls("treatment_class")
    unknown = sorted(set(test_plates) - set(labelled["Metadata_Plate"]))
    if unknown:
        raise GradcamoError(f"no cell with a treatment is on test plate {', '.join(unknown)}", "Correct test_plates.")
    is_test = pl.col("Metadata_Plate").is_in(list(test_plates))
    wells_of_test_plates = labelled.filter(is_test).select("Metadata_Plate", "Metadata_Well", split=pl.lit("test"))
    if test_plates:
        labelled, test_fraction = labelled.filter(~is_test), 0.0
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
    training_units = Counter(units["treatment_class"].explode().to_list() if len(units) else [])
    if len(training_units) < 2:
        raise GradcamoError(
            f"training needs at least 2 treatment classes, the cells have {len(training_units)}",
            "Give the plate a plate map with at least two treatments and materialise its cells again.",
        )
    rng = np.random.default_rng(seed)
    parts: list[pl.DataFrame] = []
    for (_,), stratum in sorted(units.group_by("stratum"), key=lambda group: str(group[0])):
        n = len(stratum)
        n_test = min(max(1, round(n * test_fraction)), n - 1) if n > 1 and test_fraction else 0
        n_val = max(1, round(n * val_fraction)) if n - n_test > 1 and val_fraction else 0
        held_out_parts = ["val"] * n_val + ["test"] * n_test
        labels, classes = ["train"] * n, stratum["treatment_class"].to_list()
        for index in np.argsort(rng.permutation(n)):
            if held_out_parts and all(training_units[name] > 1 for name in classes[index]):
                labels[index] = held_out_parts.pop()
                training_units.subtract(classes[index])
        parts.append(stratum.with_columns(split=pl.Series(labels)))
    assigned = pl.concat(parts)
    if apart != "well" and not test_plates and "test" not in assigned["split"]:
        raise GradcamoError(
            f"none of the {len(assigned)} {apart}(s) can be held out: each has the last training well of a class",
            "Use more plates with the same treatments, or set apart to 'well'.",
        )
    wells = labelled.select("Metadata_Plate", "Metadata_Well").unique()
    wells = wells.join(assigned, on=_UNITS[apart]).select("Metadata_Plate", "Metadata_Well", "split")
    return pl.concat([wells, wells_of_test_plates.unique()]).sort("Metadata_Plate", "Metadata_Well")


def part_of_well(split: Mapping[str, Sequence[str]], default: str | None = None) -> pl.Expr:
    """Expression for the part of each row's well, by the columns ``Metadata_Plate`` and ``Metadata_Well``.

    Args:
        split: as from ``as_lists``.
        default: for wells that are in no part.
    """
    part_of = {well: part for part, wells in split.items() for well in wells}
    well = pl.concat_str("Metadata_Plate", "Metadata_Well", separator="/")
    return well.replace_strict(part_of, default=default, return_dtype=pl.String)


def as_lists(split: pl.DataFrame) -> dict[str, list[str]]:
    """Convert a split to ``{"train": ["plate/A01", ...], "val": ..., "test": ...}``, the form used in a bundle."""
    names = split.with_columns(name=pl.format("{}/{}", "Metadata_Plate", "Metadata_Well"))
    return {part: names.filter(pl.col("split") == part)["name"].sort().to_list() for part in PARTS}
