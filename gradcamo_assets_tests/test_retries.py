"""Test the rule that schedules retries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.retries import RetryDecision, decide_retry

START = datetime(2026, 3, 1, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(("failures", "minutes"), [(1, 10), (2, 60), (3, 360), (4, 1440)])
def test_pauses_grow_from_ten_minutes_to_a_day(failures: int, minutes: int) -> None:
    failed = [START - timedelta(days=3)] * (failures - 1) + [START]
    at = START + minutes * MINUTE
    assert decide_retry(failed, at - timedelta(seconds=1)) == RetryDecision(due=False, at=at)
    assert decide_retry(failed, at).due and not decide_retry(failed, at).given_up


def test_without_failures_the_attempt_is_due_and_the_fifth_failure_is_the_last() -> None:
    assert decide_retry([], START).due
    for years in (-10, 0, 10):
        assert decide_retry([START] * 5, START + timedelta(days=365 * years)).given_up


def test_all_five_attempts_are_made_within_two_days() -> None:
    now, failed = START, []
    while not (decision := decide_retry(failed, now)).given_up:
        if decision.due:
            failed.append(now)
        now += MINUTE
    assert len(failed) == 5 and failed[-1] - START == timedelta(hours=31, minutes=10)


@given(st.lists(st.floats(-1e5, 1e5), max_size=4))
def test_no_retry_waits_longer_than_two_days_whatever_the_clock(hours: list[float]) -> None:
    """The clock may have been wrong by years at each failure; from now on it is right."""
    failed = [START + timedelta(hours=hour) for hour in hours]
    days = (START + timedelta(days=day) for day in range(3))
    assert any(decide_retry(failed, day).due for day in days)
