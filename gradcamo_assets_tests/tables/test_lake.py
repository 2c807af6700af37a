"""The lake keeps what fits its tables, under the key that it belongs to, whole or not at all."""

from __future__ import annotations

import json
import shutil
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
def found() -> pl.DataFrame:
    return rows.cells(np.random.default_rng(0), "P1", 1, 30)


def scores_of(found: pl.DataFrame, version: int = 1) -> pl.DataFrame:
    return rows.scores(np.random.default_rng(0), rows.kept(found, rows.crops(found)), version)


def same(one: pl.DataFrame, other: pl.DataFrame) -> None:
    assert_frame_equal(one, other, check_row_order=False, check_exact=True)


def test_what_is_written_is_read_under_its_key_only(lake: Lake, found: pl.DataFrame) -> None:
    other = rows.cells(np.random.default_rng(1), "P1", 2, 5)
    lake.write("cells", found, plate="P1", site=1)
    lake.write("cells", other, plate="P1", site=2)
    same(lake.read("cells", site=1), found)
    same(lake.read("cells", plate="P1"), pl.concat([found, other]))
    assert lake.read("cells", plate="P2").schema == found.schema
    lake.write("cells", found.head(3), plate="P1", site=1)
    same(lake.read("cells"), pl.concat([found.head(3), other]))
    lake.drop("cells", site=1)
    same(lake.read("cells"), other)


def write_crops(lake: Lake, frames: dict[str, pl.DataFrame], version: str) -> None:
    lake.write_stage("crop_versions", frames, version=version, made_from="c", n=len(frames), plate="P1", site=1)


def crop_version(lake: Lake) -> tuple[str, str | None]:
    row = lake.version_of("crop_versions", plate="P1", site=1)
    assert row is not None
    return row["version"], row["made_from"]


def test_of_a_writer_that_is_killed_nothing_passes_for_done(lake: Lake, found: pl.DataFrame) -> None:
    crops = rows.crops(found)
    write_crops(lake, {"crops": crops}, "one")
    assert crop_version(lake) == ("one", "c")
    with pytest.raises(StoreError, match="do not fit"):
        write_crops(lake, {"crops": crops.head(3), "field_crops": crops}, "two")
    version, made_from = crop_version(lake)
    assert version not in ("one", "two") and made_from is None
    write_crops(lake, {"crops": crops}, "two")
    assert crop_version(lake) == ("two", "c")


