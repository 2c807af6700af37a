"""Publication updates changed tables only, equals a rebuild, and recovers from damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import Lake, find_violations, needs_publication, publish, published_files, run_sql
from gradcamo_assets.tables import database as schema_of_database
from gradcamo_assets.tables import refresh as refreshing
from gradcamo_assets_tests.tables import rows
from gradcamo_assets_tests.tables.published import assert_equals_the_lake, contents, count


@pytest.fixture(autouse=True)
def _without_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments take half of the time of a new file. Other tests read them."""
    monkeypatch.setattr(schema_of_database, "_comment", lambda *_arguments: None)


def summaries(database: Path) -> dict[str, pl.DataFrame]:
    """The stored summaries, in the order of the file."""
    with duckdb.connect(database, read_only=True) as connection:
        names = connection.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'aggregates'").fetchall()
        return {name: connection.table(f"aggregates.{name}").pl() for (name,) in names}


def test_only_what_changed_is_replaced(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake"), tmp_path / "qc.duckdb"
    assert needs_publication(lake, database)
    first = publish(lake, database)
    assert first.rebuilt and first.plates == ("P1", "P2")
    assert database.stat().st_mode & 0o777 == 0o444
    before = database.stat().st_ino
    assert not needs_publication(lake, database) and not publish(lake, database).changed
    assert database.stat().st_ino == before
    rows.put(lake, np.random.default_rng(5), "P2", 1, 2)
    assert needs_publication(lake, database)
    second = publish(lake, database)
    assert second.changed == ("score_versions", "scores") and second.plates == ("P2",) and not second.rebuilt
    assert not needs_publication(lake, database)
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")
    assert find_violations(database) == []
    seen = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert seen == {"fresh.duckdb", "lake", "qc.duckdb"}


def test_only_plates_with_changed_reported_rows_are_listed(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=3), tmp_path / "qc.duckdb"
    publish(lake, database)

    def changed_plates() -> tuple[str, ...]:
        return publish(lake, database).plates

    rng, champion, other = np.random.default_rng(1), rows.run_of(2), rows.run_of(1)
    rows.put(lake, rng, "P1", 1, 1)
    assert changed_plates() == (), "version 1 is not the champion"
    audit = {"Metadata_Plate": "P2", "Metadata_Well": "A01", "Metadata_Site": 1, "Metadata_CellID": "P2/A01/1/1"}
    for run in (other, champion):
        row = audit | {"model_name": "hepg2", "model_version": 1, "model_run": run}
        lake.write("audit", rows.frame("audit", [row]), plate="P2", model_run=run)
        lake.write("umap", rows.frame("umap", [row]), plate="P2", model_run=run)
        assert changed_plates() == (("P2",) if run == champion else ())
    lake.write("audit", rows.frame("audit", [row]), plate="P2", model_run=champion)
    assert publish(lake, database).changed == ("audit",), "the same rows, written again"
    assert changed_plates() == ()
    stains = {"Metadata_Plate": "P3", "channel_a": "DNA", "channel_b": "ER", "median_correlation": 0.1}
    lake.write("channel_correlation", rows.frame("channel_correlation", [stains]), plate="P3")
    assert changed_plates() == ("P3",)
    lake.drop("umap", plate="P2", model_run=champion)
    assert changed_plates() == ("P2",)
    wells = lake.read("wells", plate="P1")
    lake.write("wells", wells, plate="P1")
    assert publish(lake, database).changed == ("wells",)


STEPS = (
    *("score", "resegment", "recrop", "drop scores", "drop plate", "unscored", "audit", "promote", "register anew"),
    *("compact", "publish"),
)
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from(["P1", "P2"]), st.integers(1, 2), st.integers(1, 2)),
    min_size=3,
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, seed=st.integers(0, 1000))
def test_incremental_publication_equals_a_rebuild(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, int, int]], seed: int
) -> None:
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(seed)
    lake, database = Lake(home / "lake"), home / "qc.duckdb"
    for minute, (what, plate, site, version) in enumerate(operations):
        run = rows.run_of(version)
        if what == "score":
            rows.put(lake, rng, plate, site, version, n=25)
        elif what == "resegment":
            rows.write_cells(lake, rows.cells(rng, plate, site, 25, masks=f"m{minute}"))
        elif what == "recrop" and len(found := lake.read("cells", plate=plate, site=site)):
            rows.write_cells(lake, found, f"c{minute}")
        elif what == "drop scores":
            for table in ("scores", "score_versions"):
                lake.drop(table, plate=plate, site=site)
        elif what == "drop plate":
            for table in ("cells", "crops", "scores", "crop_versions", "score_versions"):
                lake.drop(table, plate=plate)
        elif what == "promote":
            lake.append("promotions", rows.promotion(version, minute))
            lake.append("models", rows.model(version))
        elif what == "register anew":
            lake.replace("models", rows.model(version))
        elif what == "unscored":
            row = {"Metadata_Plate": plate, "Metadata_Site": site, "model_name": "hepg2", "model_version": version}
            row |= {"model_run": run, "reason": "four channels"}
            lake.write("unscored", rows.frame("unscored", [row]), model_run=run)
        elif what == "audit" and len(scores := lake.read("scores", plate=plate, model_run=run)):
            names = [name for name in lake.read("audit").columns if name in scores.columns]
            audit = scores.head(5).select(names)
            lake.write("audit", rows.frame("audit", audit.to_dicts()), plate=plate, model_run=run)
        elif what == "compact":
            for table in ("cells", "scores", "crops", "audit"):
                lake.compact(table)
        elif what == "publish":
            publish(lake, database)
    publish(lake, database)
    assert_equals_the_lake(lake, database, home / "fresh.duckdb")
    assert find_violations(database) == []


