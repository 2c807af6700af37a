"""Attempts to ingest a plate that did not succeed, and what is kept of them.

One file a plate, ``<plates>/failures/<name>.json``. It counts for one signature of the plate: mended, the plate starts
anew.
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
from gradcamo_assets.plates.plate_records import home_of
from gradcamo_assets.plates.staging import ingestion_lock
from gradcamo_assets.retries import RetryDecision, decide_retry
from gradcamo_assets.storage import list_visible, read_bytes, remove, write_json


@dataclass(frozen=True)
class Attempt:
    """When it failed, and why. No reason: when it was begun; it goes on, or was killed before it could say why."""

    at: AwareDatetime
    reason: str | None

    def __str__(self) -> str:
        what = "was begun and ended without a word" if self.reason is None else f"failed ({self.reason})"
        return f"{self.at:%Y-%m-%d %H:%M} UTC {what}"


@dataclass(frozen=True)
class Failures:
    """The attempts at one signature of a plate, oldest first; ``retries``: how often they were forgotten on request."""

    signature: str
    attempts: tuple[Attempt, ...] = ()
    retries: int = 0

    @property
    def last(self) -> Attempt:
        """The latest attempt; there must be one."""
        return self.attempts[-1]

    def decide_retry(self, now: datetime) -> RetryDecision:
        """When the plate is tried again, if no attempt is going on."""
        return decide_retry([attempt.at for attempt in self.attempts], now)


_STORED = TypeAdapter(Failures)


def read_failures(plates: Path) -> dict[str, Failures]:
    """What is kept of every plate that failed, by name. A file that cannot be read counts as none: the plate is tried
    again."""
    found = {path.stem: _read(path) for path in list_visible(plates / "failures", "*.json")}
    return {name: failures for name, failures in found.items() if failures is not None}


def forget_failures(plates: Path, name: str) -> None:
    """Try a plate again at the next opportunity."""
    if failures := _read(file := _file(plates, name)):
        _write(file, replace(failures, attempts=(), retries=failures.retries + 1))


@contextmanager
def attempt(plates: Path, name: str, signature: str, now: datetime | None = None) -> Iterator[None]:
    """Keep the attempt to ingest a plate; forget all where it succeeds.

    It is written down before it begins, so that one that is killed counts too, and the plate is locked until it ends,
    so that one that goes on is known.

    Raises:
        PlateError: where another process is ingesting this plate; that is no attempt.
    """
    file = _file(plates, name)
    with ingestion_lock(plates, name):
        earlier = _read(file)
        if earlier is None or earlier.signature != signature:
            earlier = Failures(signature)

        def note(reason: str | None) -> None:
            _write(file, replace(earlier, attempts=(*earlier.attempts, Attempt(now or datetime.now(UTC), reason))))

        note(None)
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, GradcamoError) else f"{type(error).__name__}: {error}"
            note(" ".join(text.split()).replace(f"{home_of(plates)}/", ""))
            raise
        remove(file)


def _file(plates: Path, name: str) -> Path:
    return plates / "failures" / f"{check_plate_name(name)}.json"


def _write(file: Path, failures: Failures) -> None:
    write_json(file, _STORED.dump_python(failures, mode="json"))


def _read(file: Path) -> Failures | None:
    try:
        return _STORED.validate_json(read_bytes(file) or b"")
    except (OSError, ValidationError):
        return None
