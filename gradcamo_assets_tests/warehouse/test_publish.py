"""Publication replaces what changed and nothing else, equals a rebuild, and survives damage."""

from __future__ import annotations

import os
import time
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradcamo_assets.common.errors import StoreError
from gradcamo_assets.warehouse import Key, Lake, publish, run_sql, violations
from gradcamo_assets_tests.warehouse import rows
from gradcamo_assets_tests.warehouse.published import assert_equals_the_lake, count


def test_only_what_changed_is_replaced(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake"), tmp_path / "qc.duckdb"
    first = publish(lake, database)
    assert first.rebuilt and first.plates == ("P1", "P2")
    assert database.stat().st_mode & 0o777 == 0o444
    before = database.stat().st_ino, database.stat().st_mtime_ns
    assert not publish(lake, database).changed
    assert (database.stat().st_ino, database.stat().st_mtime_ns) == before
    rows.put(lake, np.random.default_rng(5), "P2", 1, 2)
    second = publish(lake, database)
    assert second.changed == (Key("scores", "P2", 1, "hepg2", 2),) and not second.rebuilt
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")
    assert violations(database) == []
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == [
        "fresh.duckdb",
        "lake",
        "qc.duckdb",
    ]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["score", "resegment", "drop scores", "drop plate", "promote", "publish", "unscored"]),
        st.sampled_from(["P1", "P2"]),
        st.integers(1, 2),
        st.integers(1, 2),
    ),
    min_size=2,
    max_size=7,
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, seed=st.integers(0, 1000))
def test_incremental_publication_equals_a_rebuild(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, int, int]], seed: int
) -> None:
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(seed)
    lake, database = Lake(home / "lake"), home / "qc.duckdb"
    for minute, (what, plate, site, version) in enumerate(operations):
        if what == "score":
            rows.put(lake, rng, plate, site, version, n=25)
        elif what == "resegment":
            lake.write("cells", rows.cells(rng, plate, site, 25, masks=f"m{minute}"), plate=plate, site=site)
        elif what == "drop scores":
            lake.drop("scores", plate=plate, site=site)
        elif what == "drop plate":
            for table in ("cells", "scores"):
                lake.drop(table, plate=plate)
        elif what == "promote":
            lake.append("promotions", rows.promotion(version, minute))
            lake.append("models", rows.model(version))
        elif what == "unscored":
            keys = {"plate": plate, "site": site, "model_name": "hepg2", "model_version": version}
            row = dict(zip(("Metadata_Plate", "Metadata_Site", *list(keys)[2:]), keys.values(), strict=True))
            lake.write("unscored", rows.frame("unscored", [row | {"reason": "four channels"}]), **keys)  # type: ignore[arg-type]
        else:
            publish(lake, database)
    publish(lake, database)
    assert_equals_the_lake(lake, database, home / "fresh.duckdb")
    assert violations(database) == []


def test_checking_some_plates_finds_what_is_wrong_in_them(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", versions=1), tmp_path / "qc.duckdb"
    moment = time.time() - 60
    for path in lake.root.rglob("*.parquet"):
        os.utime(path, (moment, moment))
    good = lake.read("scores", plate="P2", site=1)
    broken = good.with_columns(gradcamo_max=pl.col("gradcamo") - 0.1)
    lake.write("scores", broken, plate="P2", site=1, model_name="hepg2", model_version=1)
    publish(lake, database)
    assert lake.plates_written_since(moment + 1) == {"P2"} and lake.plates_written_since(moment) == {"P1", "P2"}
    assert violations(database, ["P1"]) == violations(database, []) == []
    assert violations(database, ["P2"]) == violations(database) != []


@pytest.mark.parametrize("before", [["P1"], ["P2"], ["P1", "P2"]])
def test_files_from_before_a_column_was_known_have_null_in_it(tmp_path: Path, before: list[str]) -> None:
    lake, database = rows.filled(tmp_path / "lake", sites=1, versions=1), tmp_path / "qc.duckdb"
    for plate in ("P1", "P2"):
        found = lake.read("cells", plate=plate, site=1).with_columns(solidity=0.5)
        path = lake.write("cells", found, plate=plate, site=1)
        if plate in before:
            found.drop("solidity", "mean_intensity").write_parquet(path)
    assert publish(lake, database).rebuilt
    expected = {plate: None if plate in before else 0.5 for plate in ("P1", "P2")}
    assert dict(lake.read("cells").select("Metadata_Plate", "solidity").unique().rows()) == expected
    assert dict(run_sql(database, "SELECT DISTINCT Metadata_Plate, solidity FROM cells").rows()) == expected
    found.drop("label").write_parquet(path)
    with pytest.raises(StoreError, match="Make the partitions anew"):
        publish(lake, database)


@pytest.mark.parametrize("damage", ["written to", "truncated", "no database", "another schema", "moved lake"])
def test_a_file_that_cannot_be_built_upon_is_made_anew(tmp_path: Path, damage: str) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    database.chmod(0o644)
    if damage == "truncated":
        database.write_bytes(database.read_bytes()[:5000])
    elif damage == "no database":
        database.write_text("hello")
    elif damage == "moved lake":
        lake = Lake(lake.root.rename(tmp_path / "moved"))
    else:
        with duckdb.connect(database) as connection:
            if damage == "written to":
                connection.execute("DELETE FROM scores")
            else:
                connection.execute("DROP TABLE umap")
    assert publish(lake, database).rebuilt
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


def test_a_lake_file_replaced_in_between_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcamo_assets.warehouse import database as db

    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    original = db.replace_rows

    def dropping(connection, table, changed, present, root):  # type: ignore[no-untyped-def]
        if table.name == "scores":
            lake.drop("scores", plate="P1", site=1, model_version=1)
        original(connection, table, changed, present, root)

    monkeypatch.setattr(db, "replace_rows", dropping)
    publish(lake, database)
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


def test_a_damaged_lake_file_leaves_the_old_database(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    before = count(database)
    (lake.root / lake.keys("scores")[0].path).write_bytes(b"not parquet")
    with pytest.raises(StoreError, match="lake's files of scores"):
        publish(lake, database)
    assert count(database) == before


def test_embeddings_are_read_from_the_lake_wherever_the_reader_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, database = Lake(tmp_path / "it's a [lake]*"), tmp_path / "deep" / "qc.duckdb"
    assert publish(lake, database).rebuilt
    assert run_sql(database, "SELECT * FROM embeddings").is_empty()
    found = rows.cells(np.random.default_rng(0), "P1", 1, 4)
    keys = found.select(pl.col("^Metadata_.*$")).with_columns(model_name=pl.lit("m"), model_version=pl.lit(1))
    for version, length in ((1, 3), (2, 5)):
        frame = keys.with_columns(pl.lit(version).alias("model_version"), embedding=pl.lit(np.zeros(length).tolist()))
        lake.write("embeddings", frame, plate="P1", site=1, model_name="m", model_version=version)
    lengths = "SELECT model_version, any_value(len(embedding)) FROM embeddings GROUP BY ALL ORDER BY ALL"
    monkeypatch.chdir("/")
    assert run_sql(database, lengths).rows() == [(1, 3), (2, 5)]


def test_publications_in_one_second_are_told_apart(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1, sites=1, versions=1), tmp_path / "qc.duckdb"
    for seed in range(3):
        rows.put(lake, np.random.default_rng(seed), "P1", 1, 1)
        publish(lake, database)
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")
