"""A small synthetic plate, written once and copied by tests that change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate

TINY = SyntheticPlate(name="tiny", wells=4, sites=2, shape=(4, 64, 64), doses=1, cells=3, channels=4, seed=5)
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.zarr`` and ``tiny.csv``, shared by all tests; do not change it."""
    folder = tmp_path_factory.mktemp("pristine")
    write_synthetic_plate(folder, TINY)
    return folder


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    """A private copy of the plate in its own inbox, free to change."""
    shutil.copytree(pristine, tmp_path / "inbox")
    return tmp_path / "inbox" / "tiny.zarr"


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A folder of the shared real data, or a skip."""

    def folder(name: str) -> Path:
        path = SHARED / name
        if not path.is_dir():
            pytest.skip(f"real data not found: {path}")
        return path

    return folder