@pytest.mark.parametrize("moment", ["rows", "version"])
def test_a_writer_that_was_overtaken_lets_nothing_pass_for_done(
    lake: Lake, found: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    crops, write, version_of = rows.crops(found), Lake.write, Lake.version_of
    happened: list[str] = []

    def overtake() -> None:
        happened.append(moment)
        write_crops(lake, {"crops": crops.head(2)}, "other")
        assert crop_version(lake) == ("other", "c")

    def overtaken(self: Lake, name: str, frame: pl.DataFrame, **keys: object) -> None:
        """The other one begins and ends while the rows are written."""
        if name == "crops" and not happened:
            overtake()
        write(self, name, frame, **keys)

    def overtaken_late(self: Lake, table: str, **keys: object) -> dict | None:
        """The other one begins and ends after this one has seen that it is still alone."""
        row = version_of(self, table, **keys)
        if row and row["made_from"] is None and not happened:
            overtake()
        return row

    if moment == "rows":
        monkeypatch.setattr(Lake, "write", overtaken)
    else:
        monkeypatch.setattr(Lake, "version_of", overtaken_late)
    with pytest.raises(StoreError, match="at the same time"):
        write_crops(lake, {"crops": crops}, "mine")
    assert happened and crop_version(lake)[1] is None
    write_crops(lake, {"crops": crops}, "mine")
    assert crop_version(lake) == ("mine", "c")


@pytest.mark.parametrize("name", LAKE_TABLES)
def test_every_table_gives_back_what_it_was_given(lake: Lake, name: str) -> None:
    table = LAKE_TABLES[name]
    values = {pl.String: "a", pl.Int32: 1, pl.Int64: 2, pl.Float64: 0.5, pl.Boolean: True, pl.List: []}
    row = {column.name: (column.allowed or [values.get(column.dtype.base_type())])[0] for column in table.columns}
    row |= {name: rows.NOW for name, kind in table.polars.items() if kind == pl.Datetime}
    written = pl.DataFrame([row], schema=table.polars)
    lake.replace(name, written)
    keys = {key: row[KEY_COLUMNS[key]] for key in table.keys}
    if keys:
        lake.write(name, written, **keys)
    assert_frame_equal(lake.read(name, **keys), written)


def test_no_rows_can_be_written(lake: Lake, found: pl.DataFrame) -> None:
    scores = scores_of(found, 3)
    with pytest.raises(StoreError, match="Give plate too"):
        lake.write("scores", scores, site=1, model_run=rows.run_of(3))
    lake.write("scores", scores, plate="P1", site=1, model_run=rows.run_of(3))
    lake.write("scores", scores.clear(), plate="P1", site=1, model_run=rows.run_of(3))
    assert lake.read("scores").is_empty()


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
    assert lake.version("cells") == -1


def test_rows_must_lie_in_their_key(lake: Lake, found: pl.DataFrame) -> None:
    with pytest.raises(StoreError, match="Metadata_Site 1"):
        lake.write("cells", found, plate="P1", site=2)
    with pytest.raises(StoreError, match="Give site too"):
        lake.write("cells", found, plate="P1")
    with pytest.raises(StoreError, match="not filed by model_run"):
        lake.write("cells", found, plate="P1", site=1, model_run="r")
    with pytest.raises(StoreError, match="whole number"):
        lake.write("cells", found, plate="P1", site="../1")
    with pytest.raises(PlateError):
        lake.write("cells", found, plate="../P1", site=1)
    with pytest.raises(PlateError):
        lake.read("cells", plate="../P1")
    with pytest.raises(GradcamoError, match="MLflow run"):
        lake.read("scores", model_run="a' OR '1' = '1")
    with pytest.raises(StoreError, match="no table"):
        lake.read("cell")


def test_types_of_one_family_are_taken(lake: Lake, found: pl.DataFrame) -> None:
    zone = timezone(timedelta(hours=2))
    scores = scores_of(found).with_columns(
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
    assert dict(read.schema) == LAKE_TABLES["scores"].polars
    assert read["scored_at"][0] == datetime(2026, 1, 1, 10)
    assert read["neighbour_fraction"].null_count() == len(read)


def test_a_fixed_length_array_becomes_a_list(lake: Lake, found: pl.DataFrame) -> None:
    model = {"model_name": pl.lit("m"), "model_version": pl.lit(1), "model_run": pl.lit("r")}
    vectors = np.random.default_rng(0).normal(size=(len(found), 7))
    frame = found.select(pl.col("^Metadata_.*$")).with_columns(**model, embedding=pl.Series(vectors))
    lake.write("embeddings", frame, plate="P1", site=1, model_run="r")
    assert lake.read("embeddings").schema["embedding"] == pl.List(pl.Float32)


def test_append_replaces_the_same_row_and_loses_none_to_a_race(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda v: lake.append("models", rows.model(v)), [*range(1, 13), *range(1, 13)]))
    assert sorted(lake.read("models")["model_version"]) == list(range(1, 13))
    with pytest.raises(StoreError, match="key by key"):
        lake.append("cells", LAKE_TABLES["cells"].empty())


@pytest.mark.parametrize("folder", ["what? a *star*", "a=b", "it's 100% #1", "ünï côdé"])
def test_a_home_of_any_name_keeps_what_is_appended(tmp_path: Path, folder: str) -> None:
    (tmp_path / "what, a bigstarb").mkdir()  # What the first name would match, were it a pattern.
    lake = Lake(tmp_path / folder / "lake")
    lake.append("promotions", rows.promotion(1, 1))
    lake.append("promotions", rows.promotion(2, 2))
    assert sorted(lake.read("promotions")["to_version"]) == [1, 2]
    rows.put(lake, np.random.default_rng(0), "007", 1, 1)
    assert set(lake.read("scores", plate="007")["Metadata_Plate"]) == {"007"}


@pytest.mark.parametrize("folder", ["[home]", "plate%20one", "back\\slash", "logit=7", "Metadata_Plate=P9"])
def test_a_home_that_cannot_be_written_or_read_aright_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(StoreError, match="GRADCAMO_HOME"):
        Lake(tmp_path / folder / "lake")


def test_a_damaged_file_is_named(lake: Lake, found: pl.DataFrame) -> None:
    lake.write("cells", found, plate="P1", site=1)
    Path(lake.snapshot("cells").files["path"][0]).write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match="cells cannot be read"):
        lake.read("cells")


