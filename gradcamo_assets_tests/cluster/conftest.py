"""A cluster, and the same plates processed in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gradcamo_assets.home import Home
from gradcamo_assets.tables import Lake
from gradcamo_assets_tests import two_plates
from gradcamo_assets_tests.cluster.cluster import Cluster


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of two nodes with a core each. A parameter is the further arguments of ``Cluster``."""
    with ExitStack() as running:
        yield Cluster(tmp_path, running, monkeypatch, **getattr(request, "param", {}))


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The lake that one process makes."""
    home = Home(tmp_path_factory.mktemp("one_process"))
    without_home = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "GRADCAMO_HOME")}
    subprocess.run([sys.executable, "-m", two_plates.__name__, str(home.root)], check=True, env=without_home)
    return Lake(home.lake)
