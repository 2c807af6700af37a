"""Out-of-date partitions, compared with a loop over partitions."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.defs.automation.pending import partitions_to_process, partitions_to_score
from gradcamo_assets.tables import Lake, lake_table
from gradcamo_assets.training.model_registry import ModelVersion

CHAMPION = ModelVersion("encoder", 2, "champion", "nowhere")
STAGES = ("image", "mask", "cell", "crop")
_partitions = st.tuples(st.sampled_from(["P", "Q.2"]), st.integers(1, 2))
_stage = st.dictionaries(
    _partitions, st.tuples(st.sampled_from("abc"), st.sampled_from([*"abc", None]), st.integers(0, 2)), min_size=1
)
"""By partition: its version, the version of its input (None: it is being written), and the number of items."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(tmp_path_factory.mktemp("lake"))


def put(lake: Lake, table: str, rows: dict, **of_runs: dict) -> None:
    """Replace the rows of a version table; ``of_runs``: the rows by MLflow run."""
    frame = [
        {
            "Metadata_Plate": plate, "Metadata_Site": site, "model_run": run, "version": version,
            "made_from": made_from, "n": n,
        }
        for run, rows_of_run in {"": rows, **of_runs}.items()
        for (plate, site), (version, made_from, n) in rows_of_run.items()
    ]  # fmt: skip
    columns = lake_table(table).schema
    lake.replace(table, pl.DataFrame([{name: row[name] for name in columns} for row in frame], schema=columns))


@given(crops=_stage, scored=_stage, others=_stage)
def test_partitions_to_score(lake: Lake, crops: dict, scored: dict, others: dict) -> None:
    put(lake, "crop_versions", crops)
    put(lake, "score_versions", {}, champion=scored, another=others)
    expected = {}
    for partition, (version, whole, n) in sorted(crops.items()):
        _, made_from, has_scores = scored.get(partition, (None, None, 0))
        if whole and made_from != version and (n or has_scores):
            expected[partition] = version
    todo = partitions_to_score(lake, CHAMPION)
    assert list(todo.items()) == list(expected.items())
    done = {partition: ("s", version, crops[partition][2]) for partition, version in todo.items()}
    put(lake, "score_versions", {}, champion={**scored, **done}, another=others)
    assert partitions_to_score(lake, CHAMPION) == {}


@given(st.tuples(_stage, _stage, _stage, _stage))
def test_partitions_to_process(lake: Lake, stages: tuple[dict, ...]) -> None:
    for stage, rows in zip(STAGES, stages, strict=True):
        put(lake, f"{stage}_versions", rows)
    expected = []
    for partition, (image, _, n) in sorted(stages[0].items()):
        version: str | None = image
        for rows in stages[1:]:
            made, made_from, _ = rows.get(partition, (None, None, 0))
            version = made if version is not None and made_from == version else None
        if n and version is None:
            expected.append(partition)
    todo = partitions_to_process(lake)
    assert list(todo) == expected
    if expected:  # The digest that attempts are counted by depends on the masks, not on the table of cells.
        plate, site = expected[0]
        for version, made_from in (("d", "a"), ("x", None)):
            lake.record_version("cell_versions", version, made_from, 1, plate=plate, site=site)
            assert partitions_to_process(lake) == todo
        lake.record_version("mask_versions", "d", "a", 1, plate=plate, site=site)
        now = partitions_to_process(lake)
        assert now.pop((plate, site)) != todo.pop((plate, site)) and now == todo


def test_an_empty_lake_has_nothing_to_do(tmp_path: Path) -> None:
    empty = Lake(tmp_path)
    assert partitions_to_process(empty) == partitions_to_score(empty, CHAMPION) == {}
