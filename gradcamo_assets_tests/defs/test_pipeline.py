"""One plate from the inbox to SQL, and its invariants."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from polars.testing import assert_frame_equal
from scipy.stats import spearmanr

from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.cli import main
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.tables import find_violations, qc_table, run_sql
from gradcamo_assets_tests.defs.conftest import Bench

HEAVY = (
    "torch", "mlflow", "lightning", "monai", "scipy.ndimage", "scipy.special", "scipy.stats", "matplotlib", "sklearn",
    "zarr", "ngio", "cellpose", "umap", "numba", "pandas", "pyarrow", "deltalake", "tifffile", "skimage",
)  # fmt: skip
"""Modules that only those runs import which use them: every run and step of a run loads the definitions."""


def test_every_kept_cell_has_one_score_and_the_numbers_hold(scored_bench: Bench) -> None:
    home = scored_bench.home
    assert find_violations(home.database) == []
    counts = run_sql(
        home.database,
        "SELECT (SELECT count(*) FROM cells WHERE qc_flag IS NULL) AS kept, count(*) AS scores, "
        "count(DISTINCT Metadata_CellID) AS cells FROM current_scores",
    )
    kept, scores, cells = counts.row(0)
    assert kept == scores == cells > 20
    assert run_sql(home.database, "SELECT count(*) FROM stale_scores").item() == 0


def test_cells_join_their_crops_and_embeddings(scored_bench: Bench) -> None:
    lake = scored_bench.platform.lake
    cells = run_sql(scored_bench.home.database, "SELECT * FROM cells WHERE crop_index IS NOT NULL")
    for row in cells.sample(5, seed=1).iter_rows(named=True):
        place = f"{row['Metadata_Well']}_s{row['Metadata_Site']}"
        field = open_crops(scored_bench.home.crops / "tiny" / place / row["crop_version"])
        assert field.cell_ids[row["crop_index"]] == row["Metadata_CellID"]
        assert field.version == row["crop_version"]
    embeddings = lake.read("embeddings")
    assert set(embeddings["Metadata_CellID"]) == set(cells["Metadata_CellID"])
    assert embeddings["embedding"].list.len().unique().to_list() == [96]
    published = run_sql(scored_bench.home.database, "SELECT count(*) FROM embeddings")
    assert published.item() == len(embeddings)


def test_cells_with_crops_are_the_same_in_python_and_in_sql(scored_bench: Bench) -> None:
    found = run_sql(scored_bench.home.database, "SELECT * FROM cells ORDER BY Metadata_CellID")
    cells = cells_with_crops(scored_bench.platform.lake).sort("Metadata_CellID").collect()
    assert (found["qc_flag"].is_null() == found["crop_index"].is_not_null()).all()
    assert_frame_equal(cells, found, check_column_order=False, check_dtypes=False)


def test_the_split_in_the_scores_is_the_one_logged_with_the_model(scored_bench: Bench) -> None:
    scores = run_sql(
        scored_bench.home.database,
        "SELECT DISTINCT s.split, list_contains(m.train_wells, s.Metadata_Plate || '/' || s.Metadata_Well) AS trained "
        "FROM scores s JOIN models m USING (model_name, model_version)",
    )
    assert {split for split, trained in scores.rows() if trained} == {"train"}
    assert {split for split, trained in scores.rows() if not trained} <= {"val", "test"}


def test_profile_tables_are_published(scored_bench: Bench) -> None:
    for table in ("profiles", "umap", "confounder_audit", "audit", "models", "promotions", "plates", "wells"):
        assert run_sql(scored_bench.home.database, f"SELECT count(*) FROM {table}").item() > 0, table
    assert len(qc_table(scored_bench.home.database, by="dose,site")) == 4


def test_the_audit_covers_a_sample_of_cells_and_is_computed_once(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    audited = run_sql(bench.home.database, "SELECT audit.* FROM audit JOIN scores USING (Metadata_CellID)")
    assert 2 <= len(audited) <= 32 and audited["Metadata_CellID"].n_unique() == len(audited)
    for name in ("logit_drop_target", "embedding_move_background", "effect_target", "deletion_auc", "insertion_auc"):
        assert audited[name].null_count() < len(audited), name
    assert audited["effect_target"].drop_nulls().is_between(0, 1).all()
    summary = run_sql(bench.home.database, "SELECT * FROM audit_by_plate").row(0, named=True)
    held_out = run_sql(
        bench.home.database,
        "SELECT gradcamo_adjusted, effect_target FROM audit JOIN scores USING (Metadata_CellID) WHERE split <> 'train'",
    )
    joined = held_out.drop_nulls()
    assert summary["n_cells"] == len(held_out) >= 2, "held-out cells are audited first"
    assert summary["score_effect_correlation"] == pytest.approx(spearmanr(*joined.to_numpy().T).statistic)
    before = bench.platform.lake.delta_version("audit")
    assert bench.run("audit_plates", "tiny").success
    assert bench.platform.lake.delta_version("audit") == before


def test_a_rerun_recomputes_nothing_that_is_up_to_date(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    lake = bench.platform.lake

    def made() -> list[pl.DataFrame]:
        rows = [lake.read(table).sort("Metadata_CellID") for table in ("cells", "crops")]
        return rows + [lake.partition_versions(f"{stage}_versions") for stage in ("mask", "cell", "crop")]

    before, files = made(), {path for store in (bench.home.masks, bench.home.crops) for path in store.rglob("*")}
    result = bench.run("process_fields", plate_site_key("tiny", 1))
    assert result.success
    metadata = result.asset_materializations_for_node("masks")[0].metadata
    assert metadata["fields_already_right"].value == metadata["fields"].value == 6
    assert all(map(pl.DataFrame.equals, made(), before))
    assert {path for store in (bench.home.masks, bench.home.crops) for path in store.rglob("*")} == files


def test_the_metadata_say_what_ran_the_networks(scored_bench: Bench) -> None:
    expected = "torch" if torch.cuda.is_available() else "openvino"
    for asset in ("masks", "embeddings", "gradcamo_scores"):
        event = scored_bench.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event and event.asset_materialization
        assert event.asset_materialization.metadata["runtime"].value == expected


def test_the_report_is_one_page_that_needs_no_network(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    assert bench.run("report_plates", "tiny").success
    page = (bench.home.reports / "tiny" / "gradcamo-encoder-v1.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "http:" not in page and "https:" not in page
    assert "held-out" in page
    for title in (
        "From a cell to its score",
        "Segmentation",
        "Cells by treatment",
        "Where the model looks",
        "Map of the",
    ):
        assert f">{title}" in page, title


def test_the_command_line_answers(scored_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAMO_HOME", str(scored_bench.home.root))
    runner = CliRunner()
    for arguments, expected in (
        (["sql", "SELECT count(*) AS n FROM scores", "--format", "csv"], "n\n"),
        (["qc", "--by", "dose"], "cpd-A"),
        (["qc", "--by", "model", "--format", "json"], "gradcamo-encoder"),
        (["--help"], "synth"),
    ):
        result = runner.invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert expected in result.output
    refused = runner.invoke(main, ["sql", "DROP TABLE scores"])
    assert refused.exit_code == 1
    assert "single read-only statement" in refused.output
    monkeypatch.setenv("GRADCAMO_HOME", str(scored_bench.home.root / "nowhere"))
    assert "QC database does not exist" in runner.invoke(main, ["qc"]).output


def test_synth_writes_a_plate(tmp_path: Path) -> None:
    arguments = ["synth", str(tmp_path), "--plate", "p1", "--wells", "2", "--sites", "1", "--shape", "3,64,64"]
    result = CliRunner().invoke(main, [*arguments, "--cells", "2", "--labels", "cell"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1.csv", "p1.labels.csv", "p1.zarr"]
    assert CliRunner().invoke(main, ["synth", str(tmp_path), "--plate", "../x"]).exit_code == 1


def test_definitions_load_without_warnings_of_the_package() -> None:
    import subprocess
    import sys

    code = "import gradcamo_assets.definitions as d; d.defs.get_repository_def()"
    result = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "gradcamo_assets" not in result.stderr


def test_definitions_load_without_heavy_imports() -> None:
    import subprocess
    import sys

    code = (
        "import sys, gradcamo_assets.definitions as d; d.defs.get_repository_def(); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_steps_of_a_run_share_one_process(scored_bench: Bench) -> None:
    repository = scored_bench.definitions.get_repository_def()
    assert {job.executor_def.name for job in repository.get_all_jobs()} == {"in_process"}


def test_contract_names(scored_bench: Bench) -> None:
    defs = scored_bench.definitions
    keys = {key.to_user_string() for key in defs.get_repository_def().asset_graph.get_all_asset_keys()}
    assert keys == {
        "plate_images", "masks", "cells", "crops", "data_split", "trained_model", "champion_model", "embeddings",
        "gradcamo_scores", "audit", "qc_database", "qc_report", "profiles", "umap", "replicability",
        "confounder_audit", "channel_correlation", "model_comparison", "encoder_exploration", "promotion",
    }  # fmt: skip
    assert {job.name for job in defs.jobs or []} >= {"ingest_plates", "train_model", "rescore", "refresh_qc"}
    assert [schedule.name for schedule in defs.schedules or []] == [
        "nightly_ingest", "nightly_tidying", "weekly_training",
    ]  # fmt: skip
    assert {sensor.name for sensor in defs.sensors or []} >= {
        "inbox_sensor", "champion_model_sensor", "publication_sensor", "report_sensor",
    }  # fmt: skip
