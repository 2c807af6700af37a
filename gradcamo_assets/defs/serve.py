"""The persistent Dagster instance of an installation, and the two web servers on it.

Dagster's web server runs in this process, where its application can be wrapped; its daemon and MLflow run beside it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import DagsterInstance

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.training.mlflow_store import ARTIFACTS, prepare_store, sqlite_uri

if TYPE_CHECKING:
    from starlette.applications import Starlette

_FILES = ("dagster.yaml", "workspace.yaml")
_HOST = "127.0.0.1"
_LOOK_EVERY = 0.5
"""Seconds between two looks at whether the processes live and answer."""


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
    """Run Dagster's web server and daemon and MLflow's server, on loopback, until interrupted or until one stops.

    Returns:
        The exit code: 0 after an interrupt.

    Raises:
        GradcamoError: for a port that is in use, or when one of the processes stops by itself.
    """
    # MLflow's own background jobs, which nobody here asks for, are three processes more.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    environment(home)
    store, artifacts = sqlite_uri(home.mlflow / "mlflow.db"), (home.mlflow / ARTIFACTS).as_uri()
    prepare_store(store)  # Else MLflow and the first run would make it, at the same time.
    # fmt: off
    commands = {
        "Dagster's daemon": [
            sys.executable, "-m", "dagster._daemon", "run", "-w", str(home.dagster / "workspace.yaml"),
            "--log-level", "warning"],
        "MLflow": [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination",
            artifacts, "--host", _HOST, "--port", str(mlflow_port), "--workers", "1"],
    }
    # fmt: on
    # Before the children start: one that is born in the background would ignore interrupts, and so would they.
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    with _listening(mlflow_port, "--mlflow-port"):
        pass  # MLflow opens it itself.
    try:
        # The instance is opened first: it makes its databases, which the daemon would make at the same time.
        with (
            _listening(port, "--port") as listener,
            open_instance(home) as instance,
            _running(commands, home.dagster) as processes,
        ):
            print("Dagster and MLflow are starting; Ctrl-C stops both.", flush=True)
            with _web_app(instance, home.dagster / "workspace.yaml") as app:
                stopped = asyncio.run(_serve_app(app, listener, processes, f"http://{_HOST}:{mlflow_port}"))
    except KeyboardInterrupt:
        return 0
    raise GradcamoError(f"{stopped} has stopped by itself", "Read what it said above, then start again.")


@contextmanager
def _listening(port: int, option: str) -> Iterator[socket.socket]:
    """A socket that listens on a port of loopback, so that nobody else takes it."""
    try:
        listener = socket.create_server((_HOST, port))
    except OSError as error:
        raise GradcamoError(
            f"port {port} cannot be opened ({error.strerror})", f"Give another with {option}."
        ) from error
    with listener:
        yield listener


@contextmanager
def _running(commands: Mapping[str, Sequence[str]], folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The processes by their names, all of them stopped at the end."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            # In groups of their own: Ctrl-C reaches this process alone, which stops them in its own way.
            processes[name] = subprocess.Popen(command, cwd=folder, start_new_session=True)
        yield processes
    finally:
        # Dagster's own children are stopped by an interrupt only, of which MLflow's would print a traceback; whoever
        # does not listen is ended.
        for end, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            for name, process in processes.items():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM if name == "MLflow" and end == signal.SIGINT else end)
            for process in processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience)


@contextmanager
def _web_app(instance: DagsterInstance, workspace: Path) -> Iterator[Starlette]:
    """Dagster's web application on the code locations of a workspace, whose code servers it starts and stops."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    # As Dagster's own command does; it matters on Postgres.
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    target = WorkspaceFileTarget([str(workspace)])
    with WorkspaceProcessContext(instance, target, __version__, code_server_log_level="WARNING") as context:
        yield create_app_from_workspace_process_context(context, live_data_poll_rate=2000)


async def _serve_app(
    app: Starlette, listener: socket.socket, processes: Mapping[str, subprocess.Popen[bytes]], mlflow: str
) -> str:
    """Serve until interrupted, which raises KeyboardInterrupt, or until a process stops: what has stopped."""
    import uvicorn

    # Pages that are open hold connections: nobody waits for them.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    dagster = f"http://{_HOST}:{listener.getsockname()[1]}"
    told, stopped = False, "Dagster's web server"
    while not serving.done():
        ended = {name: process.poll() for name, process in processes.items()}
        dead = [f"{name} (exit code {code})" for name, code in ended.items() if code is not None]
        if not told and await asyncio.to_thread(_answer, f"{dagster}/server_info", f"{mlflow}/health"):
            print(f"Dagster  {dagster}\nMLflow   {mlflow}", flush=True)
            told = True
        if dead and not server.should_exit:
            stopped, server.should_exit = dead[0], True
        await asyncio.wait([serving], timeout=_LOOK_EVERY)
    await serving
    return stopped


def _answer(*addresses: str) -> bool:
    """Whether each address answers with a page."""
    try:
        for address in addresses:
            with urllib.request.urlopen(address, timeout=5):
                pass
    except OSError:
        return False
    return True
