"""Check a version's metrics against loops, and the MLflow run of a training that ends or fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from gradcamo_assets.cells import open_crops
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.training.evaluation import (
    best_median_worst,
    calibration_bins,
    code_versions,
    compute_metrics,
    confusion_counts,
    evaluate_cells,
    unseen_cells,
)
from gradcamo_assets.training.mlflow_runs import EPOCH_EMBEDDINGS, Links
from gradcamo_assets.training.model_registry import ModelRegistry
from gradcamo_assets.training.split import split_wells
from gradcamo_assets.training.training import TrainingConfig, TrainingResult
from gradcamo_assets.training.training_run import CELLS, EVIDENCE, _draw_figures, labelled_crops, train_and_register
from gradcamo_assets_tests.training.tiny import write_plate

CLASSES = ["a", "b", "c"]


def _evaluated(rows: list[tuple]) -> pl.DataFrame:
    columns = {"true_class": pl.String, "predicted_class": pl.String, "probability": pl.Float64}
    columns |= {"gradcamo": pl.Float64, "gradcamo_adjusted": pl.Float64, "looks_at": pl.String}
    frame = pl.DataFrame(rows, columns, orient="row")
    return frame.with_columns(on_target=pl.col("gradcamo") > 0.5)


_CELL = st.tuples(
    st.sampled_from(CLASSES),
    st.sampled_from(CLASSES),
    st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.6, 0.7, 1.0])),
    st.one_of(st.none(), st.floats(0, 1)),
    st.one_of(st.none(), st.floats(-1, 1)),
    st.sampled_from(["target", "neighbour", "background", "none"]),
)


@given(st.lists(_CELL, min_size=1, max_size=40))
def test_metrics_equal_loops(rows: list[tuple]) -> None:
    cells = _evaluated(rows)
    found = compute_metrics(cells, "test")
    hits = [true == predicted for true, predicted, *_ in rows]
    assert found["test_accuracy"] == pytest.approx(np.mean(hits))
    assert found["test_crops"] == len(rows)
    truth, guesses = [row[0] for row in rows], [row[1] for row in rows]
    assert found["test_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guesses))
    error, edges = 0.0, [k / 10 for k in range(11)]
    for low, high in pairwise(edges):
        inside = [k for k, row in enumerate(rows) if low < row[2] <= high or (low == 0 and row[2] == 0)]
        if inside:
            gap = np.mean([hits[k] for k in inside]) - np.mean([rows[k][2] for k in inside])
            error += len(inside) / len(rows) * abs(gap)
    assert found["test_ece"] == pytest.approx(error, abs=1e-9)
    assert calibration_bins(cells)["cells"].sum() == len(rows)
    scored = [row for row in rows if row[3] is not None]
    assert ("test_median_gradcamo" in found) == bool(scored)
    if scored:
        assert found["test_median_gradcamo"] == pytest.approx(np.median([row[3] for row in scored]))
        assert found["test_on_target_fraction"] == pytest.approx(np.mean([row[3] > 0.5 for row in scored]))
        assert found["test_looks_at_target"] == pytest.approx(np.mean([row[5] == "target" for row in scored]))
    matrix = confusion_counts(cells, CLASSES)
    for i, true in enumerate(CLASSES):
        for j, predicted in enumerate(CLASSES):
            assert matrix[i, j] == sum(row[:2] == (true, predicted) for row in rows)
    shown = best_median_worst(cells)
    assert len(shown) == len(set(shown)) == min(6, sum(row[4] is not None for row in rows))
    if shown:
        adjusted = [row[4] for row in rows if row[4] is not None]
        assert (rows[shown[0]][4], rows[shown[-1]][4]) == (max(adjusted), min(adjusted))


def test_evaluation_in_batches_equals_evaluation_of_single_cells(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, wells=2, cells=5)
    crops = labelled_crops(cells, [open_crops(path) for path in paths], ["a", "b"], ["ER", "DNA"])
    torch.manual_seed(0)
    model, layer = build_encoder("efficientnet3d-small", 2, 2)
    model = model.eval()
    evaluated = evaluate_cells(model, [layer, "body.3"], crops, ["a", "b"], batch_size=4)
    assert evaluated[layer]["Metadata_CellID"].to_list() == cells["Metadata_CellID"].to_list()
    assert evaluated[layer]["true_class"].to_list() == cells["treatment_class"].to_list()
    assert evaluated[layer]["Metadata_Well"].to_list() == cells["Metadata_Well"].to_list()
    for row in range(len(crops)):
        image, labels, _ = crops[row]
        probabilities = model(image[None]).softmax(1)[0]
        for name, found in evaluated.items():
            alone = gradcamo(model, image[None], labels[None] == 1, name, labels[None] == 2)
            cell = found.row(row, named=True)
            assert cell["predicted_class"] == "ab"[int(probabilities.argmax())]
            assert cell["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
            assert cell["gradcamo"] == pytest.approx(alone.gradcamo[0], abs=1e-4)
            assert cell["looks_at"] == alone.looks_at[0]
            assert cell["on_target"] == (alone.gradcamo[0] > 0.5)


class _Planar(nn.Module):
    """A 2D network with a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def test_a_2d_network_is_evaluated_and_drawn_on_single_planes(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, wells=2, cells=4, shape=(1, 24, 24))
    crops = labelled_crops(cells, [open_crops(path) for path in paths], ["a", "b"], ["DNA", "ER"])
    torch.manual_seed(0)
    model = _Planar().eval()
    evaluated = evaluate_cells(model, ["features"], crops, ["a", "b"])["features"]
    images = torch.stack([crops[row][0][:, 0] for row in range(len(crops))])
    assert evaluated["predicted_class"].to_list() == ["ab"[k] for k in model(images).argmax(1)]
    result = TrainingResult(model, "features", {}, {"train_loss": [1.0]}, tmp_path)
    assert evaluated["gradcamo_adjusted"].count() > 0
    assert set(_draw_figures(result, crops, evaluated, ["a", "b"])) == {"confusion", "curves", "maps", "reliability"}


