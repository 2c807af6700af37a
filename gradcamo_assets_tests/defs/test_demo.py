"""What the demo's options ask for; the demo itself is run for ``scored_bench``, the quick one by make test-install."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from PIL import Image

from gradcamo_assets.cli import main
from gradcamo_assets.defs import demo
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.report import png
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.training.settings import TrainingConfig
from gradcamo_assets_tests.defs.conftest import DRAW, SETTINGS, TINY


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[list[SyntheticPlate], bool]:
    """The plates that ``gradcamo demo`` runs on, and whether it is the quick one."""
    seen: list[tuple[list[SyntheticPlate], bool]] = []
    monkeypatch.setattr(demo, "run_demo", lambda _home, *plates, quick: seen.append((list(plates), quick)))
    result = CliRunner().invoke(main, ["demo", *arguments])
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.mark.parametrize("shortcut", ["none", "background", "neighbour"])
def test_a_quick_demo_has_eight_wells_and_a_plate_of_its_own(shortcut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (quick,), is_quick = asked(monkeypatch, "--quick", "--shortcut", shortcut, "--seed", "3")
    (whole,), is_whole_quick = asked(monkeypatch, "--shortcut", shortcut, "--seed", "3")
    assert (is_quick, is_whole_quick) == (True, False)
    assert quick.wells == 8 and whole.wells == 24
    assert quick.name != whole.name
    assert quick.shortcut == whole.shortcut == shortcut and quick.seed == whole.seed == 3


def test_a_pooled_screen_can_be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    (quick,), _ = asked(monkeypatch, "--quick", "--labels", "cell")
    assert quick.labels == "cell" and quick.wells == 8


def test_a_cure_takes_its_time() -> None:
    result = CliRunner().invoke(main, ["demo", "--quick", "--cure", "--shortcut", "background"])
    assert result.exit_code == 2 and "without --quick" in result.output


def test_what_a_quick_demo_sets_can_be_set() -> None:
    assert TrainingConfig(**demo.QUICK_TRAINING).epochs == 4


@pytest.mark.slow
def test_the_pictures_of_all_assets_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DAGSTER_HOME", "GRADCAMO_HOME", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
        monkeypatch.setenv(name, "")  # The demo sets them.
    monkeypatch.setattr(png, "to_png", DRAW)
    home = Home(tmp_path).create()
    home.settings_file.write_text(SETTINGS)
    demo.run_demo(home, TINY, processes=1)
    pictures: dict[str, list[int]] = {}
    with open_instance(home) as instance:
        for key in instance.all_asset_keys():
            event = instance.get_latest_materialization_event(key)
            found = event.asset_materialization.metadata.values() if event and event.asset_materialization else ()
            for value in found:
                if isinstance(value, dg.MarkdownMetadataValue):
                    for name in re.findall(r"\]\(/pictures/([^)]+\.png)\)", value.value):
                        with Image.open(home.pictures / name) as picture:
                            pictures.setdefault(key.to_user_string(), []).append(picture.width)
    assert {"plate_images", "masks", "trained_model", "gradcamo_scores", "umap", "qc_report"} <= set(pictures)
    assert {width for widths in pictures.values() for width in widths} == {700}
    with Image.open(next((home.reports / "_training").glob("*-v1.gif"))) as film:
        assert film.n_frames == 6, "one for each epoch"
