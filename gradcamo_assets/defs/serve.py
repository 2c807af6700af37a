"""The persistent Dagster instance of an installation, and the two web servers on it.

Dagster's web server runs in this process, where ``web_guard`` wraps its application. Dagster's daemon, the code servers
that both use, and MLflow, which checks requests itself, are child processes.
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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dagster import DagsterInstance, DefaultRunLauncher
from filelock import FileLock, Timeout

from gradcamo_assets.defs.pictures import pictures_route
from gradcamo_assets.defs.settings import read_settings
from gradcamo_assets.defs.web_guard import LOOPBACK_HOSTS, check_address, guard, public_origin
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.storage import read_json, write_bytes, write_json
from gradcamo_assets.training.mlflow_runs import DEFAULT_MLFLOW_URL
from gradcamo_assets.training.mlflow_store import ARTIFACTS, prepare_store, sqlite_uri
from gradcamo_assets.training.model_registry import ModelRegistry

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp

_FILES = ("dagster.yaml", "workspace.yaml")
LOOPBACK = "127.0.0.1"
_CHECK_INTERVAL = 0.5
"""Seconds between checks that the processes run and respond."""


def environment(home: Home) -> dict[str, str]:
    """Return variables for Dagster's processes. Its home is ``dagster/`` in ours; existing settings files are kept."""
    home.create()
    for path in (home.dagster / name for name in _FILES):
        if not path.exists():
            write_bytes(path, Path(__file__).with_name(path.name).read_bytes())
    return {
        "DAGSTER_HOME": str(home.dagster),
        "GRADCAMO_HOME": home.address,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def open_instance(home: Home) -> DagsterInstance:
    """Open the instance whose runs and materialisations the UI shows.

    Unless the user has limited the pools: publication and training have one slot, whatever the default. Segmentation
    uses one core a run, so its pool gets a slot for each core if runs are processes of this machine.
    """
    values = environment(home)
    os.environ.update(values)
    instance = DagsterInstance.from_config(values["DAGSTER_HOME"])
    storage = instance.event_log_storage
    slots = {"publication": 1, "training": 1}
    if isinstance(instance.run_launcher, DefaultRunLauncher):
        slots["segmentation"] = os.cpu_count() or 1
    limited = {pool.name for pool in storage.get_pool_limits() if not pool.from_default}
    for pool, limit in slots.items():
        if pool not in limited:
            storage.set_concurrency_slots(pool, limit)
    return instance


def serve(home: Home, *, port: int, mlflow_port: int, host: str = LOOPBACK, behind_proxy: bool = False) -> int:
    """Run Dagster's web server and daemon and MLflow's server until interrupted or until one stops.

    Args:
        host: IPv4 address or name to listen on.
        behind_proxy: whether a proxy asks for a login; any address but loopback requires it.

    Returns:
        The exit code: 0 after an interrupt.

    Raises:
        GradcamoError: if the address is not loopback and there is no proxy, the servers of this home run already, a
            port is in use, or one of the processes stops by itself.
    """
    check_address(host, behind_proxy)
    settings = read_settings(home)
    links, registry = settings.links, ModelRegistry(home.mlflow, uri=settings.registry.uri)
    origins = [public_origin(links.dagster_url), public_origin(links.mlflow_url or DEFAULT_MLFLOW_URL)]
    hosts = [host, *(urlsplit(origin).hostname or LOOPBACK for origin in origins)]
    # MLflow would start three more processes for background jobs, which are not used here.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    environment(home)
    with _only_server(home):
        if registry.is_server:
            return _serve(home, host, port, {}, registry.uri, hosts, origins)
        mlflow = _mlflow_command(home, host, mlflow_port, hosts, origins)
        with _listening(host, mlflow_port, "--mlflow-port"):
            pass  # Only check that the port is free: MLflow opens it itself.
        return _serve(home, host, port, {"MLflow": mlflow}, f"http://{_shown(host)}:{mlflow_port}", hosts, origins)


@contextmanager
def _only_server(home: Home) -> Iterator[None]:
    """Hold the lock of a home's servers: two daemons would run every schedule and sensor twice."""
    note = home.dagster / "ui.json"
    try:
        with FileLock(home.dagster / ".ui.lock", timeout=0):
            write_json(note, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
    except Timeout:
        running = read_json(note) or {}
        raise GradcamoError(
            f"gradcamo ui runs already, as process {running.get('pid', '?')} on {running.get('host', '?')}",
            "Use it, or stop it first; another GRADCAMO_HOME can have its own.",
            path=home.root,
        ) from None


def _mlflow_command(home: Home, host: str, port: int, hosts: list[str], origins: list[str]) -> list[str]:
    """Return the command that serves the home's own registry."""
    store, artifacts = sqlite_uri(home.mlflow / "mlflow.db"), (home.mlflow / ARTIFACTS).as_uri()
    prepare_store(store)  # Otherwise MLflow and the first run would create it at the same time.
    return [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination",
        artifacts, "--host", host, "--port", str(port), "--workers", "1",
        "--allowed-hosts", ",".join(f"{name}{end}" for name in (*LOOPBACK_HOSTS, *hosts) for end in ("", ":*")),
        "--cors-allowed-origins", ",".join(origins),
    ]  # fmt: skip


def _shown(host: str) -> str:
    return LOOPBACK if host == "0.0.0.0" else host


def _serve(
    home: Home,
    host: str,
    port: int,
    servers: Mapping[str, Sequence[str]],
    mlflow: str,
    hosts: list[str],
    origins: list[str],
) -> int:
    """Run Dagster's servers and further ones (command by name); ``mlflow`` is the address of MLflow's pages."""
    # A process that a shell starts in the background ignores interrupts, and its children inherit this: set it first.
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    try:
        # Open the instance before the daemon starts: otherwise both would create its databases at the same time.
        with (
            _listening(host, port, "--port") as listener,
            open_instance(home) as instance,
        ):
            print(f"Starting {' and '.join(('Dagster', *servers))}; Ctrl-C stops.", flush=True)
            with (
                code_servers(home, instance) as workspace,
                _running({"Dagster's daemon": daemon_command(workspace), **servers}, home.dagster) as processes,
                _web_app(home, instance, workspace) as app,
            ):
                dagster = f"http://{_shown(host)}:{listener.getsockname()[1]}"
                stopped = asyncio.run(_serve_app(guard(app, hosts, origins), listener, processes, dagster, mlflow))
    except KeyboardInterrupt:
        return 0
    raise GradcamoError(f"{stopped} has stopped by itself", "Read what it said above, then start again.")


@contextmanager
def code_servers(home: Home, instance: DagsterInstance) -> Iterator[Path]:
    """Run the code servers of a home's workspace; yield a workspace file that leads to them.

    Without them Dagster's daemon starts a new code server every minute.
    """
    from dagster._cli.proxy_server_manager import ProxyServerManager
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    target = WorkspaceFileTarget([str(home.dagster / "workspace.yaml")])
    with ProxyServerManager(instance, target, "WARNING") as servers, TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace.yaml"
        write_json(workspace, {"load_from": servers.get_code_server_specs()})  # JSON is YAML.
        yield workspace


def daemon_command(workspace: Path) -> list[str]:
    """Return the command that runs Dagster's daemon, with its schedules and sensors."""
    return [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace), "--log-level", "warning"]


@contextmanager
def _listening(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """Yield a socket that listens on a port, so that no other process takes the port."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise GradcamoError(
            f"port {port} of {host} cannot be opened ({error.strerror})", f"Give another with {option}."
        ) from error
    with listener:
        yield listener


@contextmanager
def _running(commands: Mapping[str, Sequence[str]], folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start processes, yield them by name, and stop all of them at the end."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            # In sessions of their own, so that Ctrl-C reaches this process only, which then stops them in order.
            processes[name] = subprocess.Popen(command, cwd=folder, start_new_session=True)
        yield processes
    finally:
        # Dagster stops its own children only after an interrupt. MLflow prints a traceback after an interrupt, so it is
        # terminated. Processes that ignore the signal are killed.
        for stop, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            for name, process in processes.items():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM if name == "MLflow" and stop == signal.SIGINT else stop)
            for process in processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience)


@contextmanager
def _web_app(home: Home, instance: DagsterInstance, workspace: Path) -> Iterator[Starlette]:
    """Yield Dagster's web application for the code locations of a workspace, with the pictures of a home."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    # As in Dagster's own command; it has an effect on Postgres only.
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    target = WorkspaceFileTarget([str(workspace)])
    with WorkspaceProcessContext(instance, target, __version__, code_server_log_level="WARNING") as context:
        app = create_app_from_workspace_process_context(context, live_data_poll_rate=2000)
        # The last of Dagster's routes answers every path.
        app.router.routes.insert(0, pictures_route(home))
        yield app


async def _serve_app(
    app: ASGIApp, listener: socket.socket, processes: Mapping[str, subprocess.Popen[bytes]], dagster: str, mlflow: str
) -> str:
    """Serve until an interrupt, which raises KeyboardInterrupt, or until a process stops; return its name."""
    import uvicorn

    # Open pages hold connections; do not wait for them to close.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announced, stopped = False, "Dagster's web server"
    while not serving.done():
        ended = {name: process.poll() for name, process in processes.items()}
        dead = [f"{name} (exit code {code})" for name, code in ended.items() if code is not None]
        if not announced and await asyncio.to_thread(_answer, f"{dagster}/server_info", f"{mlflow}/health"):
            print(f"Dagster  {dagster}\nMLflow   {mlflow}", flush=True)
            announced = True
        if dead and not server.should_exit:
            stopped, server.should_exit = dead[0], True
        await asyncio.wait([serving], timeout=_CHECK_INTERVAL)
    await serving
    return stopped


def _answer(*addresses: str) -> bool:
    """Return whether each address responds with a page."""
    try:
        for address in addresses:
            with urllib.request.urlopen(address, timeout=5):
                pass
    except OSError:
        return False
    return True
