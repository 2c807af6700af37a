"""When what failed is tried again, and when it is left to a person: one rule for plates, fields and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

RETRY_PAUSES = (timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))
"""After the first failure, the second, and so on. After one more it is given up."""
MAX_ATTEMPTS = len(RETRY_PAUSES) + 1


@dataclass(frozen=True)
class RetryDecision:
    """``due``: it is to be tried now. ``at``: when it is tried otherwise. Neither: it is given up."""

    due: bool
    at: datetime | None = None

    @property
    def given_up(self) -> bool:
        """Whether it is tried again only where a person asks for it."""
        return not self.due and self.at is None


def decide_retry(failed: Sequence[datetime], now: datetime) -> RetryDecision:
    """What follows from the attempts that failed.

    Args:
        failed: when each of them ended, the latest last; all with a time zone, or none, as ``now``.
    """
    if not failed:
        return RetryDecision(due=True)
    if len(failed) >= MAX_ATTEMPTS:
        return RetryDecision(due=False)
    pause = RETRY_PAUSES[len(failed) - 1]
    # A failure may lie ahead of a clock that was set back: nothing waits longer than two pauses.
    if abs(now - failed[-1]) >= pause:
        return RetryDecision(due=True)
    return RetryDecision(due=False, at=failed[-1] + pause)
