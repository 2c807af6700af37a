"""A real MLflow server on a free loopback port, which can be stopped and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from gradcamo_assets.training.mlflow_store import ARTIFACTS, sqlite_uri
from gradcamo_assets_tests.loopback import free_port


class MlflowServer:
    """One server, whose state is kept in ``folder``, or in another database, while it is stopped."""

    def __init__(self, folder: Path, database: str | None = None):
        self.port = free_port()
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self._database = database or sqlite_uri(folder / "mlflow.db")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server without its background jobs and wait until it responds."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                    "--backend-store-uri", self._database,
                    "--artifacts-destination", (self.folder / ARTIFACTS).as_uri(), "--workers", "1",
                ],
                stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        for _ in range(480):
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the MLflow server does not answer")

    def stop(self) -> None:
        """Kill the server and its workers, as in a power cut. Can be called twice."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
            self._process = None
