"""Which pixels of crops a training stores, and which remain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gradcamo_assets.cells import open_crops
from gradcamo_assets.defs.prune import plan_unused
from gradcamo_assets.defs.training_pixels import pixels_for_training
from gradcamo_assets_tests.defs.conftest import Bench


def recorded(bench: Bench) -> list[Path]:
    """The folders of all recorded crops."""
    return sorted(bench.home.crops.glob("*/*/*"))


def test_a_training_stores_the_pixels_of_its_crops(scored_bench: Bench) -> None:
    folders = recorded(scored_bench)
    assert folders and all((folder / "pixels").is_dir() for folder in folders)
    assert not scored_bench.home.training.exists() or not [*scored_bench.home.training.iterdir()]


def test_pixels_last_as_long_as_a_training_that_keeps_none(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    folders = recorded(bench)
    expected = [open_crops(folder).read(0)[0] for folder in folders]
    for folder in folders:
        shutil.rmtree(folder / "pixels")
    with (
        pytest.raises(KeyboardInterrupt),
        pixels_for_training(bench.home, folders, "run", print, keep=False) as stored,
    ):
        assert not set(stored) & set(folders)
        for folder, image in zip(stored, expected, strict=True):
            np.testing.assert_array_equal(open_crops(folder).read(0)[0], image)
        raise KeyboardInterrupt
    assert not any((folder / "pixels").exists() for folder in folders) and not [*bench.home.training.iterdir()]


def test_what_a_killed_training_left_is_unused(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    left = bench.home.training / "a-run-that-nobody-knows"
    left.mkdir(parents=True)
    plan = plan_unused(bench.home, bench.platform.lake, bench.platform.registry, bench.instance)
    assert left in plan.paths