def test_a_rollback_needs_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, database = rows.filled(tmp_path / "lake"), tmp_path / "qc.duckdb"
    publish(lake, database)
    gain = (
        "SELECT Metadata_Plate, model_version, previous_version, n_cells, adjusted_before, adjusted_now FROM model_gain"
    )
    forward = run_sql(database, f"{gain} ORDER BY ALL").to_dicts()
    assert len(forward) == 2 and {row["previous_version"] for row in forward} == {1}
    monkeypatch.setattr(refreshing, "scan_files", None)  # Reading scores would fail.
    lake.append("promotions", rows.promotion(1, 30))
    publication = publish(lake, database)
    assert publication.changed == ("promotions",) and publication.plates == ()
    back = run_sql(database, f"{gain} ORDER BY ALL").to_dicts()
    assert [row["previous_version"] for row in back] == [2, 2]
    for row, mirrored in zip(forward, back, strict=True):
        assert row["n_cells"] == mirrored["n_cells"] > 0
        assert row["adjusted_before"] == mirrored["adjusted_now"] and row["adjusted_now"] == mirrored["adjusted_before"]
    monkeypatch.undo()
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


def test_compaction_changes_file_lists_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, database = rows.filled(tmp_path / "lake", sites=1), tmp_path / "qc.duckdb"
    for plate in ("P1", "P2"):
        for version in (1, 2):
            rows.put(lake, np.random.default_rng(version), plate, 2, version)
    publish(lake, database)
    before, stored, files = contents(database), summaries(database), published_files(database)
    monkeypatch.setattr(refreshing, "scan_files", None)  # Reading scores would fail.
    for table in ("scores", "cells", "crops"):
        assert lake.compact(table) > 0
    publication = publish(lake, database)
    assert set(publication.changed) == {"scores", "cells", "crops"} and publication.plates == ()
    for name, table in contents(database).items():
        assert_frame_equal(table, before[name])
    for name, table in summaries(database).items():
        assert_frame_equal(table, stored[name], check_row_order=False)
    assert len(published_files(database)) < len(files)
    assert len(lake.snapshot("scores").files) == 4, "one per plate and run"


