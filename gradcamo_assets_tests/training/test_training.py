"""Check training that is killed, stopped early, distributed over processes, or on single planes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradcamo_assets.cells import TARGET, open_crops, write_crops
from gradcamo_assets.cells.dataset import BalancedSampler, CropDataset
from gradcamo_assets.errors import BundleError, GradcamoError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.bundle import BundleConfig, load_bundle, save_bundle
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.training.evaluation import compute_metrics, evaluate_cells
from gradcamo_assets.training.training import TrainingConfig, TrainingResult, train_encoder
from gradcamo_assets.training.training_run import common_geometry

CONFIG = TrainingConfig(epochs=4, batch_size=8, rotate=0.5, shift_z=0.5, noise=0.1)


def _crops(folder: Path, shape: tuple[int, int, int] = (2, 24, 24), seed: int = 0) -> Path:
    """Write 48 crops of two stains; every second crop has a bright target."""
    rng, path = np.random.default_rng(seed), folder / f"crops{seed}.zarr"
    labels = np.zeros((48, *shape), np.uint8)
    labels[:, :, 8:16, 8:16] = 1
    images = (
        rng.poisson(100, (48, 2, *shape)) + (400 * (np.arange(48) % 2)[:, None, None, None] * (labels == 1))[:, None]
    )
    write_crops(
        path, iter(zip(images.astype(np.uint16), labels, strict=True)), cell_ids=[f"P/A01/1/{i}" for i in range(48)],
        shape=shape, channels=["DNA", "ER"], statistics={"center": [100.0] * 2, "scale": [100.0] * 2},
        voxel_size=[1.0, 0.5, 0.5], provenance=Provenance(str(seed), {}, "1"),
    )  # fmt: skip
    return path


def _train(path: Path, config: TrainingConfig, work: Path, lines: list[str] | None = None) -> TrainingResult:
    field = open_crops(path)
    train, validation = (
        CropDataset([field], {f"P/A01/1/{i}": i % 2 for i in rows}, field.channels)
        for rows in (range(0, 32), range(32, 48))
    )
    report = None if lines is None else lines.append
    return train_encoder(
        train, validation, ["a", "b"], config, work=work, progress=False, report=report, modules=[__name__]
    )


class _Killing(list):
    """A list of report lines that kills its process at the end of the third epoch."""

    def append(self, line: str) -> None:
        if line.startswith("epoch 3"):
            os.kill(os.getpid(), signal.SIGKILL)


def _until_killed(path: Path, work: Path, threads: int) -> None:
    torch.set_num_threads(threads)  # Another number of threads changes the last digits of sums.
    _train(path, CONFIG, work, _Killing())


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_same_result(tmp_path: Path) -> None:
    path = _crops(tmp_path)
    process = multiprocessing.get_context("spawn").Process(
        target=_until_killed, args=(path, tmp_path / "killed", torch.get_num_threads())
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    lines: list[str] = []
    resumed = _train(path, CONFIG, tmp_path / "killed", lines)
    assert [line.split(":")[0] for line in lines] == ["resuming after epoch 2", "epoch 3 of 4", "epoch 4 of 4"]
    assert lines[-1].endswith("0:00:00 left")
    whole = _train(path, CONFIG, tmp_path / "whole")
    for name, curve in whole.curves.items():
        assert resumed.curves[name] == pytest.approx(curve, rel=1e-4), name
    assert resumed.metrics["seconds"] > 0
    np.testing.assert_allclose(resumed.embeddings, whole.embeddings, rtol=1e-3, atol=1e-4)

    again: list[str] = []
    finished = _train(path, CONFIG, tmp_path / "killed", again)
    assert again == []
    assert finished.metrics == resumed.metrics
    (resumed.checkpoints / "last.ckpt").write_bytes(b"PK\3\4 torn")
    _train(path, replace(CONFIG, epochs=1), tmp_path / "killed", again)
    _train(_crops(tmp_path, seed=1), replace(CONFIG, epochs=1), tmp_path / "killed", again)
    assert len(again) == 2, "another configuration or other crops start a new training"
    _train(path, CONFIG, tmp_path / "killed", again)
    assert len(again) == 6, "a damaged checkpoint is ignored"


def test_the_last_embeddings_are_those_of_the_returned_network(tmp_path: Path) -> None:
    result = _train(_crops(tmp_path), replace(CONFIG, epochs=2), tmp_path)
    field = open_crops(tmp_path / "crops0.zarr")
    held_out = CropDataset([field], {f"P/A01/1/{i}": i % 2 for i in range(32, 48)}, field.channels)
    images, labels = (torch.stack(parts) for parts in list(zip(*held_out, strict=True))[:2])
    expected = gradcamo(result.model, images, labels == TARGET, layer=result.layer).embedding
    assert len(result.embeddings) == 2
    np.testing.assert_allclose(result.embeddings[-1], expected, rtol=1e-3, atol=1e-4)


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=40, batch_size=8, learning_rate=0.05, patience=2)
    result = _train(_crops(tmp_path), config, tmp_path)
    losses = result.curves["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 40
    assert result.metrics["val_loss"] == losses[best]
    field = open_crops(tmp_path / "crops0.zarr")
    held_out = CropDataset([field], {f"P/A01/1/{i}": i % 2 for i in range(32, 48)}, field.channels)
    with torch.inference_mode():
        images, targets = torch.stack([image for image, _, _ in held_out]), torch.from_numpy(held_out.targets)
        assert float(nn.functional.cross_entropy(result.model(images), targets)) == pytest.approx(
            losses[best], rel=1e-3
        )
    lines: list[str] = []
    assert _train(tmp_path / "crops0.zarr", config, tmp_path, lines).curves == result.curves
    assert lines == []


def test_a_diverged_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GradcamoError, match="not finite"):
        _train(_crops(tmp_path), TrainingConfig(epochs=3, learning_rate=1e30, patience=3), tmp_path)
    assert not list((tmp_path / "training").iterdir())


@pytest.mark.slow
def test_two_processes_train_one_encoder(tmp_path: Path) -> None:
    lines: list[str] = []
    result = _train(_crops(tmp_path), replace(CONFIG, epochs=3, devices=2), tmp_path, lines)
    assert [line.split(":")[0] for line in lines] == [f"epoch {epoch} of 3" for epoch in (1, 2, 3)]
    assert all(len(curve) == 3 for curve in result.curves.values())
    assert result.curves["train_accuracy"][-1] > 0.9


def test_sampling_is_balanced_split_over_processes_and_determined_by_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    alone = BalancedSampler(targets, 3000, seed=5)
    first = list(alone)
    assert list(alone) == first
    alone.set_epoch(1)
    assert list(alone) != first
    assert np.bincount(targets[first]) == pytest.approx([1000] * 3, rel=0.1)
    shares = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(BalancedSampler(targets, 1500, seed=5, ranks=2)))
        assert np.bincount(targets[shares[-1]]) == pytest.approx([500] * 3, rel=0.15)
    assert [item for pair in zip(*shares, strict=True) for item in pair] == first


def planar_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A user-defined 2D network."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    ), "2"  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "precision"),
    [
        pytest.param("efficientnet3d-small", "auto", marks=pytest.mark.slow),
        (f"{__name__}:planar_encoder", "bfloat16"),
    ],
)
def test_single_planes_train_2d_and_3d_networks(encoder: str, precision: Any, tmp_path: Path) -> None:
    path = _crops(tmp_path, (1, 24, 24))
    config = replace(CONFIG, encoder=encoder, epochs=16, learning_rate=0.02, precision=precision)
    result = _train(path, config, tmp_path)
    field = open_crops(path)
    held_out = CropDataset([field], {f"P/A01/1/{i}": i % 2 for i in range(32, 48)}, ["DNA", "ER"])
    cells = evaluate_cells(result.model, [result.layer], held_out, ["a", "b"])[result.layer]
    assert compute_metrics(cells, "val")["val_balanced_accuracy"] > 0.9


def batch_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A network that normalises with the statistics of the batch."""
    model, layer = planar_encoder(in_channels, classes)
    assert isinstance(model, nn.Sequential)
    model[1] = nn.BatchNorm2d(8, track_running_stats=False)
    return model, layer


