"""Queries: views, ready-made tables, forbidden statements and output formats."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import gradcamo_assets.tables
from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import (
    Lake,
    connect,
    find_violations,
    format_table,
    publish,
    qc_table,
    render,
    run_sql,
    summaries,
)
from gradcamo_assets.tables.columns import read_sql
from gradcamo_assets.tables.views import VIEWS
from gradcamo_assets_tests.tables import rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    publish(rows.filled(folder / "lake"), folder / "qc.duckdb")
    return folder


@pytest.fixture
def database(home: Path) -> Path:
    return home / "qc.duckdb"


def test_every_table_view_and_column_is_commented(database: Path) -> None:
    with duckdb.connect(database, read_only=True) as connection:
        for what in ("duckdb_tables()", "duckdb_views()", "duckdb_columns()"):
            sql = f"SELECT count(*), count(*) FILTER (coalesce(comment, '') = '') FROM {what} WHERE NOT internal"
            n, bare = connection.execute(sql).fetchall()[0]
            assert n >= 5 and bare == 0, what


def test_every_sql_file_is_one_query_of_a_view() -> None:
    folder = Path(gradcamo_assets.tables.__file__).parent / "sql"
    files = {path.stem: read_sql(path.stem) for path in folder.glob("*.sql")}
    assert not any("$" in sql for sql in files.values()), "every threshold has its value"
    assert {part.type.name for part in duckdb.extract_statements(files.pop("macros"))} == {"CREATE"}
    of_views = {view.name.removeprefix("aggregates."): view.sql for view in VIEWS}
    assert files == {name: of_views[name] for name in files}
    for sql in files.values():
        assert [part.type.name for part in duckdb.extract_statements(sql)] == ["SELECT"]


def test_scores_have_the_columns_of_the_contract_in_order(database: Path) -> None:
    names = run_sql(database, "DESCRIBE scores")["column_name"].to_list()
    assert names[9:] == [
        "model_name", "model_version", "model_run", "mask_version", "crop_version", "true_class", "predicted_class",
        "probability", "logit", "logit_bias", "split", "gradcamo", "mask_fraction", "gradcamo_max", "gradcamo_adjusted",
        "neighbour_share", "background_share", "neighbour_fraction", "looks_at", "evidence_target",
        "evidence_neighbour", "evidence_background", "on_target", "null_reason", "run_id", "scored_at", "pointing_game",
        "relevance_rank_accuracy",
    ]  # fmt: skip
    assert names == run_sql(database, "DESCRIBE current_scores")["column_name"].to_list()


def test_the_champion_follows_the_last_promotion(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    lake.append("models", rows.model(7, "other"))
    lake.append("promotions", rows.promotion(7, 0, "other"))

    def champions() -> list[tuple]:
        publish(lake, database)
        return run_sql(database, "SELECT model_name, model_version, model_run FROM champions ORDER BY ALL").rows()

    versions = "SELECT DISTINCT model_version FROM current_scores"
    other = ("other", 7, rows.run_of(7, "other"))
    assert champions() == [("hepg2", 2, rows.run_of(2)), other]
    assert run_sql(database, versions).rows() == [(2,)]
    lake.append("promotions", rows.promotion(1, 10))
    assert champions() == [("hepg2", 1, rows.run_of(1)), other]
    assert run_sql(database, versions).rows() == [(1,)]
    assert set(qc_table(database, "dose")["model_version"]) == {1}
    assert set(qc_table(database, "dose", champion_only=False)["model_version"]) == {1, 2}
    lake.append("promotions", rows.promotion(None, 11))
    assert champions() == [other]


def test_simultaneous_promotions_give_one_champion_in_any_order(tmp_path: Path) -> None:
    found = set()
    for order in ([1, 2], [2, 1]):
        folder = tmp_path / str(order[0])
        lake = rows.filled(folder / "lake", plates=1, sites=1)
        lake.replace("promotions", pl.concat([rows.promotion(version, 5) for version in order]))
        publish(lake, folder / "qc.duckdb")
        found.update(run_sql(folder / "qc.duckdb", "SELECT model_version FROM champions").rows())
    assert len(found) == 1


def test_a_reused_version_number_shows_no_rows_of_the_deleted_model(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1, versions=1), tmp_path / "qc.duckdb"
    old = lake.read("scores")
    embeddings = old.select(pl.col("^Metadata_.*$"), "model_name", "model_version", "model_run")
    for site in (1, 2):
        here = embeddings.filter(Metadata_Site=site).with_columns(embedding=pl.lit([1.0, 2.0]))
        lake.write("embeddings", here, plate="P1", site=site, model_run=rows.run_of(1))
    publish(lake, database)
    anew = rows.model(1).with_columns(model_run=pl.lit("another-run"))
    lake.replace("models", anew)
    publish(lake, database)
    shown = ("scores", "embeddings", "current_scores", "qc_by_plate", "cells_to_look_at", "champions", "site_effect")
    assert {view: len(run_sql(database, f"FROM {view}")) for view in shown} == dict.fromkeys(shown, 0)
    assert run_sql(database, "SELECT n_cells, median_gradcamo FROM model_comparison").rows() == [(0, None)]
    keys = ["Metadata_CellID", "model_run"]
    assert lake.read("scores").sort(keys).equals(old.sort(keys)), "they stay in the lake until they are pruned"
    lake.append("promotions", rows.promotion(1, 30).with_columns(to_run=pl.lit("another-run")))
    publish(lake, database)
    assert run_sql(database, "SELECT reason FROM stale_scores").rows() == [("never scored by the champion",)] * 2
    again = rows.scores(np.random.default_rng(9), rows.read_kept(lake, "P1", 1), 1)
    lake.write(
        "scores", again.with_columns(model_run=pl.lit("another-run")), plate="P1", site=1, model_run="another-run"
    )
    publish(lake, database)
    seen = run_sql(database, "SELECT model_version, model_run, gradcamo FROM current_scores")
    assert set(seen["model_run"]) == {"another-run"} and set(seen["model_version"]) == {1}
    assert sorted(seen["gradcamo"].drop_nulls()) == sorted(again["gradcamo"].drop_nulls())


def test_a_run_with_two_versions_is_shown_as_the_champion_or_the_last(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1, sites=1, versions=1), tmp_path / "qc.duckdb"

    def shown() -> list[tuple]:
        publish(lake, database)
        return run_sql(database, "SELECT DISTINCT model_version FROM scores").rows()

    again = rows.model(3).with_columns(model_run=pl.lit(rows.run_of(1)))
    lake.append("models", again)
    assert shown() == [(1,)], "version 1 is champion"
    lake.append("promotions", rows.promotion(None, 30))
    assert shown() == [(3,)]


def test_stale_scores_give_the_reason(tmp_path: Path) -> None:
    lake, database, rng = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb", np.random.default_rng(1)

    def stale() -> list[tuple]:
        publish(lake, database)
        return run_sql(
            database, "SELECT Metadata_Site, model_version, n_cells, reason FROM stale_scores ORDER BY ALL"
        ).rows()

    assert stale() == []
    for table in ("scores", "score_versions"):
        lake.drop(table, plate="P1", site=1, model_run=rows.run_of(2))
    one = len(rows.read_kept(lake, "P1", 1))
    assert stale() == [(1, 2, one, "never scored by the champion")]
    anew = rows.write_cells(lake, rows.cells(rng, "P1", 2, 40, masks="m2"), "c3")
    assert stale()[1] == (2, 2, len(anew), "crops changed")
    rows.write_scores(lake, rows.scores(rng, anew, 2), "P1", 2, 2)
    unscored = {"Metadata_Plate": "P1", "Metadata_Site": 1, "model_name": "hepg2", "model_version": 2}
    reason = {"model_run": rows.run_of(2), "reason": "it wants five channels"}
    lake.write("unscored", rows.frame("unscored", [unscored | reason]), model_run=rows.run_of(2))
    assert stale() == [(1, 2, one, "it wants five channels")]
    lake.append("promotions", rows.promotion(1, 20))
    assert [row[:2] for row in stale()] == [(2, 1)]


def test_scores_of_a_partition_that_lost_all_its_cells_are_stale(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1), tmp_path / "qc.duckdb"
    before = len(lake.read("scores", site=1, model_run=rows.run_of(2)))
    assert rows.write_cells(lake, lake.read("cells", site=1).with_columns(qc_flag=pl.lit("small")), "c2").is_empty()
    publish(lake, database)
    found = "SELECT Metadata_Site, model_version, n_cells, reason FROM stale_scores"
    assert run_sql(database, found).rows() == [(1, 2, 0, "crops changed")]
    assert run_sql(database, "SELECT count(*) FROM current_scores WHERE Metadata_Site = 1").item() == before
    nothing = lake.read("scores").clear()
    rows.write_scores(lake, nothing, "P1", 1, 2)
    publish(lake, database)
    assert run_sql(database, found).rows() == []
    assert run_sql(database, "SELECT Metadata_Site FROM qc_by_site WHERE model_version = 2").rows() == [(2,)]


def test_cells_and_fields_combine_the_flags_of_all_stages(tmp_path: Path) -> None:
    lake, database = Lake(tmp_path / "lake"), tmp_path / "qc.duckdb"
    rows.write_cells(lake, found := rows.cells(np.random.default_rng(0), "P1", 1, 60))
    cut = {row["Metadata_CellID"]: row for row in lake.read("crops").to_dicts()}
    names = [{"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Site": 1} for well in rows.WELLS]
    # Flags of each field by ingestion, masks, verdict and crops; the last two fields have none.
    flags = {
        "fields": ["blurred", None, None, None, None, None],
        "masks": ["no masks", "no masks", None, None, None, None],
        "field_verdicts": ["verdict", "verdict", "verdict", None, None, None],
        "field_crops": [None, None, "no crops", "no crops", None, None],
    }
    more: dict[str, dict[str, Any]] = {
        "fields": {"image_version": "i2", "qc_warning": "dim"},
        "masks": {"image_version": "i2", "n_cells": 7, "foreground_share": 0.5},
        "field_verdicts": {"qc_warning": "crowded"},
        "field_crops": {},
    }
    for table, values in flags.items():
        written = [name | more[table] | {"qc_flag": flag} for name, flag in zip(names, values, strict=True)]
        if table == "masks":
            written[5]["image_version"] = "i1"
        lake.write(table, rows.frame(table, written), plate="P1", site=1)
    publish(lake, database)
    fields = run_sql(database, "FROM fields ORDER BY Metadata_Well").to_dicts()
    assert [row["qc_flag"] for row in fields] == ["blurred", "no masks", "verdict", "no crops", None, None]
    assert [row["n_cells"] for row in fields] == [7] * 5 + [None], "states from masks of other pixels are ignored"
    assert [row["qc_warning"] for row in fields] == ["dim; crowded"] * 5 + ["dim"]
    for row in run_sql(database, "FROM cells").to_dicts():
        crop = cut.get(row["Metadata_CellID"], {})
        own = found.filter(Metadata_CellID=row["Metadata_CellID"])["qc_flag"].item()
        assert row["qc_flag"] == (own or crop.get("qc_flag"))
        expected = (None, None) if row["qc_flag"] else (crop["crop_index"], crop["crop_version"])
        assert (row["crop_index"], row["crop_version"]) == expected
    lake.write("cells", found.with_columns(mask_version=pl.lit("m2")), plate="P1", site=1)
    publish(lake, database)
    assert run_sql(database, "SELECT count(*), count(crop_index) FROM cells").rows() == [(60, 0)]


def test_model_comparison_equals_a_loop(home: Path, database: Path) -> None:
    lake = Lake(home / "lake")
    for row in qc_table(database, "model").iter_rows(named=True):
        scores = lake.read("scores", model_run=rows.run_of(row["model_version"]))
        held = [r for r in scores.to_dicts() if r["split"] != "train"]
        for split in ("test", "unseen"):
            right = [r["true_class"] == r["predicted_class"] for r in held if r["split"] == split]
            assert row[f"accuracy_{split}"] == pytest.approx(np.mean(right))
        values = [r["gradcamo"] for r in held if r["gradcamo"] is not None]
        assert row["n_cells"] == len(held) and row["null_cells"] == len(held) - len(values)
        assert row["median_gradcamo"] == pytest.approx(np.median(values))
        assert row["looks_at_none"] == pytest.approx(sum(r["looks_at"] == "none" for r in held) / len(values))
        assert row["is_champion"] == (row["model_version"] == 2)


def test_medians_over_large_plates_are_accurate_to_a_thousandth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "_MAX_EXACT_SCORES", 50)
    lake = rows.filled(tmp_path / "lake", plates=3, versions=1)
    publish(lake, tmp_path / "qc.duckdb")
    values = run_sql(tmp_path / "qc.duckdb", "SELECT value FROM aggregates.score_values")["value"]
    assert values.round(3).equals(values)
    held = lake.read("scores").filter(pl.col("split") != "train")
    row = qc_table(tmp_path / "qc.duckdb", "model").row(0, named=True)
    for name, column in (("median_gradcamo", "gradcamo"), ("median_adjusted", "gradcamo_adjusted")):
        assert row[name] == pytest.approx(held[column].median(), abs=0.0005)


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES",
        "DESCRIBE scores",
        "SUMMARIZE wells",
        "EXPLAIN FROM scores",
        "explain analyze\nSELECT count(*) FROM scores",
        "EXPLAIN (ANALYZE, FORMAT json) SELECT 1",
        "VALUES (1)",
        "PIVOT qc_by_dose ON Metadata_Dose USING sum(n_cells)",
        "PIVOT qc_by_dose ON Metadata_Dose IN (0, 1) USING sum(n_cells)",
        "SELECT * FROM (SUMMARIZE wells)",
        "WITH one AS (SELECT 1) FROM one; -- end",
    ],
)
def test_permitted_statements(database: Path, sql: str) -> None:
    assert len(run_sql(database, sql))


def test_two_connections_of_one_process_can_be_open(database: Path) -> None:
    with connect(database) as first, connect(database) as second:
        sql = "SELECT count(*) FROM scores"
        assert first.execute(sql).fetchall() == second.execute(sql).fetchall()


def test_a_missing_or_foreign_database_raises_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="gradcamo demo"):
        connect(tmp_path / "qc.duckdb")
    duckdb.connect(tmp_path / "other.duckdb").close()
    with pytest.raises(StoreError, match="not a QC database"):
        connect(tmp_path / "other.duckdb")
    (tmp_path / "text.duckdb").write_text("hello, this is no database at all")
    with pytest.raises(StoreError, match="cannot be opened"):
        connect(tmp_path / "text.duckdb")


def test_csv_has_no_formulas_and_json_keeps_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "\nx", "\uff1d1", "x=1", "", None]
    frame = pl.DataFrame(
        {"=name": texts, "dose": [-1.5, 1e-7, *range(9)], "kind": pl.Series(texts, dtype=pl.Categorical)}, strict=False
    )
    render(frame, "csv")
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))
    escaped = [f"'{text}" for text in texts[:8] if text is not None] + ["x=1", "", ""]
    assert rows[0] == ["'=name", "dose", "kind"]
    assert [row[0] for row in rows[1:]] == [row[2] for row in rows[1:]] == escaped
    assert [float(row[1]) for row in rows[1:]] == frame["dose"].to_list()
    render(frame, "json")
    assert [row["=name"] for row in json.loads(capsys.readouterr().out)] == texts


def test_unknown_tables_and_formats_are_named(database: Path) -> None:
    with pytest.raises(StoreError, match="dose,site"):
        qc_table(database, "dose; DROP TABLE scores")
    with pytest.raises(StoreError, match="xml"):
        render(pl.DataFrame(), "xml")  # type: ignore[arg-type]


def test_results_survive_csv_json_and_parquet(database: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    frame = qc_table(database, "dose,site")
    for format, read in (("csv", pl.read_csv), ("json", pl.read_json), ("parquet", pl.read_parquet)):
        render(frame, format)  # type: ignore[arg-type]
        back = read(io.BytesIO(capsysbinary.readouterr().out))  # type: ignore[operator]
        for name in ("Metadata_Dose", "n_cells", "median_gradcamo", "ci_low"):
            assert back[name].to_list() == pytest.approx(frame[name].to_list(), nan_ok=True), (format, name)


def test_nested_values_and_big_sums_can_be_written(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = run_sql(database, "SELECT classes, metrics, metrics['accuracy'] AS a FROM models ORDER BY model_version")
    render(frame, "csv")
    assert json.loads(pl.read_csv(io.StringIO(capsys.readouterr().out))["classes"][0]) == ["a", "b"]
    assert frame["a"].to_list() == [0.1, 0.2]
    render(run_sql(database, "SELECT sum(n_cells) AS n FROM qc_by_plate"), "json")
    assert isinstance(json.loads(capsys.readouterr().out)[0]["n"], int)
    big = run_sql(
        database,
        "SELECT sum(n::BIGINT) AS n, sum(1) AS one FROM (VALUES (4611686018427387904), (4611686018427387906)) t(n)",
    )
    assert big.row(0) == (2**63 + 2, 2) and big.schema["one"] == pl.Int64


# An expression of each type of DuckDB, the text that table and CSV show, and the value in JSON.
VALUES: list[tuple[str, str, Any]] = [
    ("true", "true", True),
    ("(-128)::TINYINT", "-128", -128),
    ("255::UTINYINT", "255", 255),
    ("9223372036854775807", str(2**63 - 1), 2**63 - 1),
    ("18446744073709551615::UBIGINT", str(2**64 - 1), 2**64 - 1),
    ("(-170141183460469231731687303715884105728)::HUGEINT", str(-(2**127)), -(2**127)),
    ("340282366920938463463374607431768211455::UHUGEINT", str(2**128 - 1), 2**128 - 1),
    ("(10::BIGNUM)", "10", "10"),
    ("0.25::DOUBLE", "0.25", 0.25),
    ("0.25::FLOAT", "0.25", 0.25),
    ("'nan'::DOUBLE", "NaN", "NaN"),
    ("'-inf'::DOUBLE", "-inf", "-Infinity"),
    ("1.25", "1.25", 1.25),
    ("1.0000000000000000000000000000000000001::DECIMAL(38, 37)", f"1.{'0' * 36}1", f"1.{'0' * 36}1"),
    ("DATE '2024-03-31'", "2024-03-31", "2024-03-31"),
    ("TIME '10:00:00'", "10:00:00", "10:00:00"),
    ("TIME_NS '10:00:00.123456789'", "10:00:00.123456789", "10:00:00.123456789"),
    ("TIMETZ '10:00:00+02'", "10:00:00+02", "10:00:00+02"),
    ("TIMESTAMP '2024-03-31 01:30:00'", "2024-03-31 01:30:00", "2024-03-31T01:30:00"),
    ("TIMESTAMP_S '2024-03-31 01:30:00'", "2024-03-31 01:30:00", "2024-03-31T01:30:00"),
    ("TIMESTAMP_NS '2024-03-31 01:30:00.123456789'", *["2024-03-31 01:30:00.123456789"] * 2),
    ("TIMESTAMPTZ '2024-03-31 01:30:00+02'", "2024-03-30 23:30:00", "2024-03-30T23:30:00Z"),
    ("INTERVAL '2 months 3 days'", "2 months 3 days", "2 months 3 days"),
    ("'O''Brien, \"x\"'", "O'Brien", 'O\'Brien, "x"'),
    ("'\\x00a'::BLOB", "\\x00a", "\\x00a"),
    ("'101'::BIT", "101", "101"),
    ("'6ccd780c-baba-1026-9564-5b8c656024db'::UUID", *["6ccd780c-baba-1026-9564-5b8c656024db"] * 2),
    ("'b'::ENUM ('a', 'b')", "b", "b"),
    ("'{\"a\": 1}'::JSON", '{"a": 1}', '{"a": 1}'),
    ("[1, NULL]", "1", [1, None]),
    ("[1, 2]::INTEGER[2]", "1", [1, 2]),
    ("{'x': 1, 'y': ['nan'::DOUBLE]}", "1", {"x": 1, "y": ["NaN"]}),
    ("MAP {1: 'x'}", "x", {"1": "x"}),
    ("union_value(a := 1)", "1", "1"),
    ("1::VARIANT", "1", "1"),
    ("'POINT(1 2)'::GEOMETRY", "POINT (1 2)", "POINT (1 2)"),
    ("{'n': 9223372036854775808::HUGEINT}", '{"n":9223372036854775808}', '{"n":9223372036854775808}'),
    ("[INTERVAL '1 day']", '["1 day"]', '["1 day"]'),
    ("{'u': union_value(a := 'x')}", '{"u":{"a":"x"}}', '{"u":{"a":"x"}}'),
]


@pytest.mark.parametrize(("sql", "text", "value"), VALUES)
def test_values_of_every_type_are_written_in_every_format(
    database: Path, capsysbinary: pytest.CaptureFixture[bytes], sql: str, text: str, value: Any
) -> None:
    frame = run_sql(database, f"SELECT {sql} AS v UNION ALL SELECT NULL")
    written = {}
    for format in ("table", "csv", "json", "parquet"):
        render(frame, format)  # type: ignore[arg-type]
        written[format] = capsysbinary.readouterr().out
    assert text in written["table"].decode()
    assert json.loads(written["json"]) == [{"v": value}, {"v": None}]
    _, (cell, *_), *_ = csv.reader(io.StringIO(written["csv"].decode()))
    if isinstance(value, list | dict):
        assert json.loads(cell) == value
    else:
        assert cell.startswith(text.replace(" ", "T") if "TIMESTAMP" in sql else text)
    parquet = pl.read_parquet(io.BytesIO(written["parquet"]))["v"]
    assert frame["v"].null_count() == parquet.null_count() == 1
    assert not isinstance(value, int) or int(parquet[0]) == value


def test_intervals_without_months_are_durations(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [(timedelta(days=3), "3 days"), (timedelta(microseconds=-1), "-1 microseconds"), (None, None)]
    for expected, text in parts:
        sql = f"SELECT {'NULL' if text is None else repr(text)}::INTERVAL AS waited"
        assert run_sql(database, sql)["waited"].to_list() == [expected]
    waited = run_sql(database, "SELECT TIMESTAMP '2024-04-02' - TIMESTAMP '2024-03-31 01:30:00' AS waited")
    for format, text in (("table", " 1d 22h 30m "), ("csv", "\nP1DT22H30M\n"), ("json", '"P1DT22H30M"')):
        render(waited, format)  # type: ignore[arg-type]
        assert text in capsys.readouterr().out
    both = run_sql(database, "SELECT unnest([INTERVAL '1 month', INTERVAL '40 days', NULL]) AS v")
    assert both["v"].to_list() == ["1 month", "40 days", None]


@pytest.mark.parametrize("sql", ["'infinity'::TIMESTAMP", "'-infinity'::DATE", "DATE '290000-01-01'"])
def test_times_that_python_lacks_are_refused(database: Path, sql: str) -> None:
    with pytest.raises(StoreError, match=r"column 'v' has infinite times.*Cast the column to VARCHAR"):
        run_sql(database, f"SELECT {sql} AS v")
    assert len(run_sql(database, f"SELECT ({sql})::VARCHAR AS v"))


def test_columns_of_one_name_are_numbered(database: Path) -> None:
    assert run_sql(database, 'SELECT 1::HUGEINT AS a, 2 AS a, 3 AS "A""b"').to_dicts() == [{"a": 1, "a_1": 2, 'A"b': 3}]


def test_the_terminal_table_is_aligned_and_narrowed(database: Path) -> None:
    frame = qc_table(database, "site")
    wide, narrow = format_table(frame, 1000).splitlines(), format_table(frame, 80).splitlines()
    assert wide[0].split() == frame.columns
    assert narrow[0].startswith("model_name: hepg2")
    assert max(map(len, narrow)) < max(map(len, wide)) / 1.5
    assert wide[-1] == f"({len(frame)} rows)"
    assert format_table(pl.DataFrame(), 80)


@pytest.mark.slow
def test_broken_numbers_are_found(tmp_path: Path) -> None:
    lake, database = rows.filled(tmp_path / "lake", plates=1, sites=1, versions=1), tmp_path / "qc.duckdb"
    publish(lake, database)
    assert find_violations(database) == []
    good = lake.read("scores")
    value = pl.col("gradcamo")
    broken = {
        "exceeds": {"gradcamo_max": value - 0.01},
        "three shares": {"background_share": pl.col("background_share") + 1e-3},
        "evidence": {"evidence_target": pl.col("evidence_target") + 0.1},
        "reason": {"null_reason": pl.lit(None, pl.String)},
        "not kept": {"Metadata_CellID": pl.col("Metadata_CellID")},
    }
    flagged = lake.read("cells").with_columns(qc_flag=pl.lit("small"))
    for word, change in broken.items():
        lake.write("scores", good.with_columns(**change), plate="P1", site=1, model_run=rows.run_of(1))
        if word == "not kept":
            lake.write("cells", flagged, plate="P1", site=1)
        publish(lake, database)
        assert [text for text in find_violations(database) if word in text], word
        assert len(find_violations(database)) == 1
        assert (
            find_violations(database, ["P1"]) == find_violations(database) and find_violations(database, ["P2"]) == []
        )
