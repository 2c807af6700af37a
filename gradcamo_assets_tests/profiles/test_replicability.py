from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.profiles import replicate_map, well_profiles
from gradcamo_assets_tests.profiles.frames import embeddings


def _profiles(seed: int = 0):
    rng = np.random.default_rng(seed)
    wells = {f"{row}{column:02d}": ("DMSO" if column < 3 else f"c{column}", 0.0 if column < 3 else 1.0)
             for row in "ABC" for column in range(1, 7)}  # fmt: skip
    wells["D01"] = ("single", 1.0)
    effect = {"c3": np.array([8.0, 0, 0, 0]), "c4": np.array([0, 8.0, 0, 0])}
    return well_profiles(
        embeddings(wells, lambda p, w, s, compound, d: effect.get(compound, 0) + rng.normal(size=4), cells=1, sites=1)
    )


def test_mean_average_precision_equals_a_loop_over_rankings():
    profiles = _profiles()
    x = np.array(profiles["profile"].to_list())
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    compounds = profiles["Metadata_Compound"].to_list()
    expected: dict[str, list[float]] = {}
    for i, compound in enumerate(compounds):
        ranking = [j for j in np.argsort(-(unit @ unit[i]), kind="stable") if j != i]
        hits = [compounds[j] == compound for j in ranking]
        if any(hits):
            precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits)) if hits[k]]
            expected.setdefault(compound, []).append(float(np.mean(precisions)))
    found = replicate_map(profiles)
    assert set(found["Metadata_Compound"]) == set(expected)
    for row in found.iter_rows(named=True):
        assert row["mean_average_precision"] == pytest.approx(np.mean(expected[row["Metadata_Compound"]]), abs=1e-5)
        assert row["n_wells"] == compounds.count(row["Metadata_Compound"])
        assert 0 < row["p_value"] <= 1


def test_replicable_treatments_stand_out():
    found = {row["Metadata_Compound"]: row for row in replicate_map(_profiles()).iter_rows(named=True)}
    assert found["c3"]["mean_average_precision"] == pytest.approx(1)
    assert found["c3"]["p_value"] < 0.01 < found["DMSO"]["p_value"]


def test_too_few_replicates_give_an_empty_table_of_the_same_schema():
    profiles = _profiles()
    alone = profiles.unique("Metadata_Compound")
    one_treatment = profiles.filter(Metadata_Compound="DMSO")
    for table in (alone, one_treatment, profiles.clear()):
        assert replicate_map(table).is_empty()
        assert replicate_map(table).schema == replicate_map(profiles).schema


def test_populations_are_ranked_separately_and_training_wells_are_counted():
    profiles = _profiles().with_columns(split=pl.when(pl.col("Metadata_Well") < "B").then(pl.lit("train")))
    other = _profiles(1).with_columns(population=pl.lit("on_target"), split=pl.lit("test"))
    both = replicate_map(pl.concat([profiles, other]))
    for part in (profiles, other):
        alone = replicate_map(part)
        assert both.filter(population=part["population"][0]).equals(alone)
    assert both.filter(population="on_target")["trained_share"].unique().to_list() == [0]
    assert replicate_map(_profiles())["trained_share"].null_count() == len(replicate_map(_profiles()))