def one_logit_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A network with one logit."""
    return planar_encoder(in_channels, 1)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("batch_encoder", "BatchNorm2d.* has no running statistics"),
        ("one_logit_encoder", r"returns \(1, 1\) for one crop, not 2 logits"),
    ],
)
def test_an_encoder_that_could_not_be_loaded_afterwards_is_refused_before_training(
    encoder: str, message: str, tmp_path: Path
) -> None:
    path = _crops(tmp_path, (1, 24, 24))
    with pytest.raises(BundleError, match=message):
        _train(path, replace(CONFIG, encoder=f"{__name__}:{encoder}"), tmp_path)
    with pytest.raises(BundleError, match=r"not listed.*\[encoders\]"):
        _train(path, replace(CONFIG, encoder="some_module:build"), tmp_path)
    assert not (tmp_path / "training").exists()


def shared_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A network that uses one block twice; its layer has two names."""
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return nn.Sequential(nn.Conv2d(in_channels, 8, 1), block, block, *head), "2"


def test_a_network_with_shared_weights_is_trained_resumed_and_kept(tmp_path: Path) -> None:
    path, config = _crops(tmp_path, (1, 24, 24)), replace(CONFIG, encoder=f"{__name__}:shared_encoder", epochs=2)
    lines: list[str] = []
    first, again = (_train(path, config, tmp_path, lines) for _ in range(2))
    assert len(lines) == 2, "the finished training was read from its checkpoint"
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict())
    bundle = BundleConfig(config.encoder, first.layer, ["a", "b"], ["DNA", "ER"], [1, 24, 24], [1.0, 0.5, 0.5])
    save_bundle(tmp_path / "bundle", first.model, bundle)
    loaded, _ = load_bundle(tmp_path / "bundle", [__name__])
    images = torch.randn(2, 2, 24, 24)
    torch.testing.assert_close(loaded(images), first.model(images))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0}, {"flip": 1.5}, {"noise": -1.0}, {"precision": "int8"}, {"devices": 0}, {"devices": 99},
        {"swap": 1.1}, {"regulariser": "energy"}, {"regulariser_weight": -1.0},
        {"regulariser_target": 0.0}, {"swap_pool": -1}, {"objective": "byol"}, {"positives": "treatment"},
        {"positives": "well", "objective": "simclr"}, {"regulariser": "gradcamo", "objective": "vicreg"},
        {"batch_size": 1, "objective": "simclr"}, {"batch_size": 5, "devices": 3, "objective": "vicreg"},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(change: dict) -> None:
    with pytest.raises(GradcamoError, match=next(iter(change))):
        TrainingConfig(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"swap_pool": 5, "regulariser_after": 0},
        {"swap": 0.0, "encoder": f"{__name__}:planar_encoder"},
    ],
)
def test_the_penalty_is_logged_from_the_start_and_added_after_the_warm_up(change: Any, tmp_path: Path) -> None:
    path = _crops(tmp_path, (1, 24, 24))
    config = replace(CONFIG, **{"regulariser": "gradcamo", "regulariser_after": 2, **change})
    curves = [_train(path, replace(config, regulariser_weight=w), tmp_path).curves for w in (1.0, 0.0, 1.0)]
    assert curves[0] == curves[2], "random numbers depend on the seed only"
    assert len(curves[0]["train_penalty"]) == 4 and max(curves[0]["train_penalty"]) > 0
    same = [one == two for one, two in zip(*(curve["train_penalty"] for curve in curves[:2]), strict=True)]
    # The first step after the warm-up starts from the same weights, but the mean of its epoch differs.
    assert same == [epoch < config.regulariser_after for epoch in range(4)]


