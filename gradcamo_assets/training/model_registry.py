"""Trained encoders in MLflow's registry, and the record of promotions that MLflow does not keep.

A version holds a bundle of safetensors and JSON (``networks.bundle``); no pickle is written or read. Promotion is an
alias (https://mlflow.org/docs/latest/ml/model-registry): ``champion`` scores every plate, ``challenger`` waits.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcamo_assets.errors import BundleError
from gradcamo_assets.names import check_name
from gradcamo_assets.networks.bundle import BundleConfig, Cure, read_config, read_verified_config, save_bundle
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import atomic_folder
from gradcamo_assets.training.mlflow_runs import Links, log_evidence, open_run
from gradcamo_assets.training.mlflow_store import SCHEME, prepare_store, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as Registered
    from torch import nn

CHAMPION, CHALLENGER = "champion", "challenger"
_EXPERIMENT = "gradcamo"


@dataclass(frozen=True)
class ModelVersion:
    """A registered version. ``source`` is where MLflow keeps its bundle.

    Its MLflow run says which model it is: MLflow gives a number anew once a registered model was deleted.
    """

    name: str
    version: int
    run_id: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class ModelRegistry:
    """One registered model name in one MLflow server.

    Args:
        folder: local folder for the SQLite store, artifacts and fetched bundles.
        name: the registered model's name.
        uri: tracking server; ``MLFLOW_TRACKING_URI`` or a SQLite file in ``folder`` by default.

    Connection errors stay errors: an unreachable registry is never read as one without a champion.
    """

    def __init__(self, folder: Path, name: str = "gradcamo-encoder", uri: str | None = None):
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        self.folder, self.name = folder, check_name(name, "model name")
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder / "mlflow.db")

    @property
    def client(self) -> MlflowClient:
        """A client of this registry."""
        from mlflow import MlflowClient

        prepare_store(self.uri)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def run(
        self, parameters: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[str]:
        """An MLflow run, open from here on, for ``register``; see ``training.mlflow_runs``."""
        client = self.client
        return open_run(client, self._experiment(client), parameters or {}, tags or {})

    def register(
        self,
        model: nn.Module,
        config: BundleConfig,
        *,
        run_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Iterable[float]] | None = None,
        files: Mapping[str, bytes] | None = None,
        data: Mapping[str, Mapping[str, Any]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Log a bundle with its evidence and register it as the next version, aliased ``challenger``.

        Args:
            run_id: an open run of ``run``; by default one is opened for it, with ``parameters`` and ``tags``.
            curves: one value an epoch by metric name. files: artifacts by path. data: what was read, by plate.
        """
        if run_id is None:
            with self.run(parameters, tags) as run_id:
                return self.register(
                    model, config, run_id=run_id, metrics=metrics, curves=curves, files=files, data=data
                )
        client = self.client
        log_evidence(client, run_id, metrics or {}, curves or {}, files or {}, data or {})
        client.log_dict(run_id, config.split, "split.json")
        with tempfile.TemporaryDirectory() as scratch:
            save_bundle(Path(scratch), model, config)
            bundle = client.create_logged_model(
                self._experiment(client), name="encoder", source_run_id=run_id, model_type="encoder"
            )
            client.log_model_artifacts(bundle.model_id, scratch)
            client.finalize_logged_model(bundle.model_id, "READY")
        self._ensure_registered(client)
        source = bundle.artifact_location
        version = client.create_model_version(self.name, source=source, run_id=run_id, model_id=bundle.model_id)
        client.set_registered_model_alias(self.name, CHALLENGER, str(version.version))
        return ModelVersion(self.name, int(version.version), run_id, source)

    def file(self, version: ModelVersion, path: str) -> bytes | None:
        """An artifact that was logged with a version; None where it has none of this name."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # Not by the client, which remembers for all stores where a run's artifacts lie: copies of one share their runs.
        place = self.client.get_run(version.run_id).info.artifact_uri
        artifacts = get_artifact_repository(place, tracking_uri=self.uri)
        if path not in (found.path for found in artifacts.list_artifacts()):
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return Path(artifacts.download_artifacts(path, scratch)).read_bytes()

    def pages(self, links: Links, run_id: str, version: ModelVersion | None = None) -> dict[str, str]:
        """Where MLflow shows a run, ``mlflow_run``, and the version that came of it, ``mlflow_version``."""
        web = (self.uri if self.uri.startswith("http") else links.mlflow_url).rstrip("/")
        run = {"mlflow_run": f"{web}/#/experiments/{self._experiment(self.client)}/runs/{run_id}"}
        return run | ({"mlflow_version": f"{web}/#/models/{self.name}/versions/{version.version}"} if version else {})

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(_EXPERIMENT)
        if found:
            return found.experiment_id
        # A local store would otherwise put artifacts below the working folder; a server knows its own place.
        local = f"{SCHEME}:/{_EXPERIMENT}" if sqlite_file(self.uri) else None
        return client.create_experiment(_EXPERIMENT, artifact_location=local)

    def _ensure_registered(self, client: MlflowClient) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def by_alias(self, alias: str = CHAMPION) -> ModelVersion | None:
        """The version an alias points at; None where the model or the alias does not exist yet."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return self._version(found)

    def versions(self) -> list[ModelVersion]:
        """Every registered version, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted(map(self._version, found), key=lambda version: version.version)

    def _version(self, found: Registered) -> ModelVersion:
        return ModelVersion(self.name, int(found.version), found.run_id or "", found.source)

    def promote(self, version: int, alias: str = CHAMPION) -> None:
        """Point an alias at a version."""
        self.client.set_registered_model_alias(self.name, alias, str(version))

    def fetch(self, version: ModelVersion) -> Path:
        """The folder of a version's bundle, downloaded once.

        Raises:
            BundleError: if the artifacts cannot be had or are no bundle.
        """
        from mlflow.artifacts import download_artifacts

        try:
            folder = self.folder / "bundles" / check_name(version.run_id, "MLflow run") / digest(version.source)
            if not folder.exists():
                prepare_store(self.uri)
                with atomic_folder(folder) as scratch:
                    download_artifacts(artifact_uri=version.source, dst_path=str(scratch), tracking_uri=self.uri)
                    read_verified_config(_bundle_root(scratch))
        except BundleError as error:
            raise error.at(path=version.source) from error
        except Exception as error:
            raise BundleError(
                f"the bundle of {version} cannot be fetched ({error})",
                "Check the artifact store, or promote another version.",
                path=version.source,
            ) from error
        return _bundle_root(folder)

    def rows(self) -> list[dict[str, Any]]:
        """Every registered version, oldest first, under the column names of the ``models`` table; metrics as a dict."""
        client = self.client
        registered = client.search_registered_models(filter_string=f"name = '{self.name}'")
        aliases: dict[int, list[str]] = {}
        for model in registered:
            for alias, number in model.aliases.items():
                aliases.setdefault(int(number), []).append(alias)
        rows: list[dict[str, Any]] = []
        for found in client.search_model_versions(f"name = '{self.name}'") if registered else []:
            version = self._version(found)
            try:
                config = read_config(self.fetch(version))
            except BundleError:
                config = None  # A version with a damaged bundle is still a version: it stands here, unexplained.
            metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
            cure = config.cure if config else None
            train_wells = config.split.get("train", []) if config else []
            rows.append(
                {
                    "model_name": self.name,
                    "model_version": version.version,
                    "model_run": version.run_id,
                    "run_id": version.run_id,
                    "architecture": config.encoder if config else None,
                    "layer": config.layer if config else None,
                    "objective": config.objective if config else None,
                    "classes": config.classes if config else None,
                    "train_plates": sorted({well.split("/")[0] for well in train_wells}),
                    "train_wells": train_wells,
                    **{known.name: getattr(cure, known.name, None) for known in fields(Cure)},
                    "metrics": {k: v for k, v in sorted(metrics.items()) if not k.startswith("curve_")},
                    "aliases": sorted(aliases.get(version.version, [])),
                    "created_at": datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).replace(tzinfo=None),
                }
            )
        return sorted(rows, key=lambda row: row["model_version"])


def _bundle_root(folder: Path) -> Path:
    """MLflow may nest a download one folder deep."""
    inner = [path.parent for path in folder.rglob("config.json")]
    return inner[0] if inner else folder
