"""Decide when a failed plate, field or score is retried, and when retries stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

RETRY_PAUSES = (timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))
"""Pause after the first failure, the second, and so on. The next failure is the last."""

MAX_ATTEMPTS = len(RETRY_PAUSES) + 1


@dataclass(frozen=True)
class RetryDecision:
    """Decision about the next attempt.

    Attributes:
        due: the next attempt is due now.
        at: time of the next attempt if it is not due yet; None after the last attempt.
    """

    due: bool
    at: datetime | None = None

    @property
    def given_up(self) -> bool:
        """Whether no further attempt is made automatically."""
        return not self.due and self.at is None


def decide_retry(failed: Sequence[datetime], now: datetime) -> RetryDecision:
    """Decide when to make the next attempt.

    Args:
        failed: end times of the failed attempts, the latest last. Like ``now``, all have a time zone or none has.
    """
    if not failed:
        return RetryDecision(due=True)
    if len(failed) >= MAX_ATTEMPTS:
        return RetryDecision(due=False)
    pause = RETRY_PAUSES[len(failed) - 1]
    # After the clock is set back a failure may lie in the future. abs() limits the wait to two pauses.
    if abs(now - failed[-1]) >= pause:
        return RetryDecision(due=True)
    return RetryDecision(due=False, at=failed[-1] + pause)
