"""Open an MLflow run for a training, log its evidence, and close the run whatever happens."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcamo_assets.provenance import digest
from gradcamo_assets.settings import section, setting

if TYPE_CHECKING:
    from mlflow import MlflowClient

EPOCH_EMBEDDINGS = "embeddings_by_epoch.parquet"
"""Artifact of a training: the embeddings of validation cells after every epoch."""
DEFAULT_MLFLOW_URL = "http://127.0.0.1:5000"
"""Address of MLflow's pages as `gradcamo ui` serves them by default."""
DAGSTER_RUN = "dagster_run_id"
"""Tag of an MLflow run: the Dagster run that opened it."""
_METRICS_PER_CALL = 1000
"""MLflow's limit."""


@section
class Links:
    """Addresses of the web pages: section ``[links]`` of ``gradcamo.toml``; the defaults match ``gradcamo ui``."""

    dagster_url: str = setting("http://127.0.0.1:3000", "Address of Dagster's pages.")
    mlflow_url: str | None = setting(
        None, f"Address of MLflow's pages; default: the server in `[registry]`, or `{DEFAULT_MLFLOW_URL}`."
    )


@section
class RegistryConfig:
    """The model registry: section ``[registry]`` of ``gradcamo.toml``."""

    uri: str | None = setting(
        None,
        "Address of an MLflow server: http or https, such as `http://mlflow:5000`. Default: the environment variable "
        "`MLFLOW_TRACKING_URI`, or a SQLite file in the home.",
        pattern=r"^https?://[^/\s]",
    )


@contextmanager
def open_run(
    client: MlflowClient, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[str]:
    """Open a run and yield its identifier. It ends as FINISHED, or as FAILED with the tag ``error`` if the body raises.

    Also close runs of this machine whose process has ended: a killed process cannot do so itself.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    process_tags = {"host": platform.node(), "process": str(os.getpid())}
    end_lost_runs(
        client,
        experiment,
        lambda tags: tags.get("host") == process_tags["host"] and _has_ended(tags.get("process", "")),
        "the process of this run has ended",
    )
    run_id = client.create_run(experiment, tags={**process_tags, **tags}).info.run_id
    try:
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()])
        yield run_id
    except BaseException as error:
        with suppress(MlflowException):  # An unreachable server must not hide the original error.
            client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def end_lost_runs(
    client: MlflowClient, experiment: str, is_lost: Callable[[Mapping[str, str]], bool], reason: str
) -> None:
    """End open runs that nobody ends, as FAILED.

    Args:
        is_lost: tells from the tags of an open run whether it is lost.
        reason: for the tag ``error``.
    """
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if is_lost(run.data.tags):
            client.set_tag(run.info.run_id, "error", reason)
            client.set_terminated(run.info.run_id, "FAILED")


def log_evidence(
    client: MlflowClient,
    run_id: str,
    metrics: Mapping[str, float],
    curves: Mapping[str, Iterable[float]],
    files: Mapping[str, bytes],
    data: Mapping[str, Mapping[str, Any]],
) -> None:
    """Log to an open run.

    Args:
        curves: values per epoch by metric name; the logged name has the prefix ``curve_``.
        files: content of artifacts by path.
        data: JSON description of the data that was read, by plate.
    """
    from mlflow.entities import Dataset, DatasetInput, Metric

    now = int(time.time() * 1000)
    series = {name: [value] for name, value in metrics.items()}
    series |= {f"curve_{name}": list(values) for name, values in curves.items()}
    points = [Metric(name, value, now, step) for name, values in series.items() for step, value in enumerate(values)]
    for start in range(0, len(points), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])
    plates = [
        Dataset(plate, digest(content), "crops", json.dumps({"plate": plate}), profile=json.dumps(content))
        for plate, content in data.items()
    ]
    client.log_inputs(run_id, [DatasetInput(plate) for plate in plates])
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            path = Path(scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run_id, scratch)


def _has_ended(process: str) -> bool:
    """Tell whether the process with this identifier, on this machine, has ended."""
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
