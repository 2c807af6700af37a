"""``gradcamo ui``: both servers start, answer and stop, and what stops by itself is named."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from starlette.applications import Starlette

from gradcamo_assets.defs import serve
from gradcamo_assets.defs.web_guard import check_address
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets_tests.loopback import ask, free_port

QUERY = """{
  instance { daemonHealth { allDaemonStatuses { daemonType healthy } } }
  repositoriesOrError { ... on RepositoryConnection { nodes { location { name } jobs { name } } } }
}"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_starts_answers_graphql_and_stops_without_a_warning(tmp_path: Path) -> None:
    port, mlflow_port = free_port(), free_port()
    # The sensors ask for runs; none is started, so that all there is to stop are the servers.
    (tmp_path / "home" / "dagster").mkdir(parents=True)
    (tmp_path / "home" / "dagster" / "dagster.yaml").write_text(
        "concurrency: {runs: {max_concurrent_runs: 0}}\ntelemetry: {enabled: false}\n"
    )
    # Another dagster.yaml in the working folder, as in a clone.
    (tmp_path / "dagster.yaml").write_text("")
    code = "from gradcamo_assets.cli import main; main()"
    values = os.environ | {
        "GRADCAMO_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with (tmp_path / "log").open("w") as log:
        ui = subprocess.Popen(
            [sys.executable, "-c", code, "ui", "--port", str(port), "--mlflow-port", str(mlflow_port)],
            cwd=tmp_path, env=values, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    said = (tmp_path / "log").read_text
    try:
        until = time.monotonic() + 480
        while f"MLflow   http://127.0.0.1:{mlflow_port}\n" not in said():
            assert ui.poll() is None and time.monotonic() < until, said()
            time.sleep(0.2)
        address = f"http://127.0.0.1:{port}"
        assert f"Dagster  {address}\n" in said()
        answer = ask(address, QUERY)["data"]
        (repository,) = answer["repositoriesOrError"]["nodes"]
        assert repository["location"]["name"] == "gradcamo_assets"
        assert "refresh_qc" in {job["name"] for job in repository["jobs"]}
        with urllib.request.urlopen(f"http://127.0.0.1:{mlflow_port}/health", timeout=60) as health:
            assert health.status == 200
        for url in (f"{address}/graphql?query=%7Bversion%7D", f"http://localhost:{mlflow_port}/"):
            request = urllib.request.Request(url, headers={"Host": "evil.example:80"})
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=60)
        # As the terminal does it: to the whole group.
        os.killpg(ui.pid, signal.SIGINT)
        assert ui.wait(60) == 0, said()
    finally:
        if ui.poll() is None:
            os.killpg(ui.pid, signal.SIGKILL)
    for word in ("dagster.yaml", "superseded", "stopped by itself", "KeyboardInterrupt"):
        assert word not in said(), said()
    for closed in (port, mlflow_port):
        socket.create_server(("127.0.0.1", closed)).close()


def test_a_process_that_stops_by_itself_is_named() -> None:
    daemon = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    try:
        with serve._listening("127.0.0.1", 0, "--port") as listener:
            stopped = asyncio.run(
                serve._serve_app(Starlette(), listener, {"Dagster's daemon": daemon}, *["http://127.0.0.1:9"] * 2)
            )
    finally:
        daemon.wait(30)
    assert stopped == "Dagster's daemon (exit code 3)"


@pytest.fixture
def nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home on which ``serve`` fails if it starts a process."""
    for name in ("DAGSTER_HOME", "GRADCAMO_HOME", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(serve, "prepare_store", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    return Home(tmp_path)


@pytest.mark.parametrize("option", ["--port", "--mlflow-port"])
def test_a_port_in_use_is_an_error_before_anything_starts(nothing_starts: Home, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"port": 0, "mlflow_port": 0} | {option.strip("-").replace("-", "_"): taken.getsockname()[1]}
        with pytest.raises(GradcamoError, match=f"cannot be opened.*{option}"):
            serve.serve(nothing_starts, **ports)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "10.0.0.1", "::", "workstation.example.org"])
def test_other_addresses_than_loopback_need_a_proxy(nothing_starts: Home, host: str) -> None:
    with pytest.raises(GradcamoError, match=r"neither asks for a password.*--behind-proxy"):
        serve.serve(nothing_starts, port=0, mlflow_port=0, host=host)
    check_address(host, behind_proxy=True)
    for loopback in ("127.0.0.1", "127.0.0.2", "localhost"):
        check_address(loopback, behind_proxy=False)


def test_a_second_server_names_the_first_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys
from pathlib import Path
from gradcamo_assets.defs.serve import Home, _only_server
home = Home(Path(sys.argv[1])).create()
with _only_server(home):
    print(flush=True)
    input()
"""
    values = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": values}
    with subprocess.Popen(command, **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == b"\n"
        for name in ("DAGSTER_HOME", "GRADCAMO_HOME", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
            monkeypatch.setenv(name, "")
        with pytest.raises(GradcamoError, match=f"runs already, as process {first.pid} on {socket.gethostname()}"):
            serve.serve(Home(tmp_path), port=0, mlflow_port=0)
        first.kill()
    with serve._only_server(Home(tmp_path)):
        pass  # A killed server leaves no lock.
