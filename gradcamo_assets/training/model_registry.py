"""Register, list and fetch trained encoders in MLflow's model registry.

A version is a bundle of safetensors and JSON (``networks.bundle``); pickle is neither written nor read. Two aliases
(https://mlflow.org/docs/latest/ml/model-registry) mark versions: ``champion`` scores every plate, and ``challenger`` is
the latest candidate.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcamo_assets.errors import BundleError
from gradcamo_assets.names import check_name
from gradcamo_assets.networks.bundle import (
    BundleConfig,
    ShortcutMitigation,
    read_config,
    read_verified_config,
    save_bundle,
)
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import atomic_folder
from gradcamo_assets.training.mlflow_runs import (
    DAGSTER_RUN,
    DEFAULT_MLFLOW_URL,
    Links,
    end_lost_runs,
    log_evidence,
    open_run,
)
from gradcamo_assets.training.mlflow_store import SCHEME, prepare_store, sqlite_file, sqlite_uri
from gradcamo_assets.training.version_page import version_description, version_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as Registered
    from torch import nn

CHAMPION, CHALLENGER = "champion", "challenger"
_EXPERIMENT = "gradcamo"


@dataclass(frozen=True)
class ModelVersion:
    """A registered version; ``source`` is MLflow's address of its bundle.

    The MLflow run identifies the version. The number does not: MLflow starts again at 1 after a registered model is
    deleted.
    """

    name: str
    version: int
    run_id: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class ModelRegistry:
    """The versions of one registered model in one MLflow server or SQLite file.

    Connection errors are raised: an unreachable registry is never taken for a registry without a champion.

    Args:
        folder: local folder for the SQLite store, artifacts and fetched bundles.
        name: the registered model's name.
        uri: tracking server; by default ``MLFLOW_TRACKING_URI`` or a SQLite file in ``folder``.
    """

    def __init__(self, folder: Path, name: str = "gradcamo-encoder", uri: str | None = None):
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        self.folder, self.name = folder, check_name(name, "model name")
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder / "mlflow.db")

    @property
    def is_server(self) -> bool:
        """Whether the registry is an MLflow server, not a SQLite file or another database."""
        return self.uri.startswith("http")

    @property
    def client(self) -> MlflowClient:
        """Return a client of this registry; a missing SQLite store is created."""
        from mlflow import MlflowClient

        prepare_store(self.uri)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def start_run(
        self, parameters: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[str]:
        """Open an MLflow run for ``register``; see ``training.mlflow_runs.open_run``."""
        client = self.client
        return open_run(client, self._experiment_id(client), parameters or {}, tags or {})

    def end_lost_runs(self, has_ended: Callable[[str], bool]) -> None:
        """End open MLflow runs whose Dagster run has ended: a machine that was lost cannot do so itself.

        Args:
            has_ended: tells whether the Dagster run with an identifier is known to have ended.
        """
        client = self.client
        end_lost_runs(
            client,
            self._experiment_id(client),
            lambda tags: DAGSTER_RUN in tags and has_ended(tags[DAGSTER_RUN]),
            "the Dagster run of this training has ended",
        )

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
        """Log a bundle with its evidence and register it as the next version, with the alias ``challenger``.

        The version's page in MLflow shows the evidence; see ``training.version_page``.

        Args:
            run_id: a run opened by ``start_run``; by default a new run with ``parameters`` and ``tags``.
            curves: values per epoch by metric name.
            files: content of artifacts by path.
            data: description of the data that was read, by plate.
        """
        if run_id is None:
            with self.start_run(parameters, tags) as run_id:
                return self.register(
                    model, config, run_id=run_id, metrics=metrics, curves=curves, files=files, data=data
                )
        client = self.client
        log_evidence(client, run_id, metrics or {}, curves or {}, files or {}, data or {})
        client.log_dict(run_id, config.split, "split.json")
        with tempfile.TemporaryDirectory() as scratch:
            save_bundle(Path(scratch), model, config)
            bundle = client.create_logged_model(
                self._experiment_id(client), name="encoder", source_run_id=run_id, model_type="encoder"
            )
            client.log_model_artifacts(bundle.model_id, scratch)
            client.finalize_logged_model(bundle.model_id, "READY")
        self._ensure_registered(client)
        source = bundle.artifact_location
        version = client.create_model_version(
            self.name, source=source, run_id=run_id, model_id=bundle.model_id,
            tags=version_tags(config, metrics or {}), description=version_description(config, metrics or {}),
        )  # fmt: skip
        client.set_registered_model_alias(self.name, CHALLENGER, str(version.version))
        return ModelVersion(self.name, int(version.version), run_id, source)

    def read_artifact(self, version: ModelVersion, path: str) -> bytes | None:
        """Return the content of an artifact logged with a version; None if there is no such artifact."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # The client caches artifact locations by run for all stores, but copies of a store share their runs.
        location = self.client.get_run(version.run_id).info.artifact_uri
        artifacts = get_artifact_repository(location, tracking_uri=self.uri)
        if path not in (artifact.path for artifact in artifacts.list_artifacts()):
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return Path(artifacts.download_artifacts(path, scratch)).read_bytes()

    def page_urls(self, links: Links, run_id: str, version: ModelVersion | None = None) -> dict[str, str]:
        """Return the addresses of MLflow's pages of a run, ``mlflow_run``, and of its version, ``mlflow_version``."""
        # A browser may not reach the address that runs use.
        base = (links.mlflow_url or (self.uri if self.is_server else DEFAULT_MLFLOW_URL)).rstrip("/")
        urls = {"mlflow_run": f"{base}/#/experiments/{self._experiment_id(self.client)}/runs/{run_id}"}
        if version:
            urls["mlflow_version"] = f"{base}/#/models/{self.name}/versions/{version.version}"
        return urls

    def _experiment_id(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(_EXPERIMENT)
        if experiment:
            return experiment.experiment_id
        # A local store would put artifacts into the working folder; a server has its own location.
        location = f"{SCHEME}:/{_EXPERIMENT}" if sqlite_file(self.uri) else None
        return client.create_experiment(_EXPERIMENT, artifact_location=location)

    def _ensure_registered(self, client: MlflowClient) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def by_alias(self, alias: str = CHAMPION) -> ModelVersion | None:
        """Return the version with an alias; None if the model or the alias does not exist yet."""
        from mlflow.exceptions import MlflowException

        try:
            registered = self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return self._to_version(registered)

    def versions(self) -> list[ModelVersion]:
        """Return every registered version, oldest first."""
        registered = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted(map(self._to_version, registered), key=lambda version: version.version)

    def _to_version(self, registered: Registered) -> ModelVersion:
        return ModelVersion(self.name, int(registered.version), registered.run_id or "", registered.source)

    def promote(self, version: int, alias: str = CHAMPION) -> None:
        """Set an alias to a version."""
        self.client.set_registered_model_alias(self.name, alias, str(version))

    def fetch(self, version: ModelVersion) -> Path:
        """Return the local folder of a version's bundle; it is downloaded once.

        Raises:
            BundleError: if the artifacts cannot be downloaded or are not a valid bundle.
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

    def version_rows(self) -> list[dict[str, Any]]:
        """Return one row per registered version, oldest first, with the columns of the ``models`` table.

        ``metrics`` is a dict.
        """
        client = self.client
        models = client.search_registered_models(filter_string=f"name = '{self.name}'")
        aliases: dict[int, list[str]] = {}
        for model in models:
            for alias, number in model.aliases.items():
                aliases.setdefault(int(number), []).append(alias)
        rows: list[dict[str, Any]] = []
        for registered in client.search_model_versions(f"name = '{self.name}'") if models else []:
            version = self._to_version(registered)
            created_at = datetime.fromtimestamp(registered.creation_timestamp / 1000, UTC).replace(tzinfo=None)
            try:
                config = read_config(self.fetch(version))
            except BundleError:
                config = None  # A version with a damaged bundle is listed without the bundle's columns.
            metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
            mitigation = config.cure if config else None
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
                    **{field.name: getattr(mitigation, field.name, None) for field in fields(ShortcutMitigation)},
                    "metrics": {name: metrics[name] for name in sorted(metrics) if not name.startswith("curve_")},
                    "aliases": sorted(aliases.get(version.version, [])),
                    "created_at": created_at,
                }
            )
        return sorted(rows, key=lambda row: row["model_version"])


def _bundle_root(folder: Path) -> Path:
    """Return the folder with ``config.json``, which MLflow may put into a subfolder of a download."""
    roots = [path.parent for path in folder.rglob("config.json")]
    return roots[0] if roots else folder