def test_a_table_of_an_earlier_release_is_refused_with_the_remedy(lake: Lake, found: pl.DataFrame) -> None:
    (lake.root / "cells" / "plate=P1").mkdir(parents=True)
    found.write_parquet(lake.root / "cells" / "plate=P1" / "site=1.parquet")
    for use in (lake.read, lake.version, lake.snapshot):
        with pytest.raises(StoreError, match="new GRADCAMO_HOME"):
            use("cells")
    with pytest.raises(StoreError, match="new GRADCAMO_HOME"):
        lake.write("cells", found, plate="P1", site=1)


def test_of_two_writers_of_one_partition_the_last_one_wins_whole(lake: Lake) -> None:
    numbers = range(12)
    frames = [rows.cells(np.random.default_rng(n), "P1", 1, 20 + n, masks=f"m{n}") for n in numbers]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda frame: lake.write("cells", frame, plate="P1", site=1), frames))
    read = lake.read("cells")
    (masks,) = set(read["mask_version"])
    same(read, frames[int(masks[1:])])


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
    same(lake.read("cells"), read)


def test_changes_are_partitions_with_other_rows(lake: Lake) -> None:
    rng = np.random.default_rng(0)
    for plate in ("007", "P2"):
        for site in (1, 2):
            rows.put(lake, rng, plate, site, 1)
    start = lake.version("scores")
    rows.put(lake, rng, "007", 2, 1)
    lake.drop("scores", plate="P2", site=1)
    before = lake.version("scores")
    every = {("007", rows.run_of(1)), ("P2", rows.run_of(1))}
    assert set(lake.changes("scores", start, before).rows()) == every
    assert set(lake.changes("scores", before - 1, before).rows()) == {("P2", rows.run_of(1))}
    assert lake.compact("scores") > 0
    after = lake.version("scores")
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
    assert_frame_equal(lake.versions("crop_versions"), expected)
    assert lake.versions("crop_versions", plate="007", site=2)["version"].to_list() == ["m1-c2"]
    assert lake.versions("score_versions", plate="P3").is_empty()
    assert lake.versions("mask_versions").schema == LAKE_TABLES["mask_versions"].polars


def test_a_revision_tells_a_table_made_anew_from_the_old_one(lake: Lake) -> None:
    lake.append("models", rows.model(1))
    old = lake.revision("models")
    assert lake.revision("models") == old and lake.revision("cells") == "-1"
    for path in sorted((lake.root / "models").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    lake.append("models", rows.model(1))
    assert lake.version("models") == int(old.partition("-")[0]) and lake.revision("models") != old


@pytest.mark.parametrize("hint", ["kept", "lost", "cut short"])
def test_readers_see_every_commit_whoever_made_it(lake: Lake, found: pl.DataFrame, hint: str) -> None:
    folder = lake.root / "cells"
    assert lake.version("cells") == -1

    def check(expected: pl.DataFrame) -> None:
        assert lake.version("cells") == DeltaTable(folder).version() == lake.snapshot("cells").version
        same(lake.read("cells"), expected)

    lake.write("cells", found, plate="P1", site=1)
    check(found)
    DeltaTable(folder).create_checkpoint()
    if hint == "lost":
        (folder / "_delta_log" / "_last_checkpoint").unlink()
    elif hint == "cut short":
        (folder / "_delta_log" / "_last_checkpoint").write_text('{"version":')
    check(found)
    (folder / "_delta_log" / f"{0:020}.json").unlink()  # As Delta does with commits before a checkpoint.
    DeltaTable(folder).delete(f"Metadata_CellID = '{found['Metadata_CellID'][0]}'")
    check(found[1:])
    same(lake.scan("cells").collect(), found[1:])
    shutil.rmtree(folder)
    assert lake.version("cells") == -1 and lake.read("cells").is_empty()
    lake.write("cells", found.head(3), plate="P1", site=1)
    check(found.head(3))


def test_vacuum_deletes_old_files_but_those_that_are_kept(lake: Lake, found: pl.DataFrame) -> None:
    for _ in range(3):
        lake.write("cells", found, plate="P1", site=1)
    present = set(lake.snapshot("cells").files["path"])
    first = set(lake.snapshot("cells", 1).files["path"])
    assert lake.vacuum("cells", 24, set()) == 0, "yesterday's readers may still read them"
    assert lake.vacuum("cells", 0, first) == 1
    assert {str(path) for path in (lake.root / "cells").rglob("part-*.parquet")} == present | first
    same(lake.read("cells"), found)
    log = lake.root / "cells" / "_delta_log"
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == lake.version("cells") >= 3
