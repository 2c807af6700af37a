"""Fixtures: a platform in a temporary folder, jobs run in process, and one small scored plate for all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import zarr
from filelock import FileLock

from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.demo import run_demo
from gradcamo_assets.defs.partitions import PLATES, plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import QUIET
from gradcamo_assets.home import Home
from gradcamo_assets.plates import load_plate
from gradcamo_assets.report import png
from gradcamo_assets.report.style import new_figure
from gradcamo_assets.segmentation import segment
from gradcamo_assets.synthetic import SyntheticPlate
from gradcamo_assets.tables import publish, run_sql

# Stitching slices takes a sixth of the time of 3D segmentation; these tests do not need good masks.
SETTINGS = (
    '[segmentation]\nmode = "stitch"\n'
    "[crops]\nshape = [6, 48, 48]\nkeep_border = true\n[training]\nepochs = 6\nbatch_size = 4\n"
)
TINY = SyntheticPlate(name="tiny", wells=6, sites=2, shape=(6, 96, 96), cells=4, doses=1)


LOAD_ENGINES = segment.load_engines
COMPILED: dict[str, Any] = {}
DRAW = png.to_png
ONE_PIXEL = DRAW(new_figure(0.1, 0.1), width_px=1)


@dataclass
class Bench:
    """A platform with its own Dagster instance."""

    platform: Platform
    instance: dg.DagsterInstance

    def __post_init__(self) -> None:
        self.definitions = build_definitions(self.platform)

    @property
    def home(self) -> Home:
        return self.platform.home

    def run(self, job: str, partition: str | None = None, **kwargs: object) -> dg.ExecuteInProcessResult:
        """Run a job in process; a failure is returned, not raised."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=partition, raise_on_error=False, run_config={**QUIET, **kwargs}
        )

    def materialize(self, asset: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialise one asset, or one partition of it, like the button in the UI."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance, partition_key=partition, asset_selection=[dg.AssetKey(asset)],
            raise_on_error=False, run_config=QUIET,
        )  # fmt: skip

    def ask(self, sql: str) -> list[tuple]:
        """Publish the QC database from the lake, and query it."""
        publish(self.platform.lake, self.home.database)
        return run_sql(self.home.database, sql).rows()

    def run_request(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run the request of a sensor; a failure is returned, not raised."""
        return self.definitions.resolve_job_def(str(request.job_name)).execute_in_process(
            instance=self.instance, partition_key=str(request.partition_key), tags=dict(request.tags),
            raise_on_error=False, run_config=QUIET,
        )  # fmt: skip

    def change_pixels(self, name: str = "tiny") -> None:
        """Mirror the pixels of one field in the inbox, so that the export has other content of the same size."""
        array = zarr.open_array(self.home.inbox / f"{name}.zarr" / "A" / "01" / "0" / "0", mode="r+")
        array[:] = np.asarray(array[:])[..., ::-1]

    def ingest(self, name: str) -> dg.ExecuteInProcessResult:
        """Ingest a plate from the inbox."""
        self.instance.add_dynamic_partitions(str(PLATES.name), [name])
        return self.run("ingest_plates", name)

    def process(self, name: str) -> list[dg.ExecuteInProcessResult]:
        """Segment and crop every site of a plate."""
        sites = sorted({field.site for field in load_plate(self.home.plates, name).fields})
        return [self.run("process_fields", plate_site_key(name, site)) for site in sites]

    def checks(self, result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
        """Check evaluations of a run by name."""
        return {check.check_name: check for check in result.get_asset_check_evaluations()}

    def copy(self, folder: Path, *, stored: bool = False) -> Bench:
        """A copy of the data in another folder, with a new instance that has the same partitions."""
        # Another process may have Dagster's databases open; their journals come and go.
        shutil.copytree(self.home.root, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("dagster"))
        other = make_bench(folder, stored=stored)
        for dimension in ("plates", "sites"):
            other.instance.add_dynamic_partitions(dimension, self.instance.get_dynamic_partitions(dimension))
        return other


def make_bench(folder: Path, *, stored: bool = False) -> Bench:
    """A platform with small crops and short training, unless the folder has settings.

    Args:
        stored: keep what the instance knows in the folder, for schedules and commands, which open it themselves. In
            memory it takes a third less time.
    """
    home = Home(folder).create()
    if not home.settings_file.exists():
        home.settings_file.write_text(SETTINGS)
    instance = dg.DagsterInstance.local_temp(str(home.dagster)) if stored else dg.DagsterInstance.ephemeral()
    return Bench(Platform(root=str(folder)), instance)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Draw no pictures for asset metadata, which takes a tenth of a run. Tests of ``report`` and of the demo draw."""
    patch.setattr(png, "to_png", lambda *_args, **_options: ONE_PIXEL)


def load_engines_once(network: str, weights: dict[str, Path]) -> dict[str, Any]:
    """Keep the shipped segmentation networks between runs; each process of the platform compiles them itself."""
    if network != "compact":
        return LOAD_ENGINES(network, weights)
    if not COMPILED:
        COMPILED.update(LOAD_ENGINES(network, weights))
    return COMPILED


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(segment, "load_engines", load_engines_once)
    draw_nothing(monkeypatch)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty platform."""
    return make_bench(tmp_path / "home")


@pytest.fixture
def stored_bench(tmp_path: Path) -> Bench:
    """An empty platform whose instance is stored in its home."""
    return make_bench(tmp_path / "home", stored=True)


@pytest.fixture(scope="session")
def scored_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One tiny plate processed from the inbox to ``qc.duckdb`` by the demo. Tests that write use a ``copy``."""
    # The base folders of pytest-xdist workers are in one shared folder.
    base = tmp_path_factory.getbasetemp()
    home = Home((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "scored")
    with FileLock(f"{home.root}.lock"):
        if not home.database.exists():
            home.create()
            home.settings_file.write_text(SETTINGS)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TQDM_DISABLE", "1")
                draw_nothing(patch)
                for name in ("DAGSTER_HOME", "GRADCAMO_HOME", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
                    patch.setenv(name, "")  # The demo sets them; the context restores them.
                run_demo(home, TINY, processes=1)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        yield Bench(Platform(root=str(home.root)), instance)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real microscope images, stored beside the repository."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images of shared/data are not on this machine")
    return folder
