"""What the demo's options ask for; the demo itself is run for ``scored_bench``, the quick one by make test-install."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.defs import demo
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.training.settings import TrainingConfig


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
