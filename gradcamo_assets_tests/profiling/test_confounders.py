from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.profiling import confounder_audit
from gradcamo_assets_tests.profiling.frames import embeddings

# Treatments cross rows and columns, so that each target can be told from the others.
LAYOUT = {f"{row}{column:02d}": ("DMSO" if (i + column) % 2 else "x", 1.0)
          for i, row in enumerate("ABCD") for column in range(1, 5)}  # fmt: skip


def _scores(table: pl.DataFrame, plate: str | None = "P1") -> dict[tuple[str, str], dict]:
    audit = confounder_audit(table, seed=0).filter(pl.col("Metadata_Plate").eq_missing(pl.lit(plate)))
    return {(row["target"], row["representation"]): row for row in audit.iter_rows(named=True)}


def test_noise_is_at_chance():
    rng = np.random.default_rng(0)
    found = _scores(embeddings(LAYOUT, lambda *_: rng.normal(size=5), cells=15))
    assert {target for target, _ in found} == {"treatment", "site", "well_row", "well_column"}
    for row in found.values():
        assert abs(row["score"] - row["chance"]) < 0.12
        assert row["n"] == 480
    assert found["well_row", "embedding"]["chance"] == 0.25


def test_a_planted_row_effect_is_found_and_nothing_else():
    rng = np.random.default_rng(0)
    found = _scores(
        embeddings(LAYOUT, lambda p, well, s, c, d: rng.normal(size=5) + 6 * np.eye(5)["ABCD".index(well[0])], cells=8)
    )
    assert found["well_row", "embedding"]["score"] > 0.95
    assert found["well_row", "cell_count"]["score"] < 0.5
    assert found["treatment", "embedding"]["score"] < 0.65


def test_memorised_wells_do_not_pass_for_treatments():
    # Each well has an offset of its own: a probe validated over cells would read the treatment off the well.
    offsets = {well: np.random.default_rng(i).normal(size=12) * 9 for i, well in enumerate(LAYOUT)}
    rng = np.random.default_rng(0)
    found = _scores(embeddings(LAYOUT, lambda p, well, *_: offsets[well] + rng.normal(size=12) * 0.1))
    assert found["treatment", "embedding"]["score"] < 0.8


def test_cell_density_alone_can_give_the_treatment_away():
    table = embeddings(LAYOUT, lambda *_: np.zeros(3) + 1, cells=12)
    table = table.with_columns(pl.int_range(pl.len()).over("Metadata_Well", "Metadata_Site").alias("k"))
    found = _scores(table.filter((pl.col("Metadata_Compound") == "DMSO") | (pl.col("k") < 4)).drop("k"))
    assert found["treatment", "cell_count"]["score"] > 0.95
    assert found["treatment", "embedding"]["score"] <= 0.5


def test_plates_are_probed_together_as_well():
    rng = np.random.default_rng(0)
    table = embeddings(LAYOUT, lambda plate, *_: rng.normal(size=4) + 5 * (plate == "P2"), plates=("P1", "P2"), cells=3)
    assert _scores(table, None)["plate", "embedding"]["score"] > 0.95
    assert ("plate", "embedding") not in _scores(table, "P1")


def test_nothing_to_probe_gives_an_empty_table():
    one = embeddings({"A01": ("x", 1.0)}, lambda *_: np.ones(3), sites=1)
    assert confounder_audit(one).is_empty()
    assert confounder_audit(one.clear()).columns == confounder_audit(one).columns
