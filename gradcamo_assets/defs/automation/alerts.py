"""Telling a person that a run failed: by a webhook or by mail, as ``[alerts]`` in ``gradcamo.toml`` says."""

import json
import os
import re
import smtplib
import ssl
import urllib.request
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import dagster as dg

from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.settings import AlertConfig
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates.failures import read_failures

_SECONDS = 10


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to any scheme and host, and would not carry what was posted: it is an error."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(address: str, alert: dict[str, Any]) -> None:
    """Post an alert as JSON.

    Raises:
        OSError: no answer within 10 seconds, or one other than success.
    """
    body = json.dumps(alert).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=_SECONDS):
        pass


def mail(settings: AlertConfig, alert: dict[str, Any]) -> None:
    """Send an alert by mail. Dagster's own sensor would do it with a password and in ASCII alone, and has no time-out.

    Raises:
        OSError, smtplib.SMTPException: where the server cannot be reached or refuses.
    """
    message = EmailMessage()
    message["Subject"] = " ".join(f"gradcamo: {alert['job']} failed for {alert['plate'] or 'a run'}".split())
    message["From"] = settings.mail_from
    message["To"] = [settings.mail_to] if isinstance(settings.mail_to, str) else list(settings.mail_to)
    message.set_content("\n".join([alert["text"], "", *(f"{name}: {value}" for name, value in alert.items())]))
    password = os.environ.get("GRADCAMO_SMTP_PASSWORD")
    with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=_SECONDS) as server:
        if password:
            server.starttls(context=ssl.create_default_context())
            server.login(settings.smtp_user or settings.mail_from, password)
        server.send_message(message)


def alert_of(home: Home, run: dg.DagsterRun, reason: str) -> dict[str, Any]:
    """What is told of a failed run: ``text`` for people, the rest for machines; what does not apply is None.

    ``state`` is that of a plate that could not be taken in: waiting (tried again) or quarantined.
    """
    tags = run.tags
    plate = tags.get("dagster/partition/plate") or tags.get("dagster/partition")
    site = tags.get("dagster/partition/site")
    failed = read_failures(home.plates).get(plate) if plate and not site else None
    text = f"{run.job_name} failed{f' for plate {plate}' if plate else ''}{f', site {site}' if site else ''}: {reason}"
    state = None
    if failed is not None and failed.attempts:
        next_try = failed.decide_retry(datetime.now(UTC))
        state = "quarantined" if next_try.given_up else "waiting"
        then = f"It is tried again {f'at {next_try.at:%Y-%m-%d %H:%M} UTC' if next_try.at else 'now'}."
        if next_try.given_up:
            times = len(failed.attempts)
            then = f"It failed {times} times and is quarantined: gradcamo inbox --retry {plate} tries again."
        text = f"{text.rstrip('.')}. {then}"
    return {
        "text": text, "job": run.job_name, "plate": plate, "site": site,
        "run_id": run.run_id, "reason": reason, "state": state,
    }  # fmt: skip


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells of failed runs by webhook or mail. It runs so that [alerts] in gradcamo.toml is all there is to "
    "set; without webhook or mail_to there it does nothing.",
)
def alert_on_failure(context: dg.RunFailureSensorContext, platform: Platform) -> None:
    """Tell of one failed run. An alert that cannot be sent is logged, and is not sent again."""
    try:
        settings = platform.settings.alerts
        if not settings.webhook and not settings.mail_to:
            return
        alert = alert_of(platform.home, context.dagster_run, _reason(context))
    except GradcamoError as error:
        context.log.error(f"No alert was sent: {error}")
        return
    for wanted, send in (
        (settings.webhook, lambda: post(settings.webhook or "", alert)),
        (settings.mail_to, lambda: mail(settings, alert)),
    ):
        try:
            if wanted:
                send()
        # Whatever a server answers, the next failure must be told of too.
        except Exception as error:
            context.log.error(f"An alert was not sent: {type(error).__name__}: {error}")


def _reason(context: dg.RunFailureSensorContext) -> str:
    """What the step said that failed first; of a run that was killed, what Dagster says."""
    for event in context.get_step_failure_events():
        if (error := event.step_failure_data.error) is not None:
            return re.sub(r"^gradcamo_assets\S+: ", "", " ".join((error.cause or error).message.split()))
    return context.failure_event.message or "no reason is known"