def test_vacuum_keeps_the_files_that_the_published_views_read(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    assert published_files(database) == set()
    publish(lake, database)
    before = contents(database)
    rows.put(lake, np.random.default_rng(5), "P1", 1, 2)
    rows.write_cells(lake, rows.cells(np.random.default_rng(6), "P1", 1, 9))
    for table in ("scores", "cells", "crops"):
        lake.compact(table)
        lake.vacuum(table, 0, published_files(database))
    for name, table in contents(database).items():
        assert_frame_equal(table, before[name])
    publish(lake, database)
    assert lake.vacuum("scores", 0, published_files(database)) > 0
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


def test_checking_some_plates_finds_their_violations(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", versions=1), tmp_path / "qc.duckdb"
    good = lake.read("scores", plate="P2", site=1)
    broken = good.with_columns(gradcamo_max=pl.col("gradcamo") - 0.1)
    lake.write("scores", broken, plate="P2", site=1, model_run=rows.run_of(1))
    publish(lake, database)
    assert find_violations(database, ["P1"]) == find_violations(database, []) == []
    assert find_violations(database, ["P2"]) == find_violations(database) != []


def test_checking_some_plates_reads_no_other_plates(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", versions=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    for path in published_files(database):
        if "Metadata_Plate=P2" in path:
            Path(path).write_bytes(b"no Parquet")
    assert find_violations(database, ["P1"]) == []
    with pytest.raises(StoreError, match="P2"):
        find_violations(database)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    publish(rows.filled(home / "lake", plates=1), home / "qc.duckdb")
    return home


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, pl.DataFrame]:
    return contents(home / "qc.duckdb")


@pytest.mark.parametrize(
    "damage", ["written to", "another schema", "truncated", "bytes inside", "no database", "another lake", "no note"]
)
def test_an_unusable_database_is_rebuilt(
    home: Path, expected: dict[str, pl.DataFrame], tmp_path: Path, damage: str
) -> None:
    lake, database, note = Lake(home / "lake"), tmp_path / "qc.duckdb", tmp_path / ".qc.duckdb.json"
    shutil.copy(home / "qc.duckdb", database)
    shutil.copy(home / ".qc.duckdb.json", note)
    assert not needs_publication(lake, database)
    database.chmod(0o644)
    if damage == "truncated":
        database.write_bytes(database.read_bytes()[:20000])
    elif damage == "bytes inside":
        content = bytearray(database.read_bytes())
        content[12288:] = bytes(len(content) - 12288)
        database.write_bytes(content)
        note.write_text(note.read_text().replace(lake.revision("scores"), "0-0"))  # Make the publication find a change.
    elif damage == "no database":
        database.write_text("hello")
    elif damage == "another lake":
        shutil.copytree(home / "lake", tmp_path / "lake")
        lake = Lake(tmp_path / "lake")
    elif damage == "no note":
        note.unlink()
    else:
        with duckdb.connect(database) as connection:
            connection.execute("DELETE FROM aggregates.totals" if damage == "written to" else "DROP VIEW umap")
    assert needs_publication(lake, database)
    assert publish(lake, database).rebuilt
    for name, table in contents(database).items():
        assert_frame_equal(table, expected[name])


def test_a_copied_home_uses_its_own_lake(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    lake = rows.filled(old / "lake", plates=1)
    publish(lake, old / "qc.duckdb")
    shutil.copytree(old, new)
    moved = Lake(new / "lake")
    query = "SELECT count(*) FROM qc_by_dose"
    assert needs_publication(moved, new / "qc.duckdb")
    assert run_sql(new / "qc.duckdb", query).item() == run_sql(old / "qc.duckdb", query).item() > 0
    rows.put(moved, np.random.default_rng(5), "P7", 1, 2)
    publish(moved, new / "qc.duckdb")
    shutil.rmtree(old)
    assert "P7" in run_sql(new / "qc.duckdb", "SELECT DISTINCT Metadata_Plate FROM scores")["Metadata_Plate"]
    assert_equals_the_lake(moved, new / "qc.duckdb", tmp_path / "fresh.duckdb")


def test_a_recreated_lake_table_is_published_again(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    number = lake.delta_version("scores")
    shutil.rmtree(lake.root / "scores")
    for seed in range(number):
        rows.put(lake, np.random.default_rng(seed), "P1", 1 + seed % 2, 2)
    assert lake.delta_version("scores") == number
    assert needs_publication(lake, database)
    publish(lake, database)
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


def test_publication_works_after_the_log_lost_commits(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake"), tmp_path / "qc.duckdb"
    publish(lake, database)
    number = lake.delta_version("scores")
    for seed in range(2):
        rows.put(lake, np.random.default_rng(seed), "P1", 1, 2)
    lake.vacuum("scores", 1000, set())  # Vacuuming writes a checkpoint.
    for version in range(number + 2):
        (lake.root / "scores" / "_delta_log" / f"{version:020}.json").unlink()
    publication = publish(lake, database)
    assert not publication.rebuilt and set(publication.plates) == {"P1", "P2"}
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


@pytest.mark.parametrize("table", ["scores", "cells", "models"])
def test_a_damaged_lake_file_leaves_the_old_database(tmp_path: Path, table: str) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1, sites=1, versions=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    before = count(database)
    frame = lake.read(table)
    if table == "models":
        lake.append(table, frame)
    else:
        lake.write(table, frame, plate="P1", site=1, **({"model_run": rows.run_of(1)} if table == "scores" else {}))
    Path(lake.snapshot(table).files["path"][0]).write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=f"lake files of table {table}"):
        publish(lake, database)
    assert count(database) == before


@pytest.mark.slow
def test_views_read_the_lake_in_any_folder_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "it's 100% a *lake*? #1 & {a,b}/a=b"
    lake, database = Lake(tmp_path / folder / "lake"), tmp_path / "deep" / folder / "qc.duckdb"
    assert publish(lake, database).rebuilt
    assert run_sql(database, "SELECT * FROM embeddings").is_empty()
    lake.append("models", pl.concat([rows.model(1), rows.model(2)]))
    plates = ("007", "1e5", "2024-01-01", "NULL", "true", "P.1-a_b")
    for plate in plates:
        found = rows.cells(np.random.default_rng(0), plate, 1, 4)
        rows.write_cells(lake, found)
        for version, length in ((1, 3), (2, 5)):
            rows.put(lake, np.random.default_rng(version), plate, 1, version)
            model = {"model_name": "hepg2", "model_version": version, "model_run": rows.run_of(version)}
            frame = found.select(pl.col("^Metadata_.*$")).with_columns(
                **{name: pl.lit(value) for name, value in model.items()}, embedding=pl.lit(np.zeros(length).tolist())
            )
            lake.write("embeddings", frame, plate=plate, site=1, model_run=rows.run_of(version))
    publish(lake, database)
    monkeypatch.chdir("/")
    lengths = "SELECT model_version, any_value(len(embedding)) FROM embeddings GROUP BY ALL ORDER BY ALL"
    assert run_sql(database, lengths).rows() == [(1, 3), (2, 5)]
    for plate in plates:
        here = run_sql(database, "SELECT DISTINCT Metadata_Plate FROM cells WHERE Metadata_Plate = $p", {"p": plate})
        assert here.schema["Metadata_Plate"] == pl.String and here["Metadata_Plate"].to_list() == [plate]
    assert_equals_the_lake(lake, database, tmp_path / "fresh.duckdb")


def test_an_empty_lake_has_empty_views_of_the_right_types(tmp_path: Path) -> None:
    publish(Lake(tmp_path / "lake"), tmp_path / "empty.duckdb")
    publish(rows.filled(tmp_path / "full" / "lake", plates=1), tmp_path / "full.duckdb")
    empty, full = contents(tmp_path / "empty.duckdb"), contents(tmp_path / "full.duckdb")
    assert empty.keys() == full.keys()
    for name, table in empty.items():
        assert table.is_empty() and table.schema == full[name].schema


def test_a_query_for_one_plate_opens_the_files_of_that_plate_only(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=3), tmp_path / "qc.duckdb"
    lake.replace("models", rows.model(2))
    publish(lake, database)
    for path in published_files(database):
        # DuckDB reads the columns from the first file, which must be intact.
        if "Metadata_Plate=P3" in path or f"Metadata_Plate=P2/model_run={rows.run_of(1)}" in path:
            Path(path).write_bytes(b"no Parquet")
    expected = lake.read("scores", plate="P2", model_run=rows.run_of(2))
    for view in ("scores", "current_scores"):
        assert run_sql(database, f"SELECT count(*) FROM {view} WHERE Metadata_Plate = 'P2'").item() == len(expected)
    assert run_sql(database, "SELECT count(*) FROM cells WHERE Metadata_Plate = 'P2' AND crop_index IS NOT NULL").item()
    for question in ("site_effect", "cells_to_look_at", "model_comparison", "stale_scores", "qc_by_well"):
        run_sql(database, f"FROM {question}")
