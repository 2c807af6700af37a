"""For all tests: the number of hypothesis examples, warnings of our own code as errors, and one migrated registry.

``--hypothesis-profile=thorough`` tries more examples. Machines are shared and slow at times, so none has a deadline.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from gradcamo_assets.training import mlflow_store

settings.register_profile("default", deadline=None, max_examples=15)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _own_warnings_are_errors() -> None:
    """Deprecated calls of ours fail; those between libraries do not concern us. Pytest restores the filters."""
    warnings.filterwarnings("error", module=r"gradcamo_assets(\.|$)")


@pytest.fixture(scope="session", autouse=True)
def _one_migrated_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copy one database for every new registry: MLflow's migrations take a second."""
    base = tmp_path_factory.getbasetemp()
    database = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mlflow.db"
    create = mlflow_store.create_database

    def copy(file: Path) -> None:
        with FileLock(f"{database}.lock"):
            if not database.exists():
                create(database)
        shutil.copyfile(database, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_store, "create_database", copy)
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")
        yield
