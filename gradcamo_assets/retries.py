"""When what failed is tried again, and when it is left to a person: one rule for plates, fields and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

PAUSES = (timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))
"""After the first failure, the second, and so on. After one more it is given up."""
MOST_ATTEMPTS = len(PAUSES) + 1


@dataclass(frozen=True)
class NextTry:
    """``due``: it is to be tried now. ``at``: when it is tried otherwise. Neither: it is given up."""

    due: bool
    at: datetime | None = None

    @property
    def given_up(self) -> bool:
        """Whether it is tried again only where a person asks for it."""
        return not self.due and self.at is None


def next_try(failed: Sequence[datetime], now: datetime) -> NextTry:
    """What follows from the attempts that failed.

    Args:
        failed: when each of them ended, the latest last; all with a time zone, or none, as ``now``.
    """
    if not failed:
        return NextTry(due=True)
    if len(failed) >= MOST_ATTEMPTS:
        return NextTry(due=False)
    pause = PAUSES[len(failed) - 1]
    # A failure may lie ahead of a clock that was set back: nothing waits longer than two pauses.
    if abs(now - failed[-1]) >= pause:
        return NextTry(due=True)
    return NextTry(due=False, at=failed[-1] + pause)