def test_early_stopping_needs_validation_crops(tmp_path: Path) -> None:
    field = open_crops(_crops(tmp_path))
    train, empty = (CropDataset([field], {f"P/A01/1/{i}": i % 2 for i in range(n)}, field.channels) for n in (8, 0))
    with pytest.raises(GradcamoError, match="validation crops"):
        train_encoder(train, empty, ["a", "b"], TrainingConfig(patience=1), work=tmp_path)
    result = train_encoder(train, empty, ["a", "b"], TrainingConfig(epochs=1), work=tmp_path, progress=False)
    assert set(result.curves) == {"train_loss", "train_accuracy"}
    if not torch.cuda.is_available():
        with pytest.raises(GradcamoError, match="GPU"):
            train_encoder(train, empty, ["a", "b"], TrainingConfig(precision="float16"), work=tmp_path)


def test_an_encoder_states_the_voxel_size_that_all_its_plates_state(tmp_path: Path) -> None:
    stated = open_crops(_crops(tmp_path))
    partly = replace(stated, voxel_size=[None, 0.5, 0.5])
    assert common_geometry([stated, stated])[2] == [1.0, 0.5, 0.5]
    assert common_geometry([stated, partly])[2] == common_geometry([partly, stated])[2] == [None, 0.5, 0.5]
