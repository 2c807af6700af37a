"""The persistent Dagster instance of an installation, and the two web pages on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dagster import DagsterInstance

from gradcamo_assets.home import Home
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.training.mlflow_store import ARTIFACTS, prepare_store, sqlite_uri

_FILES = ("dagster.yaml", "workspace.yaml")


def environment(home: Home) -> dict[str, str]:
    """What Dagster's processes need to know. Its home is ``dagster/`` in ours; settings that lie there already stay."""
    home.create()
    for path in (home.dagster / name for name in _FILES):
        if not path.exists():
            write_bytes(path, Path(__file__).with_name(path.name).read_bytes())
    return {
        "DAGSTER_HOME": str(home.dagster),
        "GRADCAMO_HOME": str(home.root),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def open_instance(home: Home) -> DagsterInstance:
    """The instance whose runs and materialisations the UI shows."""
    values = environment(home)
    os.environ.update(values)
    return DagsterInstance.from_config(values["DAGSTER_HOME"])


def serve(home: Home, *, port: int, mlflow_port: int) -> int:
    """Run the Dagster UI with its daemon and the MLflow UI, on loopback, until interrupted. The exit code."""
    values = {**os.environ, **environment(home)}
    store, artifacts = sqlite_uri(home.mlflow / "mlflow.db"), (home.mlflow / ARTIFACTS).as_uri()
    prepare_store(store)  # Else both servers would make it, at the same time.
    # fmt: off
    commands = [
        [sys.executable, "-m", "dagster", "dev", "-w", str(home.dagster / "workspace.yaml"),
         "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"],
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", artifacts,
         "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"],
    ]
    # fmt: on
    print(f"Dagster  http://127.0.0.1:{port}\nMLflow   http://127.0.0.1:{mlflow_port}\nStop both with Ctrl-C.")
    # Before the children start: one that is born in the background would ignore interrupts, and so would they.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    processes = [subprocess.Popen(command, env=values, cwd=home.dagster) for command in commands]
    try:
        return processes[0].wait()
    except KeyboardInterrupt:
        return 0
    finally:
        # Dagster's own children are stopped by an interrupt only; whoever does not listen is ended.
        for end, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            for process in processes:
                if process.poll() is None:
                    process.send_signal(end)
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
