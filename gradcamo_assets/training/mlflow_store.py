"""Keep MLflow's store in a relocatable folder: a SQLite file with artifacts beside it.

By default MLflow writes the absolute path of a local artifact into its database, so a copied folder would write into
the original. An MLflow server uses addresses ``mlflow-artifacts:/...`` instead, relative to a folder given at its start
(https://mlflow.org/docs/latest/self-hosting/architecture/artifact-store). This module uses such addresses with and
without a server; they refer to ``artifacts/`` beside the SQLite file.
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
    """Return MLflow's address of a SQLite file; special characters in its path are escaped."""
    from sqlalchemy import URL

    # Without the driver's name MLflow also creates a folder with the encoded name.
    return URL.create("sqlite+pysqlite", database=str(file.absolute())).render_as_string()


def sqlite_file(uri: str) -> Path | None:
    """Return the SQLite file of an address; None for a server or another database."""
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "").absolute() if uri.startswith("sqlite") else None


def prepare_store(uri: str) -> None:
    """Create the SQLite file of an address if it is missing, atomically, and register the resolver of its artifacts."""
    file = sqlite_file(uri)
    if file is None:
        return
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    get_registered_artifact_repositories()[SCHEME] = artifact_repository
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            with atomic_file(file) as temporary:
                create_database(temporary)


def create_database(file: Path) -> None:
    """Create the SQLite file of a tracking store and registry, which takes MLflow's migrations about a second."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # The second argument replaces MLflow's default artifact location, the working folder.
    SqlAlchemyStore(sqlite_uri(file), f"{SCHEME}:/").engine.dispose()


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """Return MLflow's access to ``mlflow-artifacts:/...``: the server's interface, or a folder beside the SQLite file.

    Raises:
        GradcamoError: if an address in the folder names a host or points outside the folder.
    """
    from mlflow import get_tracking_uri
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    file = sqlite_file(tracking_uri or get_tracking_uri())
    if file is None:
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    address = urlsplit(artifact_uri)
    if address.netloc or address.query or address.fragment:
        raise GradcamoError(
            f"artifact address {artifact_uri!r} must be a path without host, query and fragment",
            "Register the version again.",
            path=file,
        )
    names = [check_name(name, "name of an artifact") for name in address.path.split("/") if name]
    return LocalArtifactRepository(file.parent.joinpath(ARTIFACTS, *names).as_uri(), tracking_uri, registry_uri)
