from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.profiles import audit_confounders
from gradcamo_assets_tests.profiles.frames import embeddings

# Treatments are crossed with rows and columns, so that no target predicts another.
LAYOUT = {f"{row}{column:02d}": ("DMSO" if (i + column) % 2 else "x", 1.0)
          for i, row in enumerate("ABCD") for column in range(1, 5)}  # fmt: skip


def _scores(table: pl.DataFrame) -> dict[tuple[str, str], dict]:
    audit = audit_confounders(table, seed=0)
    return {(row["target"], row["representation"]): row for row in audit.iter_rows(named=True)}


def test_noise_scores_chance():
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


def test_well_offsets_do_not_count_as_treatments():
    # Each well has its own offset, so a probe validated over cells would infer the treatment from the well.
    offsets = {well: np.random.default_rng(i).normal(size=12) * 9 for i, well in enumerate(LAYOUT)}
    rng = np.random.default_rng(0)
    found = _scores(embeddings(LAYOUT, lambda p, well, *_: offsets[well] + rng.normal(size=12) * 0.1))
    assert found["treatment", "embedding"]["score"] < 0.8


def test_cell_density_alone_can_predict_the_treatment():
    table = embeddings(LAYOUT, lambda *_: np.zeros(3) + 1, cells=12)
    table = table.with_columns(cells_in_field=pl.when(Metadata_Compound="DMSO").then(12).otherwise(4))
    found = _scores(table)
    assert found["treatment", "cell_count"]["score"] > 0.95
    assert found["treatment", "embedding"]["score"] <= 0.5


def test_several_plates_are_probed_together():
    rng = np.random.default_rng(0)
    table = embeddings(LAYOUT, lambda plate, *_: rng.normal(size=4) + 5 * (plate == "P2"), plates=("P1", "P2"), cells=3)
    found = _scores(table)
    assert found["plate", "embedding"]["score"] > 0.95
    assert found["plate", "embedding"]["Metadata_Plate"] is None
    assert found["plate", "embedding"]["silhouette"] > found["site", "embedding"]["silhouette"]
    single_plate = _scores(table.filter(Metadata_Plate="P1"))
    assert ("plate", "embedding") not in single_plate
    assert single_plate["site", "embedding"]["Metadata_Plate"] == "P1"


def test_nothing_to_probe_gives_an_empty_table():
    single_well = embeddings({"A01": ("x", 1.0)}, lambda *_: np.ones(3), sites=1)
    assert audit_confounders(single_well).is_empty()
    assert audit_confounders(single_well.clear()).columns == audit_confounders(single_well).columns


def test_the_silhouette_equals_its_definition():
    rng = np.random.default_rng(0)
    table = embeddings(LAYOUT, lambda p, w, s, c, d: rng.normal(size=3) + 2 * (c == "x"), cells=2)
    found = _scores(table)["treatment", "embedding"]["silhouette"]
    # Principal components rotate the standardised columns, which preserves distances.
    x = np.array(table["embedding"].to_list())
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    groups = table["Metadata_Compound"].to_numpy()
    values = []
    for i in range(len(x)):
        distances_to = {
            name: [np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if groups[j] == name and j != i]
            for name in groups
        }
        own = np.mean(distances_to.pop(groups[i]))
        other = min(np.mean(distances) for distances in distances_to.values())
        values.append((other - own) / max(own, other))
    assert found == pytest.approx(np.mean(values), abs=1e-5)


def test_a_background_that_predicts_the_treatment_is_detected():
    rng = np.random.default_rng(0)
    table = embeddings(LAYOUT, lambda *_: rng.normal(size=3), cells=6)
    shift = (table["Metadata_Compound"] == "x").to_numpy()[:, None] * 5.0
    background = pl.Series((rng.normal(size=(len(table), 3)) + shift).tolist(), dtype=pl.List(pl.Float32))
    kept = pl.int_range(pl.len()) % 2 == 0
    found = _scores(table.with_columns(background=background).with_columns(pl.when(kept).then("background")))
    assert found["treatment", "background"]["score"] > 0.95 > found["treatment", "embedding"]["score"]
    assert found["treatment", "background"]["n"] * 2 == found["treatment", "embedding"]["n"]


def test_populations_are_probed_separately_and_training_cells_are_counted():
    rng = np.random.default_rng(0)
    noise = embeddings(LAYOUT, lambda *_: rng.normal(size=3), cells=4)
    signal = embeddings(LAYOUT, lambda p, w, s, c, d: rng.normal(size=3) + 5 * (c == "x"), cells=4)
    table = pl.concat([noise, signal.with_columns(population=pl.lit("on_target"))])
    table = table.with_columns(
        split=pl.when(pl.col("Metadata_Well") < "C").then(pl.lit("train")).otherwise(pl.lit("test"))
    )
    audit = audit_confounders(table).filter(target="treatment", representation="embedding").sort("population")
    assert audit["score"][0] < 0.7 < 0.95 < audit["score"][1]
    assert audit["trained_share"].to_list() == [0.5, 0.5]
