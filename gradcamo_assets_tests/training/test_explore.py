"""Check reduced crops, the end of a network stage, and the sweeps over layers and crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from gradcamo_assets.cells import open_crops
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.training.explore import ReducedCrops, crop_sweep, find_stage_ends, layer_sweep
from gradcamo_assets.training.training import TrainingConfig
from gradcamo_assets.training.training_run import labelled_crops
from gradcamo_assets_tests.training.tiny import write_plate


def test_reduced_crops_are_central_and_hidden_voxels_are_zero(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, wells=2, cells=2)
    crops = labelled_crops(cells, [open_crops(path) for path in paths], ["a", "b"], ["DNA", "ER"])
    for masking in ("none", "target", "background"):
        reduced = ReducedCrops(crops, 16, masking)
        assert len(reduced) == len(crops) and (reduced.targets == crops.targets).all()
        for row in range(len(crops)):
            image, labels, target = (np.asarray(part) for part in reduced[row])
            whole, whole_labels, _ = (np.asarray(part) for part in crops[row])
            for voxel in np.ndindex(labels.shape):
                z, y, x = voxel
                label = whole_labels[z, y + 4, x + 4]
                hidden = (masking == "target" and label != 1) or (masking == "background" and label == 0)
                assert labels[voxel] == label
                assert (image[:, z, y, x] == (0 if hidden else whole[:, z, y + 4, x + 4])).all()
            assert target == crops.targets[row]
    identities = {ReducedCrops(crops, size, masking).identity for size in (16, 24) for masking in ("none", "target")}
    assert len(identities) == 4, "settings with equal identity would share one training"
    for size, masking in ((25, "none"), (0, "none"), (16, "nucleus")):
        with pytest.raises(GradcamoError):
            ReducedCrops(crops, size, masking)


def test_a_stage_ends_with_the_last_block_of_its_resolution() -> None:
    model, layer = build_encoder("efficientnet3d-base", 2, 3)
    assert find_stage_ends(model.eval(), torch.zeros(1, 2, 4, 32, 32), layer) == ["body.4", layer]
    model, layer = build_encoder("monai-resnet18", 2, 3)
    stage_ends = find_stage_ends(model.eval(), torch.zeros(1, 2, 4, 32, 32), layer)
    assert stage_ends == ["layer1", "layer2", "layer3", "layer4"]
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    assert find_stage_ends(flat.eval(), torch.zeros(1, 1, 8, 8), "1") == ["1"]


def test_a_layer_sweep_equals_each_layer_explained_alone(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, wells=4, cells=4)
    crops = labelled_crops(cells, [open_crops(path) for path in paths], ["a", "b"], ["DNA", "ER"])
    torch.manual_seed(1)
    model, layer = build_encoder("efficientnet3d-small", 2, 2)
    table = layer_sweep(model.eval(), ["body.3", layer], crops, ["a", "b"])
    assert table["layer"].to_list() == ["body.3", layer]
    images, labels = (torch.stack([crops[row][part] for row in range(len(crops))]) for part in (0, 1))
    for row in table.iter_rows(named=True):
        alone = gradcamo(model, images, labels == 1, row["layer"], labels == 2)
        assert row["median_gradcamo"] == pytest.approx(np.nanmedian(alone.gradcamo), abs=1e-4)
        assert row["median_ceiling"] == pytest.approx(np.nanmedian(alone.gradcamo_max), abs=1e-4)
        assert row["on_target_fraction"] == pytest.approx(np.nanmean(alone.gradcamo > 0.5))
        assert row["accuracy"] == pytest.approx(np.mean(alone.predicted_class == crops.targets))


def test_a_crop_sweep_trains_once_per_setting(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, wells=6, cells=4)
    fields = [open_crops(path) for path in paths]
    parts = {
        part: labelled_crops(cells.filter(pl.col("Metadata_Well").is_in(wells)), fields, ["a", "b"], ["DNA", "ER"])
        for part, wells in (("train", ["A01", "A02"]), ("val", ["A03"]), ("test", ["A04", "A05", "A06"]))
    }
    lines: list[str] = []
    config = TrainingConfig(epochs=1, batch_size=8)
    table = crop_sweep(parts, ["a", "b"], config, [24, 16], ["none"], work=tmp_path, report=lines.append)
    assert table.select("size", "masking", "n_cells").rows() == [(24, "none", 12), (16, "none", 12)]
    assert len(lines) == 2 and not any((tmp_path / "training").iterdir())
    assert table["median_chance"].to_list() == pytest.approx([64 / 24**2, 64 / 16**2])
