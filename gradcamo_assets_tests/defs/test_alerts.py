"""Alerts on failed runs by webhook and mail; failing alerts have no other effect."""

from __future__ import annotations

import json
import smtplib
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from gradcamo_assets.defs.automation import webhook
from gradcamo_assets.defs.automation.alerts import AlertConfig, alert_on_failure
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.plates.failures import recorded_attempt
from gradcamo_assets_tests.defs.conftest import Bench


class Hook(HTTPServer):
    """A webhook on loopback that responds with ``status``."""

    received: list[Any]
    status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"

    @property
    def settings(self) -> str:
        return f'[alerts]\nwebhook = "{self.address}"\nwebhook_networks = ["127.0.0.1"]\n'


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", f"{self.server.address}/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.__class__ = Hook
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server  # type: ignore[misc]
        server.shutdown()
        thread.join()


def failed_run(bench: Bench, name: str = "bad") -> dg.ExecuteInProcessResult:
    """Ingest a folder that is not a plate; the run fails."""
    (bench.home.inbox / f"{name}.zarr").mkdir(exist_ok=True)
    result = bench.ingest(name)
    assert not result.success
    return result


def send_alert(bench: Bench, run: dg.ExecuteInProcessResult) -> None:
    """Call the sensor for one failed run."""
    event = next(event for event in run.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    context = dg.build_run_status_sensor_context(
        sensor_name="alert_on_failure",
        dagster_event=event,
        dagster_instance=bench.instance,
        dagster_run=run.dagster_run,
        resources={"platform": bench.platform},
    ).for_run_failure()
    alert_on_failure(context)


def test_without_settings_nothing_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "post", pytest.fail)
    monkeypatch.setattr("gradcamo_assets.defs.automation.alerts.mail_alert", pytest.fail)
    send_alert(bench, failed_run(bench))


def test_a_webhook_receives_place_and_reason(bench: Bench, hook: Hook) -> None:
    bench.home.settings_file.write_text(hook.settings)
    run = failed_run(bench)
    send_alert(bench, run)
    ((path, alert),) = hook.received
    assert path == "/hook"
    assert set(alert) == {"text", "job", "plate", "site", "run_id", "reason", "state"}
    assert (alert["job"], alert["plate"], alert["site"]) == ("ingest_plates", "bad", None)
    assert alert["run_id"] == run.run_id and alert["state"] == "waiting"
    assert alert["reason"].startswith("plate bad, file") and "not an OME-Zarr plate" in alert["reason"]
    assert "retried at" in alert["text"]


def test_the_fifth_failure_says_that_the_plate_is_quarantined(bench: Bench, hook: Hook) -> None:
    bench.home.settings_file.write_text(hook.settings)
    run = failed_run(bench)
    signature = json.loads((bench.home.plates / "failures" / "bad.json").read_text())["signature"]
    for _ in range(4):
        with pytest.raises(PlateError), recorded_attempt(bench.home.plates, "bad", signature):
            raise PlateError("still none", "Export it again.")
    send_alert(bench, run)
    alert = hook.received[0][1]
    assert alert["state"] == "quarantined" and "gradcamo inbox --retry bad" in alert["text"]


def test_plate_and_site_of_a_partition_are_named(bench: Bench, hook: Hook) -> None:
    bench.home.settings_file.write_text(hook.settings)
    for dimension, key in (("plates", "tiny"), ("sites", "2")):
        bench.instance.add_dynamic_partitions(dimension, [key])
    send_alert(bench, bench.run("process_fields", plate_site_key("tiny", 2)))
    alert = hook.received[0][1]
    assert (alert["plate"], alert["site"], alert["state"]) == ("tiny", "2", None)
    assert "not been ingested" in alert["reason"]


