"""Postgres and a Ray cluster of two nodes on loopback addresses, which can be killed and restarted."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from gradcamo_assets.defs.serve import _answer
from gradcamo_assets_tests.loopback import free_port

HEAD, NODE = "127.0.0.2", "127.0.0.3"
"""Addresses of Ray's nodes. Ray replaces 127.0.0.1 by the address of the machine."""
_WAIT_SECONDS = 90


def wait_for(condition: Callable[[], bool], what: str, seconds: float = _WAIT_SECONDS) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


class Postgres:
    """A server of its own, with the databases ``dagster`` and ``mlflow``; Debian's package ``postgresql``."""

    user, password = "gradcamo", "secret"

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="gradcamo-postgres-"))
        # initdb refuses root.
        self._owner = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        shutil.chown(self.folder, self._owner)
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", self.user, "-A", "scram-sha-256", "--pwfile", str(secret))
        self.start()
        for name in ("dagster", "mlflow"):
            self._run("createdb", *self._connection, name)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def _log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def _connection(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user]

    def address(self, database: str) -> str:
        """The address of a database for SQLAlchemy."""
        return f"postgresql+psycopg2://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End the server at once, as in a power cut."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def dump(self, database: str) -> Path:
        """Save a database. Returns the file."""
        file = self.folder / f"{database}.dump"
        self._run("pg_dump", *self._connection, "--format=custom", f"--file={file}", database)
        return file

    def restore(self, database: str, file: Path) -> None:
        """Fill an empty database from a file of ``dump``."""
        self._run("pg_restore", *self._connection, "--no-owner", "--exit-on-error", f"--dbname={database}", str(file))

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop()
        shutil.rmtree(self.folder)
        self._log.unlink()

    def _run(self, program: str, *arguments: str) -> None:
        environment = {**os.environ, "PGPASSWORD": self.password, "LC_ALL": "C.UTF-8"}
        # Not captured: the server inherits the output, so that its end would never come.
        with self._log.open("ab") as log:
            subprocess.run(
                [_find_program(program), *arguments], check=True, stdout=log, stderr=log, cwd="/",
                user=self._owner if os.geteuid() == 0 else None, env=environment,
            )  # fmt: skip


def _find_program(name: str) -> str:
    found = shutil.which(name) or next((str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    assert found, f"{name} is missing; install Debian's package postgresql"
    return found


class RayCluster:
    """A head and a second node, which reserve one core each.

    Args:
        pinned: whether all threads of a node run on one core, its own, as on a machine with a single core.
    """

    def __init__(self, folder: Path, environment: dict[str, str], pinned: bool = False):
        self.port, self.dashboard = free_port(HEAD), free_port(HEAD)
        self._folder, self._pinned = folder, pinned
        # Paths of sockets are short.
        self._sockets = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        # Ray jobs find the command ``dagster`` there.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, **environment, "PATH": path}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """The address for submitting jobs."""
        return f"http://{HEAD}:{self.dashboard}"

    def start_head(self) -> None:
        """Start the head and wait until it accepts jobs."""
        self._start(
            HEAD, "--head", "--port", str(self.port), "--dashboard-host", HEAD, "--dashboard-port",
            str(self.dashboard), "--temp-dir", self._sockets,
        )  # fmt: skip
        wait_for(lambda: _answer(f"{self.address}/api/version"), "Ray's head")

    def start_node(self) -> None:
        """Start the second node. It joins within seconds."""
        self._start(NODE, "--address", f"{HEAD}:{self.port}")

    def kill(self, address: str) -> None:
        """Kill a node with all that runs on it, as in a power cut."""
        os.killpg(self._processes.pop(address).pid, signal.SIGKILL)
        for process in processes_with(f"RAY_TEST_NODE={address}"):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def restart(self) -> None:
        """Kill both nodes and start them again."""
        for address in (NODE, HEAD):
            self.kill(address)
        self.start_head()
        self.start_node()

    def remove(self) -> None:
        """Kill both nodes and delete their files."""
        for address in list(self._processes):
            self.kill(address)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _start(self, address: str, *arguments: str) -> None:
        command: Sequence[str] = (
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address", address,
            "--num-cpus", "1", "--disable-usage-stats", *arguments,
        )  # fmt: skip
        with (self._folder / f"ray-{address}.log").open("ab") as log:
            self._processes[address] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True,
                env={**self._environment, "RAY_TEST_NODE": address},
            )  # fmt: skip
        if self._pinned:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self._processes[address].pid, {cores[0 if address == HEAD else 1]})


def processes_with(text: str) -> list[int]:
    """The processes whose command or environment contains a text, without this one."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and int(process.name) != os.getpid():
                known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
                if text.encode() in known:
                    found.append(int(process.name))
        except OSError:
            continue
    return found
