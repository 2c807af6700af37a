"""The lake accepts rows that fit its tables and replaces all rows with the same keys in one commit."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from polars.testing import assert_frame_equal

from gradcamo_assets.errors import GradcamoError, PlateError, StoreError
from gradcamo_assets.tables import LAKE_TABLES, Lake
from gradcamo_assets.tables.columns import KEY_COLUMNS
from gradcamo_assets_tests.tables import rows


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def cells() -> pl.DataFrame:
    return rows.cells(np.random.default_rng(0), "P1", 1, 30)


def scores_of(cells: pl.DataFrame, version: int = 1) -> pl.DataFrame:
    return rows.scores(np.random.default_rng(0), rows.kept(cells, rows.crops(cells)), version)


def assert_same_rows(one: pl.DataFrame, other: pl.DataFrame) -> None:
    assert_frame_equal(one, other, check_row_order=False, check_exact=True)


def test_rows_are_read_with_their_keys_only(lake: Lake, cells: pl.DataFrame) -> None:
    other = rows.cells(np.random.default_rng(1), "P1", 2, 5)
    lake.write("cells", cells, plate="P1", site=1)
    lake.write("cells", other, plate="P1", site=2)
    assert_same_rows(lake.read("cells", site=1), cells)
    assert_same_rows(lake.read("cells", plate="P1"), pl.concat([cells, other]))
    assert lake.read("cells", plate="P2").schema == cells.schema
    lake.write("cells", cells.head(3), plate="P1", site=1)
    assert_same_rows(lake.read("cells"), pl.concat([cells.head(3), other]))
    lake.drop("cells", site=1)
    assert_same_rows(lake.read("cells"), other)


def test_rows_are_always_read_in_the_same_order(lake: Lake) -> None:
    for site in range(1, 9):
        lake.write("cells", rows.cells(np.random.default_rng(site), "P1", site, 30), plate="P1", site=site)
    first = lake.read("cells", plate="P1")
    for _ in range(50):
        assert_frame_equal(lake.read("cells", plate="P1"), first, check_exact=True)


def write_crops(lake: Lake, frames: dict[str, pl.DataFrame], version: str) -> None:
    lake.write_stage("crop_versions", frames, version=version, made_from="c", n=len(frames), plate="P1", site=1)


def crop_version(lake: Lake) -> tuple[str, str | None]:
    row = lake.partition_version("crop_versions", plate="P1", site=1)
    assert row is not None
    return row["version"], row["made_from"]


def test_a_failed_writer_leaves_its_partition_out_of_date(lake: Lake, cells: pl.DataFrame) -> None:
    crops = rows.crops(cells)
    write_crops(lake, {"crops": crops}, "one")
    assert crop_version(lake) == ("one", "c")
    with pytest.raises(StoreError, match="do not fit"):
        write_crops(lake, {"crops": crops.head(3), "field_crops": crops}, "two")
    version, made_from = crop_version(lake)
    assert version not in ("one", "two") and made_from is None
    write_crops(lake, {"crops": crops}, "two")
    assert crop_version(lake) == ("two", "c")


@pytest.mark.parametrize("moment", ["rows", "version"])
def test_overlapping_writers_leave_the_partition_out_of_date(
    lake: Lake, cells: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    crops, write, partition_version = rows.crops(cells), Lake.write, Lake.partition_version
    happened: list[str] = []

    def overtake() -> None:
        happened.append(moment)
        write_crops(lake, {"crops": crops.head(2)}, "other")
        assert crop_version(lake) == ("other", "c")

    def overtaken(self: Lake, name: str, frame: pl.DataFrame, **keys: object) -> None:
        """The other writer starts and finishes while this one writes its rows."""
        if name == "crops" and not happened:
            overtake()
        write(self, name, frame, **keys)

    def overtaken_late(self: Lake, table: str, **keys: object) -> dict | None:
        """The other writer starts and finishes after this one checked that it is the only writer."""
        row = partition_version(self, table, **keys)
        if row and row["made_from"] is None and not happened:
            overtake()
        return row

    if moment == "rows":
        monkeypatch.setattr(Lake, "write", overtaken)
    else:
        monkeypatch.setattr(Lake, "partition_version", overtaken_late)
    with pytest.raises(StoreError, match="at the same time"):
        write_crops(lake, {"crops": crops}, "own")
    assert happened and crop_version(lake)[1] is None
    write_crops(lake, {"crops": crops}, "own")
    assert crop_version(lake) == ("own", "c")


@pytest.mark.parametrize("name", LAKE_TABLES)
def test_every_table_returns_the_rows_written(lake: Lake, name: str) -> None:
    table = LAKE_TABLES[name]
    values = {pl.String: "a", pl.Int32: 1, pl.Int64: 2, pl.Float64: 0.5, pl.Boolean: True, pl.List: []}
    row = {column.name: (column.allowed or [values.get(column.dtype.base_type())])[0] for column in table.columns}
    row |= {name: rows.NOW for name, kind in table.schema.items() if kind == pl.Datetime}
    written = pl.DataFrame([row], schema=table.schema)
    lake.replace(name, written)
    keys = {key: row[KEY_COLUMNS[key]] for key in table.keys}
    if keys:
        lake.write(name, written, **keys)
    assert_frame_equal(lake.read(name, **keys), written)


def test_an_empty_frame_can_be_written(lake: Lake, cells: pl.DataFrame) -> None:
    scores = scores_of(cells, 3)
    with pytest.raises(StoreError, match="Give plate too"):
        lake.write("scores", scores, site=1, model_run=rows.run_of(3))
    lake.write("scores", scores, plate="P1", site=1, model_run=rows.run_of(3))
    lake.write("scores", scores.clear(), plate="P1", site=1, model_run=rows.run_of(3))
    assert lake.read("scores").is_empty()


def test_rows_that_do_not_fit_are_described(lake: Lake, cells: pl.DataFrame) -> None:
    def assert_refused(frame: pl.DataFrame, match: str) -> None:
        with pytest.raises(StoreError, match=match):
            lake.write("cells", frame, plate="P1", site=1)

    assert_refused(cells.drop("label", "n_nuclei"), "missing columns label, n_nuclei")
    assert_refused(cells.with_columns(colour=pl.lit("red")), "unknown columns colour")
    assert_refused(cells.with_columns(label=pl.lit("one")), "label is String, expected Int32")
    assert_refused(cells.with_columns(Metadata_Well=pl.lit(None, pl.String)), "Metadata_Well is NULL in 30 rows")
    assert_refused(cells.with_columns(Metadata_pert_type=pl.lit("dose")), "Metadata_pert_type holds dose")
    assert_refused(pl.concat([cells, cells.head(2)]), "4 rows share Metadata_CellID")
    assert_refused(cells.with_columns(label=pl.lit(2**40)), "does not fit")
    assert lake.delta_version("cells") == -1


def test_rows_must_have_the_given_keys(lake: Lake, cells: pl.DataFrame) -> None:
    with pytest.raises(StoreError, match="Metadata_Site 1"):
        lake.write("cells", cells, plate="P1", site=2)
    with pytest.raises(StoreError, match="Give site too"):
        lake.write("cells", cells, plate="P1")
    with pytest.raises(StoreError, match="does not have the key model_run"):
        lake.write("cells", cells, plate="P1", site=1, model_run="r")
    with pytest.raises(StoreError, match="site must be an integer"):
        lake.write("cells", cells, plate="P1", site="../1")
    with pytest.raises(PlateError):
        lake.write("cells", cells, plate="../P1", site=1)
    with pytest.raises(PlateError):
        lake.read("cells", plate="../P1")
    with pytest.raises(GradcamoError, match="MLflow run"):
        lake.read("scores", model_run="a' OR '1' = '1")
    with pytest.raises(StoreError, match="no table"):
        lake.read("cell")


def test_types_of_the_same_family_are_cast(lake: Lake, cells: pl.DataFrame) -> None:
    zone = timezone(timedelta(hours=2))
    scores = scores_of(cells).with_columns(
        pl.col("Metadata_Site").cast(pl.UInt8),
        pl.col("looks_at").cast(pl.Categorical),
        pl.col("probability").cast(pl.Float32),
        true_class=pl.lit(None),
        neighbour_fraction=pl.lit(float("nan")),
        scored_at=pl.lit(datetime(2026, 1, 1, 12, tzinfo=zone)),
    )
    backwards = scores.select(reversed(scores.columns))
    lake.write("scores", backwards, plate="P1", site=np.int64(1), model_run=rows.run_of(1))
    read = lake.read("scores")
    assert dict(read.schema) == LAKE_TABLES["scores"].schema
    assert read["scored_at"][0] == datetime(2026, 1, 1, 10)
    assert read["neighbour_fraction"].null_count() == len(read)


def test_a_fixed_length_array_becomes_a_list(lake: Lake, cells: pl.DataFrame) -> None:
    model = {"model_name": pl.lit("m"), "model_version": pl.lit(1), "model_run": pl.lit("r")}
    vectors = np.random.default_rng(0).normal(size=(len(cells), 7))
    frame = cells.select(pl.col("^Metadata_.*$")).with_columns(**model, embedding=pl.Series(vectors))
    lake.write("embeddings", frame, plate="P1", site=1, model_run="r")
    assert lake.read("embeddings").schema["embedding"] == pl.List(pl.Float32)


def test_concurrent_appends_replace_equal_rows_and_lose_none(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: lake.append("models", rows.model(version)), [*range(1, 13), *range(1, 13)]))
    assert sorted(lake.read("models")["model_version"]) == list(range(1, 13))
    with pytest.raises(StoreError, match="key by key"):
        lake.append("cells", LAKE_TABLES["cells"].empty())


@pytest.mark.parametrize("folder", ["what? a *star*", "a=b", "it's 100% #1", "ünï côdé"])
def test_unusual_folder_names_work(tmp_path: Path, folder: str) -> None:
    (tmp_path / "what, a bigstarb").mkdir()  # The first folder name matches this one as a glob pattern.
    lake = Lake(tmp_path / folder / "lake")
    lake.append("promotions", rows.promotion(1, 1))
    lake.append("promotions", rows.promotion(2, 2))
    assert sorted(lake.read("promotions")["to_version"]) == [1, 2]
    rows.put(lake, np.random.default_rng(0), "007", 1, 1)
    assert set(lake.read("scores", plate="007")["Metadata_Plate"]) == {"007"}


@pytest.mark.parametrize("folder", ["[home]", "plate%20one", "back\\slash", "logit=7", "Metadata_Plate=P9"])
def test_folder_names_that_delta_lake_misreads_are_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(StoreError, match="GRADCAMO_HOME"):
        Lake(tmp_path / folder / "lake")


def test_an_error_names_the_table_of_a_damaged_file(lake: Lake, cells: pl.DataFrame) -> None:
    lake.write("cells", cells, plate="P1", site=1)
    Path(lake.snapshot("cells").files["path"][0]).write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match="cells cannot be read"):
        lake.read("cells")


def test_a_table_of_an_earlier_release_is_refused(lake: Lake, cells: pl.DataFrame) -> None:
    (lake.root / "cells" / "plate=P1").mkdir(parents=True)
    cells.write_parquet(lake.root / "cells" / "plate=P1" / "site=1.parquet")
    for use in (lake.read, lake.delta_version, lake.snapshot):
        with pytest.raises(StoreError, match="new GRADCAMO_HOME"):
            use("cells")
    with pytest.raises(StoreError, match="new GRADCAMO_HOME"):
        lake.write("cells", cells, plate="P1", site=1)


def test_a_table_whose_creation_was_killed_is_created_again(lake: Lake) -> None:
    (lake.root / "cell_versions" / "_delta_log").mkdir(parents=True)
    assert lake.read("cell_versions").is_empty() and lake.delta_version("cell_versions") == -1
    lake.record_version("cell_versions", "new", None, 1, plate="P1", site=1)
    assert lake.read("cell_versions")["version"].to_list() == ["new"]
    for commit in (lake.root / "cell_versions" / "_delta_log").glob("*.json"):
        commit.write_bytes(commit.read_bytes()[:20])
    with pytest.raises(StoreError, match="cell_versions cannot be read"):
        Lake(lake.root).read("cell_versions")


def test_the_last_of_concurrent_writers_replaces_all_rows(lake: Lake) -> None:
    numbers = range(12)
    frames = [rows.cells(np.random.default_rng(n), "P1", 1, 20 + n, masks=f"m{n}") for n in numbers]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda frame: lake.write("cells", frame, plate="P1", site=1), frames))
    read = lake.read("cells")
    (masks,) = set(read["mask_version"])
    assert_same_rows(read, frames[int(masks[1:])])


def test_writers_and_compaction_lose_nothing(lake: Lake) -> None:
    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        lake.write("cells", rows.cells(rng, "P1", number % 8, 10, masks=f"m{number}"), plate="P1", site=number % 8)

    with ThreadPoolExecutor(4) as pool:
        written = pool.map(write, range(32))
        for _ in range(6):
            lake.compact("cells")
        list(written)
    read = lake.read("cells")
    assert read.group_by("Metadata_Site").agg(pl.col("mask_version").n_unique(), pl.len()).sort(
        "Metadata_Site"
    ).rows() == [(site, 1, 10) for site in range(8)]
    lake.compact("cells")
    assert len(lake.snapshot("cells").files) == 1
    assert_same_rows(lake.read("cells"), read)


def test_changes_returns_partitions_with_changed_rows(lake: Lake) -> None:
    rng = np.random.default_rng(0)
    for plate in ("007", "P2"):
        for site in (1, 2):
            rows.put(lake, rng, plate, site, 1)
    start = lake.delta_version("scores")
    rows.put(lake, rng, "007", 2, 1)
    lake.drop("scores", plate="P2", site=1)
    before = lake.delta_version("scores")
    every = {("007", rows.run_of(1)), ("P2", rows.run_of(1))}
    assert set(lake.changes("scores", start, before).rows()) == every
    assert set(lake.changes("scores", before - 1, before).rows()) == {("P2", rows.run_of(1))}
    assert lake.compact("scores") > 0
    after = lake.delta_version("scores")
    assert after > before and lake.changes("scores", before, after).is_empty()
    (lake.root / "scores" / "_delta_log" / f"{start + 1:020}.json").unlink()
    assert lake.changes("scores", start, after) is None


def test_version_tables_are_read_from_the_log_alone(lake: Lake) -> None:
    rng = np.random.default_rng(0)
    for plate in ("007", "1e5"):
        for site in (1, 2):
            rows.put(lake, rng, plate, site, 1)
    rows.write_cells(lake, rows.cells(rng, "007", 2, 30), "c2")
    expected = lake.read("crop_versions").sort("Metadata_Plate", "Metadata_Site")
    for path in (lake.root / "crop_versions").rglob("*.parquet"):
        path.unlink()
    assert_frame_equal(lake.partition_versions("crop_versions"), expected)
    assert lake.partition_versions("crop_versions", plate="007", site=2)["version"].to_list() == ["m1-c2"]
    assert lake.partition_versions("score_versions", plate="P3").is_empty()
    assert lake.partition_versions("mask_versions").schema == LAKE_TABLES["mask_versions"].schema


def test_the_revision_of_a_recreated_table_differs(lake: Lake) -> None:
    lake.append("models", rows.model(1))
    old = lake.revision("models")
    assert lake.revision("models") == old and lake.revision("cells") == "-1"
    for path in sorted((lake.root / "models").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    lake.append("models", rows.model(1))
    assert lake.delta_version("models") == int(old.partition("-")[0]) and lake.revision("models") != old


@pytest.mark.parametrize("hint", ["kept", "lost", "cut short"])
def test_readers_see_every_commit_whoever_made_it(lake: Lake, cells: pl.DataFrame, hint: str) -> None:
    folder = lake.root / "cells"
    assert lake.delta_version("cells") == -1

    def check(expected: pl.DataFrame) -> None:
        assert lake.delta_version("cells") == DeltaTable(folder).version() == lake.snapshot("cells").version
        assert_same_rows(lake.read("cells"), expected)

    lake.write("cells", cells, plate="P1", site=1)
    check(cells)
    DeltaTable(folder).create_checkpoint()
    if hint == "lost":
        (folder / "_delta_log" / "_last_checkpoint").unlink()
    elif hint == "cut short":
        (folder / "_delta_log" / "_last_checkpoint").write_text('{"version":')
    check(cells)
    (folder / "_delta_log" / f"{0:020}.json").unlink()  # Delta Lake deletes old commits before a checkpoint.
    DeltaTable(folder).delete(f"Metadata_CellID = '{cells['Metadata_CellID'][0]}'")
    check(cells[1:])
    assert_same_rows(lake.scan("cells").collect(), cells[1:])
    shutil.rmtree(folder)
    assert lake.delta_version("cells") == -1 and lake.read("cells").is_empty()
    lake.write("cells", cells.head(3), plate="P1", site=1)
    check(cells.head(3))


def test_vacuum_deletes_files_of_killed_writers_once_they_are_old(lake: Lake, cells: pl.DataFrame) -> None:
    lake.write("cells", cells, plate="P1", site=1)
    (written,) = (lake.root / "cells").rglob("part-*.parquet")
    killed = shutil.copyfile(written, written.with_name("part-of-no-commit.parquet"))
    assert lake.vacuum("cells", 1, set()) == 0, "its writer may be about to commit it"
    two_hours_ago = time.time() - 7200
    os.utime(killed, (two_hours_ago, two_hours_ago))
    assert lake.vacuum("cells", 1, set()) == 1
    assert not killed.exists() and written.exists()


def test_vacuum_deletes_unused_files_except_those_to_keep(lake: Lake, cells: pl.DataFrame) -> None:
    for _ in range(3):
        lake.write("cells", cells, plate="P1", site=1)
    present = set(lake.snapshot("cells").files["path"])
    first = set(lake.snapshot("cells", 1).files["path"])
    assert lake.vacuum("cells", 24, set()) == 0, "readers of the last 24 hours may still need them"
    assert lake.vacuum("cells", 0, first) == 1
    assert {str(path) for path in (lake.root / "cells").rglob("part-*.parquet")} == present | first
    assert_same_rows(lake.read("cells"), cells)
    log = lake.root / "cells" / "_delta_log"
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == lake.delta_version("cells") >= 3
