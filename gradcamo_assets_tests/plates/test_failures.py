"""Failed attempts are counted by plate and signature, through errors and kills."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import ingest_plate, list_known_plates
from gradcamo_assets.plates.failures import forget_failures, read_failures, recorded_attempt

NIGHT = datetime(2026, 3, 1, 2, tzinfo=UTC)


def fail(plates: Path, night: int = 0, signature: str = "1", error: BaseException | None = None) -> None:
    """One attempt at plate a that ends with an error."""
    error = error or PlateError("no fields", "Export it again.", plate="a")
    with (
        pytest.raises(type(error)),
        recorded_attempt(plates, "a", signature, NIGHT + timedelta(days=night)),
    ):
        raise error


def test_failures_of_one_signature_add_up_and_success_forgets_them(tmp_path: Path) -> None:
    assert read_failures(tmp_path) == {}
    for night in range(4):
        fail(tmp_path, night)
    found = read_failures(tmp_path)["a"]
    then = NIGHT + timedelta(days=3)
    assert len(found.attempts) == 4 and found.decide_retry(then).at == then + timedelta(days=1)
    assert found.last.reason == "plate a: no fields. Export it again."
    fail(tmp_path, 4)
    assert read_failures(tmp_path)["a"].decide_retry(then).given_up
    fail(tmp_path, 5, signature="2")
    assert len(read_failures(tmp_path)["a"].attempts) == 1, "a changed plate starts again"
    with recorded_attempt(tmp_path, "a", "2"):
        assert len(read_failures(tmp_path)["a"].attempts) == 2, "an attempt counts from its beginning"
    assert read_failures(tmp_path) == {}


def test_a_concurrent_attempt_is_rejected_and_does_not_count(tmp_path: Path) -> None:
    def attempt_concurrently() -> None:
        with recorded_attempt(tmp_path, "a", "1"):
            pass

    with recorded_attempt(tmp_path, "a", "1", NIGHT), ThreadPoolExecutor() as other:
        before = read_failures(tmp_path)
        with pytest.raises(PlateError, match="another run is ingesting it"):
            other.submit(attempt_concurrently).result()
        assert read_failures(tmp_path) == before and before["a"].last.at == NIGHT


def test_recorded_reasons_name_no_path_above_the_home(tmp_path: Path) -> None:
    source = tmp_path / "inbox" / "a.zarr"
    fail(tmp_path / "plates", error=PlateError("no fields", "Export it again.", path=source))
    assert read_failures(tmp_path / "plates")["a"].last.reason == "file inbox/a.zarr: no fields. Export it again."


def test_any_error_is_recorded_with_type_and_message_and_a_kill_too(tmp_path: Path) -> None:
    fail(tmp_path, error=ZeroDivisionError("by\nzero"))
    assert read_failures(tmp_path)["a"].last.reason == "ZeroDivisionError: by zero"
    fail(tmp_path, error=KeyboardInterrupt())
    found = read_failures(tmp_path)["a"]
    assert len(found.attempts) == 2 and found.last.reason is None
    assert "stopped without an error message" in str(found.last)
    assert found.decide_retry(NIGHT).at == NIGHT + timedelta(hours=1), "it counts as a failure"


def test_forgotten_failures_are_counted_so_that_run_keys_differ(tmp_path: Path) -> None:
    fail(tmp_path)
    forget_failures(tmp_path, "a")
    found = read_failures(tmp_path)["a"]
    assert found.attempts == () and found.retries == 1
    forget_failures(tmp_path, "b")
    assert set(read_failures(tmp_path)) == {"a"}


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    fail(tmp_path)
    (tmp_path / "failures" / "a.json").write_text('{"signature": "1", "attempts": [{"at": 3}]}')
    assert read_failures(tmp_path) == {}
    fail(tmp_path)
    assert len(read_failures(tmp_path)["a"].attempts) == 1


def test_failure_files_are_not_plate_records(tmp_path: Path, tiny: Path) -> None:
    fail(tmp_path)
    ingest_plate(tiny, tmp_path)
    assert set(list_known_plates(tmp_path)) == {"tiny"} and set(read_failures(tmp_path)) == {"a"}
    with pytest.raises(PlateError):
        forget_failures(tmp_path, "../a")