def test_unseen_cells_share_classes_but_no_plate_with_the_split() -> None:
    plates = {"seen": "abc", "other": "abx", "controls": "a", "foreign": "xy"}
    rows = [
        (f"{p}/A0{k}/1/{i}", p, f"A0{k}", c) for p, cs in plates.items() for k, c in enumerate(cs) for i in range(5)
    ]
    names = ["Metadata_CellID", "Metadata_Plate", "Metadata_Well", "treatment_class"]
    cells = pl.DataFrame(rows, names, orient="row")
    split = pl.DataFrame([("seen", f"A0{k}", "train") for k in range(3)], [*names[1:3], "split"], orient="row")
    found = unseen_cells(cells, split)
    assert set(found["Metadata_Plate"]) == {"other"}
    assert set(found["treatment_class"]) == {"a", "b"} and len(found) == 10
    few = unseen_cells(cells.sample(fraction=1, shuffle=True, seed=3), split, max_cells=4)
    assert len(few) == 4 and few.equals(unseen_cells(cells, split, max_cells=4))


def test_mlflow_holds_a_versions_evidence(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, wells=6, cells=6)
    others, other_paths = write_plate(tmp_path, "Q", wells=2, cells=6)
    _, odd_paths = write_plate(tmp_path, "R", wells=1, cells=2, shape=(2, 32, 32))
    registry, open_runs = ModelRegistry(tmp_path / "mlflow"), []

    def started(run_id: str) -> None:
        open_runs.append(registry.client.get_run(run_id).info.status)

    fitted = train_and_register(
        cells, split_wells(cells), paths, TrainingConfig(epochs=3, batch_size=8), registry, work=tmp_path,
        progress=False, tags={"dagster_run_id": "abc"}, unseen=(others, [*other_paths, *odd_paths]),
        on_run_start=started,
    )  # fmt: skip
    assert open_runs == ["RUNNING"]
    run = registry.client.get_run(fitted.version.run_id)
    assert run.info.status == "FINISHED"
    for part in ("val", "test", "unseen"):
        assert {f"{part}_{name}" for name in ("accuracy", "balanced_accuracy", "ece")} <= run.data.metrics.keys()
    maps = {"median_gradcamo", "median_adjusted", "on_target_fraction", "looks_at_target"}
    assert {f"test_{name}" for name in maps} <= run.data.metrics.keys()
    swapped = {"accuracy_audited", "accuracy_swapped", "survives_swap", "trusted", "audited", "one_treatment_per_well"}
    assert {f"test_{name}" for name in swapped} <= run.data.metrics.keys()
    page = registry.client.get_model_version(registry.name, "1")
    assert page.tags["test_survives_swap"] == f"{run.data.metrics['test_survives_swap']:.3f}"
    assert f"| Accuracy on unseen plates | {run.data.metrics['unseen_balanced_accuracy']:.3f} |" in page.description
    assert {"seconds", "peak_memory_mb", "train_crops", "curve_train_loss"} <= run.data.metrics.keys()
    assert run.data.metrics["unseen_crops"] == 12
    assert run.data.params["epochs"] == "3"
    assert run.data.tags["dagster_run_id"] == "abc" and run.data.tags["torch"] == torch.__version__
    tables = json.loads(registry.read_artifact(fitted.version, EVIDENCE) or b"")
    assert np.sum(tables["test"]["confusion"]) == fitted.crops["test"]
    assert sum(bin_row["cells"] for bin_row in tables["unseen"]["calibration"]) == 12
    assert sum(tables["data"]["P"]["crops"].values()) == 36 and tables["data"]["Q"]["crops"]["unseen"] == 12
    inputs = {plate.dataset.name: json.loads(plate.dataset.profile) for plate in run.inputs.dataset_inputs}
    assert inputs == tables["data"]
    evaluated = pl.read_parquet(io.BytesIO(registry.read_artifact(fitted.version, CELLS) or b""))
    assert dict(evaluated["split"].value_counts().iter_rows()) == {"test": fitted.crops["test"], "unseen": 12}
    assert (evaluated["mask_version"] == "masks of " + evaluated["Metadata_Well"]).all()
    figures = {file.path for file in registry.client.list_artifacts(fitted.version.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("confusion", "curves", "maps", "reliability")}
    epochs = pl.read_parquet(io.BytesIO(registry.read_artifact(fitted.version, EPOCH_EMBEDDINGS) or b""))
    assert epochs["epoch"].unique().to_list() == [1, 2, 3] and len(epochs) == 3 * fitted.crops["val"]
    assert registry.read_artifact(fitted.version, "nothing.csv") is None
    pages = registry.page_urls(Links(mlflow_url="http://lab:5000/"), fitted.version.run_id, fitted.version)
    assert pages["mlflow_version"] == "http://lab:5000/#/models/gradcamo-encoder/versions/1"
    assert ModelRegistry(tmp_path, uri="http://mlflow:5000").is_server and not registry.is_server
    own = registry.page_urls(Links(), fitted.version.run_id, fitted.version)
    assert own["mlflow_version"] == "http://127.0.0.1:5000/#/models/gradcamo-encoder/versions/1"
    assert pages["mlflow_run"].endswith(f"/runs/{fitted.version.run_id}")
    assert registry.versions() == [fitted.version]

    lines: list[str] = []
    again = train_and_register(
        cells, split_wells(cells), paths, TrainingConfig(epochs=1, batch_size=8), registry, work=tmp_path,
        progress=False, report=lines.append, unseen=(others, [*other_paths, tmp_path / "gone.zarr"]),
    )  # fmt: skip
    assert lines[-1].startswith("unseen plates are left out") and "gone.zarr" in lines[-1]
    assert "unseen_accuracy" not in again.result.metrics and again.result.metrics["test_crops"] > 0


def test_failed_and_killed_trainings_end_as_failed_runs(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    with pytest.raises(KeyboardInterrupt), registry.start_run({"epochs": 3}) as failed:
        raise KeyboardInterrupt("somebody pressed stop")
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    client = registry.client
    tags_of_failed = client.get_run(failed).data.tags
    experiment = client.get_run(failed).info.experiment_id
    others = [
        {"process": str(killed.pid)},
        {"process": str(os.getpid())},
        {"process": str(killed.pid), "host": "other"},
    ]
    runs = [client.create_run(experiment, tags={"host": tags_of_failed["host"], **tags}).info.run_id for tags in others]
    with registry.start_run() as finished:
        pass
    states = [client.get_run(run_id).info.status for run_id in [failed, *runs, finished]]
    assert states == ["FAILED", "FAILED", "RUNNING", "RUNNING", "FINISHED"]
    assert tags_of_failed["error"] == "KeyboardInterrupt: somebody pressed stop"


def test_the_commit_tag_is_that_of_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradcamo_assets

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "gradcamo_assets"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(gradcamo_assets, "__file__", str(package / "__init__.py"))
    commit = "mlflow.source.git.commit"
    assert commit not in code_versions()
    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "a project that does not track the package")
    assert commit not in code_versions()
    git("add", ".")
    git("commit", "-m", "the package")
    assert code_versions()[commit] == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert code_versions()[commit] == git("rev-parse", "HEAD") + "-dirty"
