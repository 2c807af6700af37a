"""MLflow's store in a folder: a SQLite file, with artifacts beside it whose addresses hold no path.

By itself MLflow writes the absolute path of a local artifact into its database, so that a copied folder would go on
writing into the original. Its server writes ``mlflow-artifacts:/...`` instead, below a folder that it is told when it
starts (https://mlflow.org/docs/latest/self-hosting/architecture/artifact-store). Such addresses are used here, with and
without a server: below ``artifacts/`` beside the SQLite file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.names import check_name
from gradcamo_assets.storage import atomic_file

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SCHEME, ARTIFACTS = "mlflow-artifacts", "artifacts"


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file for MLflow, whatever characters its path holds."""
    from sqlalchemy import URL

    # With the driver's name: without it MLflow makes a folder by the encoded name, too.
    return URL.create("sqlite+pysqlite", database=str(file.absolute())).render_as_string()


def sqlite_file(uri: str) -> Path | None:
    """The file of such an address; None for a server or another database."""
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "").absolute() if uri.startswith("sqlite") else None


def prepare_store(uri: str) -> None:
    """Make the SQLite file of an address if it is missing, whole or not at all, and let MLflow find its artifacts."""
    file = sqlite_file(uri)
    if file is None:
        return
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    get_registered_artifact_repositories()[SCHEME] = artifact_repository
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            with atomic_file(file) as temporary:
                # By itself MLflow writes the working folder into a new file, as the place of other artifacts.
                SqlAlchemyStore(sqlite_uri(temporary), f"{SCHEME}:/").engine.dispose()


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """What MLflow reads and writes ``mlflow-artifacts:/...`` by: a server's interface, or a folder beside SQLite.

    Raises:
        GradcamoError: for an address beside SQLite that names a host or leaves its folder.
    """
    from mlflow import get_tracking_uri
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    file = sqlite_file(tracking_uri or get_tracking_uri())
    if file is None:
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    address = urlsplit(artifact_uri)
    if address.netloc or address.query or address.fragment:
        raise GradcamoError(f"{artifact_uri!r} is no place beside {file}", "Register the version again.")
    names = [check_name(name, "name of an artifact") for name in address.path.split("/") if name]
    return LocalArtifactRepository(file.parent.joinpath(ARTIFACTS, *names).as_uri(), tracking_uri, registry_uri)
