"""Record failed attempts to ingest a plate.

Each plate has one file, ``<plates>/failures/<name>.json``. It applies to one signature of the plate: when the plate
changes, counting starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.names import check_plate_name
from gradcamo_assets.plates.plate_records import home_folder
from gradcamo_assets.plates.staging import ingestion_lock
from gradcamo_assets.retries import RetryDecision, decide_retry
from gradcamo_assets.storage import list_visible, read_bytes, remove, write_json


@dataclass(frozen=True)
class Attempt:
    """One attempt at ingestion.

    Attributes:
        at: when the attempt failed, or when it started if ``reason`` is None.
        reason: why it failed. None if the attempt is still running or was killed.
    """

    at: AwareDatetime
    reason: str | None

    def __str__(self) -> str:
        result = "stopped without an error message" if self.reason is None else f"failed ({self.reason})"
        return f"attempt at {self.at:%Y-%m-%d %H:%M} UTC {result}"


@dataclass(frozen=True)
class Failures:
    """The attempts at one signature of a plate, oldest first. ``retries`` counts how often a user reset them."""

    signature: str
    attempts: tuple[Attempt, ...] = ()
    retries: int = 0

    @property
    def last(self) -> Attempt:
        """The latest attempt; there must be at least one."""
        return self.attempts[-1]

    def decide_retry(self, now: datetime) -> RetryDecision:
        """When to try the plate again, provided that no attempt is running."""
        return decide_retry([attempt.at for attempt in self.attempts], now)


_STORED = TypeAdapter(Failures)


def read_failures(plates: Path) -> dict[str, Failures]:
    """The failures of every plate that has any, by name. An unreadable file is ignored, so its plate is tried again."""
    failures = {path.stem: _read(path) for path in list_visible(plates / "failures", "*.json")}
    return {name: failed for name, failed in failures.items() if failed is not None}


def forget_failures(plates: Path, name: str) -> None:
    """Reset the failures of a plate, so that it is tried again at the next opportunity."""
    path = _failures_file(plates, name)
    if failures := _read(path):
        _write(path, replace(failures, attempts=(), retries=failures.retries + 1))


@contextmanager
def recorded_attempt(plates: Path, name: str, signature: str, now: datetime | None = None) -> Iterator[None]:
    """Record an attempt to ingest a plate; remove the record of all attempts if it succeeds.

    The attempt is recorded before it starts, so that a killed one counts too. The plate is locked until the attempt
    ends, which shows others that it is running.

    Raises:
        PlateError: another process is ingesting this plate. This does not count as an attempt.
    """
    path = _failures_file(plates, name)
    with ingestion_lock(plates, name):
        earlier = _read(path)
        if earlier is None or earlier.signature != signature:
            earlier = Failures(signature)

        def record(reason: str | None) -> None:
            _write(path, replace(earlier, attempts=(*earlier.attempts, Attempt(now or datetime.now(UTC), reason))))

        record(None)
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, GradcamoError) else f"{type(error).__name__}: {error}"
            record(" ".join(text.split()).replace(f"{home_folder(plates)}/", ""))
            raise
        remove(path)


def _failures_file(plates: Path, name: str) -> Path:
    return plates / "failures" / f"{check_plate_name(name)}.json"


def _write(path: Path, failures: Failures) -> None:
    write_json(path, _STORED.dump_python(failures, mode="json"))


def _read(path: Path) -> Failures | None:
    try:
        return _STORED.validate_json(read_bytes(path) or b"")
    except (OSError, ValidationError):
        return None
