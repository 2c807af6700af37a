"""Test the folders of an installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcamo_assets.home import Home


def test_the_environment_sets_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAMO_HOME", str(tmp_path / "home"))
    home = Home.from_environment().create()
    assert home.inbox == tmp_path / "home" / "inbox"
    assert home.inbox.is_dir()
