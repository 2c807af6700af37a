"""A training as an MLflow run: open from its first moment, closed whatever happens, with the evidence it gave.

Here: what is logged to a run. Not here: registered versions and aliases.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcamo_assets.provenance import digest
from gradcamo_assets.settings import section, setting

if TYPE_CHECKING:
    from mlflow import MlflowClient

EPOCHS = "embeddings_by_epoch.parquet"
"""Artifact of a training: how the embeddings of validation cells came apart, epoch by epoch."""
_METRICS_A_CALL = 1000
"""MLflow takes no more."""


@section
class Links:
    """Where the pages are served: section ``[links]`` of ``gradcamo.toml``; by default where ``gradcamo ui`` does."""

    dagster_url: str = setting("http://127.0.0.1:3000", "Of Dagster's pages.")
    mlflow_url: str = setting("http://127.0.0.1:5000", "Of MLflow's; it counts where the registry is no server itself.")


@contextmanager
def open_run(
    client: MlflowClient, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[str]:
    """A run, by its identifier. It ends as FINISHED; or as FAILED, with the tag ``error``, where its body raises.

    Runs of processes of this machine that are gone are closed as FAILED on the way: a killed process cannot do it.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    here = {"host": platform.node(), "process": str(os.getpid())}
    for other in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if other.data.tags.get("host") == here["host"] and _is_gone(other.data.tags.get("process", "")):
            client.set_tag(other.info.run_id, "error", "its process is gone")
            client.set_terminated(other.info.run_id, "FAILED")
    run_id = client.create_run(experiment, tags={**here, **tags}).info.run_id
    try:
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()])
        yield run_id
    except BaseException as error:
        with suppress(MlflowException):  # The reason counts, not that it cannot be told.
            client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


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
        curves: one value an epoch by metric name; ``curve_`` is set before it. files: artifacts by path.
        data: what was read, by plate, as JSON.
    """
    from mlflow.entities import Dataset, DatasetInput, Metric

    now = int(time.time() * 1000)
    series = {name: [value] for name, value in metrics.items()}
    series |= {f"curve_{name}": list(values) for name, values in curves.items()}
    points = [Metric(name, value, now, step) for name, values in series.items() for step, value in enumerate(values)]
    for start in range(0, len(points), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_A_CALL])
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


def _is_gone(process: str) -> bool:
    """Whether a process of this machine has ended."""
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
