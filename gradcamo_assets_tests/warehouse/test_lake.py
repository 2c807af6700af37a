"""The lake keeps what fits its tables, under the key that it belongs to, whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from gradcamo_assets.common.errors import GradcamoError, PlateError, StoreError
from gradcamo_assets.warehouse import LAKE_TABLES, Key, Lake
from gradcamo_assets_tests.warehouse import rows


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def found() -> pl.DataFrame:
    return rows.cells(np.random.default_rng(0), "P1", 1, 30)


def test_what_is_written_is_read_under_its_key_only(lake: Lake, found: pl.DataFrame) -> None:
    other = rows.cells(np.random.default_rng(1), "P1", 2, 5)
    lake.write("cells", found, plate="P1", site=1)
    lake.write("cells", other, plate="P1", site=2)
    assert_frame_equal(lake.read("cells", site=1), found)
    assert_frame_equal(lake.read("cells", plate="P1"), pl.concat([found, other]))
    assert lake.keys("cells") == [Key("cells", "P1", 1), Key("cells", "P1", 2)]
    assert lake.read("cells", plate="P2").schema == found.schema
    assert lake.drop("cells", site=1) == 1
    assert_frame_equal(lake.read("cells"), other)


def test_no_rows_can_be_written(lake: Lake, found: pl.DataFrame) -> None:
    scores = rows.scores(np.random.default_rng(0), found, 3)
    with pytest.raises(StoreError, match="model_name"):
        lake.write("scores", scores, plate="P1", site=1, model_version=3)
    lake.write("scores", scores.clear(), plate="P1", site=1, model_name="hepg2", model_version=3)
    assert lake.keys("scores") == [Key("scores", "P1", 1, "hepg2", 3)]
    assert lake.read("scores").is_empty()


def test_every_key_comes_back_from_its_path() -> None:
    for name, table in LAKE_TABLES.items():
        values = {"plate": "P.1-a_b", "site": 12, "model_name": "m", "model_version": 3}
        key = Key(name, **{part: values[part] for part in table.keys})
        assert Key.of_path(key.path) == key
    assert Key.of_path("scores/all.parquet") is None
    assert Key.of_path("cells/plate=P1/site=one.parquet") is None
    assert Key.of_path("embeddings/none.parquet") is None


def test_misfits_are_named(lake: Lake, found: pl.DataFrame) -> None:
    def refused(frame: pl.DataFrame, match: str) -> None:
        with pytest.raises(StoreError, match=match):
            lake.write("cells", frame, plate="P1", site=1)

    refused(found.drop("label", "n_nuclei"), "missing columns label, n_nuclei")
    refused(found.with_columns(colour=pl.lit("red")), "unknown columns colour")
    refused(found.with_columns(label=pl.lit("one")), "label is String where Int32 is wanted")
    refused(found.with_columns(Metadata_Well=pl.lit(None, pl.String)), "Metadata_Well is NULL in 30 rows")
    refused(found.with_columns(Metadata_pert_type=pl.lit("dose")), "Metadata_pert_type holds dose")
    refused(pl.concat([found, found.head(2)]), "4 rows share Metadata_CellID")
    refused(found.with_columns(label=pl.lit(2**40)), "does not fit")
    assert not list(lake.root.rglob("*.parquet"))


def test_rows_must_lie_in_their_key(lake: Lake, found: pl.DataFrame) -> None:
    with pytest.raises(StoreError, match="Metadata_Site 1"):
        lake.write("cells", found, plate="P1", site=2)
    with pytest.raises(StoreError, match="Give site too"):
        lake.write("cells", found, plate="P1")
    with pytest.raises(StoreError, match="not filed by model_version"):
        lake.write("cells", found, plate="P1", site=1, model_version=1)
    with pytest.raises(StoreError, match="whole number"):
        lake.write("cells", found, plate="P1", site="../1")
    with pytest.raises(PlateError):
        lake.write("cells", found, plate="../P1", site=1)
    with pytest.raises(PlateError):
        lake.read("cells", plate="../P1")
    with pytest.raises(GradcamoError, match="model name"):
        lake.keys("scores", model_name="a/b")
    with pytest.raises(StoreError, match="no table"):
        lake.read("cell")


def test_types_of_one_family_are_taken(lake: Lake, found: pl.DataFrame) -> None:
    zone = timezone(timedelta(hours=2))
    scores = rows.scores(np.random.default_rng(0), found, 1).with_columns(
        pl.col("Metadata_Site").cast(pl.UInt8),
        pl.col("looks_at").cast(pl.Categorical),
        pl.col("probability").cast(pl.Float32),
        true_class=pl.lit(None),
        neighbour_fraction=pl.lit(float("nan")),
        scored_at=pl.lit(datetime(2026, 1, 1, 12, tzinfo=zone)),
    )
    backwards = scores.select(reversed(scores.columns))
    lake.write("scores", backwards, plate="P1", site=np.int64(1), model_name="hepg2", model_version=1)
    read = lake.read("scores")
    assert dict(read.schema) == LAKE_TABLES["scores"].polars
    assert read["scored_at"][0] == datetime(2026, 1, 1, 10)
    assert read["neighbour_fraction"].null_count() == len(read)


def test_a_fixed_length_array_becomes_a_list(lake: Lake, found: pl.DataFrame) -> None:
    keys = found.select(pl.col("^Metadata_.*$")).with_columns(model_name=pl.lit("m"), model_version=pl.lit(1))
    vectors = np.random.default_rng(0).normal(size=(len(keys), 7))
    frame = keys.with_columns(embedding=pl.Series(vectors))
    lake.write("embeddings", frame, plate="P1", site=1, model_name="m", model_version=1)
    assert lake.read("embeddings").schema["embedding"] == pl.List(pl.Float32)


def test_append_replaces_the_same_row_and_loses_none_to_a_race(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda v: lake.append("models", rows.model(v)), [*range(1, 13), *range(1, 13)]))
    assert sorted(lake.read("models")["model_version"]) == list(range(1, 13))
    with pytest.raises(StoreError, match="key by key"):
        lake.append("cells", LAKE_TABLES["cells"].empty())


def test_a_damaged_file_is_named(lake: Lake, found: pl.DataFrame) -> None:
    lake.write("cells", found, plate="P1", site=1).write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match="cells cannot be read"):
        lake.read("cells")


def test_files_of_an_earlier_release_are_read_with_the_new_columns_empty(lake: Lake, found: pl.DataFrame) -> None:
    lake.write("cells", found, plate="P1", site=1)
    lake.write("cells", rows.cells(np.random.default_rng(1), "P1", 2, 5), plate="P1", site=2)
    path = lake.root / Key("cells", "P1", 1).path
    found.drop("Metadata_Compound").with_columns(gone=pl.lit(1)).write_parquet(path)
    read = lake.read("cells", plate="P1")
    assert read.columns == found.columns and read["Metadata_Compound"].null_count() == found.height
    assert lake.read("cells", plate="P1", site=1)["label"].to_list() == found["label"].to_list()