@pytest.mark.parametrize("status", [302, 500])
def test_a_webhook_that_refuses_or_redirects_is_no_failure(bench: Bench, hook: Hook, status: int) -> None:
    hook.status = status
    bench.home.settings_file.write_text(hook.settings)
    send_alert(bench, failed_run(bench))
    assert [path for path, _ in hook.received] == ["/hook"]
    with pytest.raises(OSError, match=str(status)):
        webhook.post(hook.address, {}, ["127.0.0.1"])


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8", "127.0.0.2", "::1"]])
def test_nothing_is_sent_to_addresses_that_the_settings_do_not_name(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, networks: list[str]
) -> None:
    """A public name that resolves to an internal address, as after a change of its DNS entry."""
    monkeypatch.setenv("no_proxy", "*")
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: resolve("127.0.0.1", *more, **named))
    address = f"http://hooks.example.org:{hook.server_port}/hook"
    with pytest.raises(GradcamoError, match=r"127\.0\.0\.1, which is not public.*webhook_networks"):
        webhook.post(address, {"text": "secret"}, networks)
    assert hook.received == []
    webhook.post(address, {}, [*networks, "127.0.0.0/24"])
    assert len(hook.received) == 1


@pytest.mark.parametrize(
    ("peer", "is_public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("127.0.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True),
    ],
)  # fmt: skip
def test_public_addresses_are_told_from_others(peer: str, is_public: bool) -> None:
    with nullcontext() if is_public else pytest.raises(GradcamoError, match="not public"):
        webhook._PermittedAddresses([])._check(peer)


def test_networks_are_checked_when_the_settings_are_read() -> None:
    with pytest.raises(GradcamoError, match=r"webhook_networks.*intranet"):
        AlertConfig(webhook_networks=("intranet",))


def test_wrong_settings_are_no_failure(bench: Bench, hook: Hook) -> None:
    run = failed_run(bench)
    for text in (
        'webhook = "ftp://x/"',
        "no_such = 1",
        'webhook = "http://127.0.0.1:9/"',
        f'webhook = "{hook.address}"',
        "nonsense",
    ):
        bench.home.settings_file.write_text(f"[alerts]\n{text}\n")
        send_alert(bench, run)


@pytest.mark.parametrize(
    "address", ["http://example.com/x", "http://10.0.0.1/", "file:///etc/passwd", "https:///x", "", "http://"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(GradcamoError) as error:
        AlertConfig(webhook=address)
    assert not address or address not in str(error.value)


@pytest.mark.parametrize(
    "address", ["https://example.com/x", "http://localhost:8/", "http://[::1]/", "http://127.0.0.2"]
)
def test_https_and_loopback_are_accepted(address: str) -> None:
    assert AlertConfig(webhook=address).webhook == address


class FakeSMTP:
    """A mail server that records the calls."""

    calls: list[Any]

    def __init__(self, host: str, port: int, timeout: float):
        FakeSMTP.calls = [(host, port)]

    def __enter__(self) -> FakeSMTP:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def starttls(self, context: object) -> None:
        FakeSMTP.calls.append("tls")

    def login(self, user: str, password: str) -> None:
        FakeSMTP.calls.append((user, password))

    def send_message(self, message: EmailMessage) -> None:
        FakeSMTP.calls.append(message)


@pytest.mark.parametrize("password", [None, "hush-hush"])
def test_mail_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch, password: str | None) -> None:
    monkeypatch.setattr(smtplib, "SMTP", FakeSMTP)
    monkeypatch.delenv("GRADCAMO_SMTP_PASSWORD", raising=False)
    if password:
        monkeypatch.setenv("GRADCAMO_SMTP_PASSWORD", password)
    bench.home.settings_file.write_text(
        '[alerts]\nmail_to = ["a@lab.org", "b@lab.org"]\nmail_from = "dagster@lab.org"\nsmtp_host = "mail.lab.org"\n'
        "smtp_port = 587\n"
    )
    send_alert(bench, failed_run(bench))
    server, *secured, message = FakeSMTP.calls
    assert server == ("mail.lab.org", 587)
    assert secured == (["tls", ("dagster@lab.org", "hush-hush")] if password else [])
    assert message["To"] == "a@lab.org, b@lab.org" and message["From"] == "dagster@lab.org"
    assert "ingest_plates failed for bad" in message["Subject"] and "not an OME-Zarr plate" in message.get_content()
    assert "hush-hush" not in message.as_string()


def test_the_sensor_is_enabled_and_describes_its_default(bench: Bench) -> None:
    sensor = bench.definitions.resolve_sensor_def("alert_on_failure")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert "[alerts]" in str(sensor.description) and "does nothing" in str(sensor.description)
