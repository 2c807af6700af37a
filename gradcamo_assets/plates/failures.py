"""Attempts to ingest a plate that did not succeed: what is kept of them, when to try again, when to give up.

One file a plate, ``<plates>/failures/<name>.json``. It counts for one signature of the plate: mended, the plate starts
anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gradcamo_assets.common.errors import GradcamoError
from gradcamo_assets.common.files import write_json
from gradcamo_assets.common.names import plate_name

_NIGHTS = 3
_LONGEST_WAIT_HOURS = 24


@dataclass(frozen=True)
class Attempt:
    """When it was begun, or failed, and why. No reason: it has not ended, or was killed before it could say why."""

    at: AwareDatetime
    reason: str | None

    def __str__(self) -> str:
        what = "was begun and has not ended" if self.reason is None else f"failed ({self.reason})"
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

    @property
    def next_try(self) -> datetime:
        """1 h after the first failure, then 2, 4, 8 ..., at most 24 h after the last."""
        return self.last.at + timedelta(hours=min(_LONGEST_WAIT_HOURS, 2 ** (len(self.attempts) - 1)))

    @property
    def nights(self) -> int:
        """On how many dates (UTC) it failed."""
        return len({attempt.at.date() for attempt in self.attempts})

    def is_quarantined(self, now: datetime) -> bool:
        """Whether it failed on three nights. An attempt that may still be going on does not count yet."""
        return self.nights >= _NIGHTS and (self.last.reason is not None or now >= self.next_try)


_STORED = TypeAdapter(Failures)


def read_failures(plates: Path) -> dict[str, Failures]:
    """What is kept of every plate that failed, by name. A file that cannot be read counts as none: the plate is tried
    again."""
    found = {path.stem: _read(path) for path in sorted((plates / "failures").glob("[!.]*.json"))}
    return {name: failures for name, failures in found.items() if failures is not None}


def forget_failures(plates: Path, name: str) -> None:
    """Try a plate again at the next opportunity."""
    if failures := _read(file := _file(plates, name)):
        _write(file, replace(failures, attempts=(), retries=failures.retries + 1))


@contextmanager
def attempt(plates: Path, name: str, signature: str, now: datetime | None = None) -> Iterator[None]:
    """Keep the attempt to ingest a plate; forget all where it succeeds.

    It is written down before it begins, so that one that is killed counts too.
    """
    file = _file(plates, name)
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
        note(" ".join(text.split()))
        raise
    file.unlink(missing_ok=True)


def _file(plates: Path, name: str) -> Path:
    return plates / "failures" / f"{plate_name(name)}.json"


def _write(file: Path, failures: Failures) -> None:
    write_json(file, _STORED.dump_python(failures, mode="json"))


def _read(file: Path) -> Failures | None:
    try:
        return _STORED.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
