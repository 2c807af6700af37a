"""Send alerts on failed runs by webhook or mail, as configured in ``[alerts]`` of ``gradcamo.toml``."""

import os
import re
import smtplib
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import dagster as dg

from gradcamo_assets.defs.automation import webhook
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.settings import AlertConfig
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates.failures import read_failures


def mail_alert(settings: AlertConfig, alert: dict[str, Any]) -> None:
    """Send an alert by mail.

    Dagster's own mail sensor requires a password, supports ASCII text only and has no timeout.

    Raises:
        OSError, smtplib.SMTPException: if the server cannot be reached or refuses the mail.
    """
    message = EmailMessage()
    message["Subject"] = " ".join(f"gradcamo: {alert['job']} failed for {alert['plate'] or 'a run'}".split())
    message["From"] = settings.mail_from
    message["To"] = [settings.mail_to] if isinstance(settings.mail_to, str) else list(settings.mail_to)
    message.set_content("\n".join([alert["text"], "", *(f"{name}: {value}" for name, value in alert.items())]))
    password = os.environ.get("GRADCAMO_SMTP_PASSWORD")
    with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=webhook.TIMEOUT_SECONDS) as server:
        if password:
            server.starttls(context=ssl.create_default_context())
            server.login(settings.smtp_user or settings.mail_from, password)
        server.send_message(message)


def build_alert(home: Home, run: dg.DagsterRun, reason: str) -> dict[str, Any]:
    """Build the alert on a failed run: ``text`` for people, the other items for programs. Unknown items are None.

    ``state`` is the state of a plate whose ingestion failed: waiting (for another attempt) or quarantined.
    """
    tags = run.tags
    plate = tags.get("dagster/partition/plate") or tags.get("dagster/partition")
    site = tags.get("dagster/partition/site")
    failures = read_failures(home.plates).get(plate) if plate and not site else None
    text = f"{run.job_name} failed{f' for plate {plate}' if plate else ''}{f', site {site}' if site else ''}: {reason}"
    state = None
    if failures is not None and failures.attempts:
        retry = failures.decide_retry(datetime.now(UTC))
        if retry.given_up:
            state = "quarantined"
            times = len(failures.attempts)
            outlook = f"It failed {times} times and is quarantined; to retry: gradcamo inbox --retry {plate}."
        else:
            state = "waiting"
            outlook = f"It is retried {f'at {retry.at:%Y-%m-%d %H:%M} UTC' if retry.at else 'now'}."
        text = f"{text.rstrip('.')}. {outlook}"
    return {
        "text": text, "job": run.job_name, "plate": plate, "site": site,
        "run_id": run.run_id, "reason": reason, "state": state,
    }  # fmt: skip


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends alerts on failed runs by webhook or mail. It is enabled by default, but does nothing unless "
    "webhook or mail_to is set in [alerts] of gradcamo.toml.",
)
def alert_on_failure(context: dg.RunFailureSensorContext, platform: Platform) -> None:
    """Send alerts on one failed run. An alert that cannot be sent is logged and not sent again."""
    try:
        settings = platform.settings.alerts
        if not settings.webhook and not settings.mail_to:
            return
        alert = build_alert(platform.home, context.dagster_run, _failure_reason(context))
    except GradcamoError as error:
        context.log.error(f"Alert not sent: {error}")
        return
    for recipient, send in (
        (settings.webhook, lambda: webhook.post(settings.webhook or "", alert, settings.webhook_networks)),
        (settings.mail_to, lambda: mail_alert(settings, alert)),
    ):
        try:
            if recipient:
                send()
        # No response of a server may stop the alerts on later failures.
        except Exception as error:
            context.log.error(f"Alert not sent: {type(error).__name__}: {error}")


def _failure_reason(context: dg.RunFailureSensorContext) -> str:
    """The error of the first failed step; without one (the run was killed), Dagster's message."""
    for event in context.get_step_failure_events():
        if (error := event.step_failure_data.error) is not None:
            return re.sub(r"^gradcamo_assets\S+: ", "", " ".join((error.cause or error).message.split()))
    return context.failure_event.message or "unknown reason"
