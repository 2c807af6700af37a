from __future__ import annotations

from collections import Counter
from itertools import combinations, groupby, permutations, product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.plates import read_plate_map
from gradcamo_assets.profiles import replicate_map, well_profiles
from gradcamo_assets.profiles.replicability import expected_precision
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


def _precision(hits: tuple[bool, ...]) -> float:
    return float(np.mean([sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]))


@given(st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.3]), st.booleans()), min_size=1, max_size=6))
def test_ties_are_worth_the_mean_over_all_orders(items: list[tuple[float, bool]]):
    items = [*items, (0.3, True)]
    groups = [list(group) for _, group in groupby(sorted(items, key=lambda item: -item[0]), key=lambda item: item[0])]
    orders = product(*(permutations(group) for group in groups))
    expected = np.mean([_precision(tuple(hit for group in order for _, hit in group)) for order in orders])
    similarity, is_hit = (np.array(column) for column in zip(*items, strict=True))
    assert expected_precision(similarity, is_hit) == pytest.approx(expected)


def _equal_profiles(n_wells: dict[str, int], **vectors: list[float]) -> pl.DataFrame:
    names = [name for name, count in n_wells.items() for _ in range(count)]
    wells = {f"{row}{column:02d}": (name, 1.0) for name, (row, column) in
             zip(names, product("ABCDEFGH", range(1, 13)), strict=False)}  # fmt: skip
    default = np.random.default_rng(1).normal(size=4)
    return well_profiles(embeddings(wells, lambda p, w, s, name, d: vectors.get(name, default), cells=1, sites=1))


@pytest.mark.parametrize("vector", [None, [0.0] * 4, [1e-30, 2e-30, 0, 0]])
def test_profiles_that_are_all_alike_score_a_random_ranking(vector: list[float] | None):
    names = [f"c{number}" for number in range(6)]
    profiles = _equal_profiles(dict.fromkeys(names, 4), **({} if vector is None else dict.fromkeys(names, vector)))
    # 3 hits among 23 in all orders.
    expected = np.mean([
        np.mean([(hit + 1) / (place + 1) for hit, place in enumerate(places)]) for places in combinations(range(23), 3)
    ])  # fmt: skip
    found = replicate_map(profiles)
    assert found["mean_average_precision"].to_list() == pytest.approx([expected] * 6)
    assert found["p_value"].min() > 0.2


def test_two_treatments_of_one_profile_are_not_replicable_by_the_order_of_their_wells():
    others = {f"c{number}": np.eye(6)[number].tolist() for number in range(2, 6)}
    profiles = _equal_profiles({**dict.fromkeys(["a", "b"], 4), **dict.fromkeys(others, 2)}, a=np.eye(6)[0].tolist(),
                               b=(3 * np.eye(6)[0]).tolist(), **others)  # fmt: skip
    # 3 hits among 7 ties at the top, in all orders.
    expected = np.mean([
        np.mean([(hit + 1) / (place + 1) for hit, place in enumerate(places)]) for places in combinations(range(7), 3)
    ])  # fmt: skip
    for order in (profiles, profiles.reverse()):
        found = {row["Metadata_Compound"]: row for row in replicate_map(order).iter_rows(named=True)}
        assert [found[name]["mean_average_precision"] for name in "ab"] == pytest.approx([expected] * 2)


def test_the_p_value_counts_random_rankings_that_are_as_good():
    # Of two pairs of wells, each well ranks three others: by chance its replicate is first in a third of all rankings.
    profiles = _equal_profiles({"a": 2, "b": 2}, a=[1, 0, 0, 0], b=[0, 1, 0, 0])
    found = replicate_map(profiles)
    assert found["mean_average_precision"].to_list() == [1, 1]
    assert found["p_value"].to_list() == pytest.approx([1 / 3] * 2, abs=0.04)


def test_doses_that_differ_by_rounding_are_replicates(tmp_path: Path):
    doses = {"A01": "10", "A02": "9.9999999", "A03": "10.0000001", "A04": "10", "B01": "1", "B02": "1.00000000003"}
    path = tmp_path / "map.csv"
    path.write_text("well,compound,dose_um\n" + "".join(f"{well},x,{dose}\n" for well, dose in doses.items()))
    treatments = read_plate_map(path, list(doses)).frame
    rng = np.random.default_rng(0)
    profiles = well_profiles(
        embeddings(dict.fromkeys(doses, ("x", 0.0)), lambda *_: rng.normal(size=3), cells=1, sites=1)
    ).update(treatments, on="Metadata_Well", how="left")
    found = replicate_map(profiles).sort("Metadata_Dose")
    assert found.select("Metadata_Dose", "n_wells").rows() == [(1.0, 2), (10.0, 4)]
    assert Counter(profiles["Metadata_Dose_Rank"]) == {1: 2, 2: 4}
