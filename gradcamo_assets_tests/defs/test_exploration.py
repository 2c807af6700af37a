"""The assets that compare versions and explore settings; links between Dagster and MLflow runs."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from gradcamo_assets.defs.assets.comparison_assets import encoder_exploration, model_comparison
from gradcamo_assets.tables import run_sql
from gradcamo_assets.training.model_registry import ModelVersion
from gradcamo_assets_tests.defs.conftest import Bench


def _metadata(bench: Bench, asset: dg.AssetsDefinition, run_config: dict | None = None) -> dict:
    result = dg.materialize([asset], resources={"platform": bench.platform}, run_config=run_config, selection=[asset])
    assert result.success
    return {
        name: value.value for name, value in result.asset_materializations_for_node(asset.op.name)[0].metadata.items()
    }


def test_the_runs_in_mlflow_and_dagster_link_to_each_other(scored_bench: Bench) -> None:
    event = scored_bench.instance.get_latest_materialization_event(dg.AssetKey("trained_model"))
    assert event and event.asset_materialization
    metadata = event.asset_materialization.metadata
    registry = scored_bench.platform.registry
    version = registry.versions()[0]
    run = registry.client.get_run(version.run_id)
    assert str(metadata["mlflow_run"].value).endswith(f"/runs/{version.run_id}")
    assert str(metadata["mlflow_version"].value).endswith("/versions/1")
    assert run.data.tags["dagster_url"] == f"http://127.0.0.1:3000/runs/{event.run_id}"
    assert run.data.tags["dagster_job"] == "train_model"
    stored = run_sql(
        scored_bench.home.database, "SELECT metrics['test_ece'], metrics['peak_memory_mb'] FROM models"
    ).row(0)
    assert stored == (run.data.metrics["test_ece"], run.data.metrics["peak_memory_mb"])
    log = [entry.message for entry in scored_bench.instance.all_logs(event.run_id)]
    assert any(version.run_id in line for line in log), "the log contains the link"


def test_logged_metrics_equal_those_of_the_scores(scored_bench: Bench) -> None:
    registry = scored_bench.platform.registry
    metrics = registry.client.get_run(registry.versions()[0].run_id).data.metrics
    found = run_sql(
        scored_bench.home.database,
        "SELECT accuracy_test, (SELECT count(*) FROM scores WHERE split = 'test') FROM model_comparison",
    ).row(0)
    assert found[1] == metrics["test_crops"]
    # Scores computed in bfloat16 can change the class of a cell with nearly equal logits.
    assert found[0] == pytest.approx(metrics["test_accuracy"], abs=1.01 / found[1])


def test_versions_are_compared_and_settings_explored(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    registry = bench.platform.registry
    first = registry.versions()[0]
    alone = _metadata(bench, model_comparison)
    assert alone["champion"] == 1 and "version" not in alone["paired_with_the_champion"].splitlines()[-1]
    again = _register_copy(bench, first)
    both = _metadata(bench, model_comparison)
    assert both["versions"] == 2
    rows = both["paired_with_the_champion"].splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["accuracy", "on_target_fraction", "gradcamo_adjusted"][
        : len(rows)
    ]
    assert rows and all(row.split("|")[1].strip() == str(again.version) for row in rows)
    assert float(rows[0].split("|")[5]) == 0, "it is the same network on the same cells"

    config = {"cells": 8, "epochs": 1, "crop_sizes": [32], "maskings": ["none"]}
    exploration = _metadata(bench, encoder_exploration, {"ops": {"encoder_exploration": {"config": config}}})
    layers = pl.read_csv(bench.home.reports / "exploration_layers.csv")
    assert layers["layer"].to_list()[-1] == "activation" and len(layers) > 1
    crops = pl.read_csv(bench.home.reports / "exploration_crops.csv")
    assert crops.select("size", "masking").rows() == [(32, "none")]
    assert exploration["model_version"] == 1 and exploration["crops_figure"].startswith("[![")


def _register_copy(bench: Bench, version: ModelVersion) -> ModelVersion:
    """Register the network of a version again as the next version, with the cells logged with the first."""
    from gradcamo_assets.networks.bundle import load_bundle
    from gradcamo_assets.training.training_run import CELLS

    registry = bench.platform.registry
    model, config = load_bundle(registry.fetch(version))
    return registry.register(model, config, files={CELLS: registry.read_artifact(version, CELLS) or b""})
