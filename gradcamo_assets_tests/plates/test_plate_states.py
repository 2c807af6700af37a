"""The state of each plate in the inbox, a pure function tested in every situation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.plates import InboxConfig, plate_states
from gradcamo_assets.plates.failures import Attempt, Failures
from gradcamo_assets.plates.inbox import FolderSnapshot

BOX = Path("inbox")
NOW = datetime(2026, 3, 5, 2, tzinfo=UTC)
SETTLED = NOW.timestamp() - 1000
AHEAD = FolderSnapshot("1", NOW.timestamp() + 3600)
DEFAULT = InboxConfig()


def states(
    found: dict[Path, FolderSnapshot | None], known: dict | None = None, now: datetime = NOW, **more: dict
) -> list:
    """(name, state) of each folder."""
    return [(s.name, s.state) for s in all_states(found, known, now, **more)]


def all_states(
    found: dict[Path, FolderSnapshot | None], known: dict | None = None, now: datetime = NOW, **more: dict
) -> list:
    settings = more.get("settings", DEFAULT)
    failures, before, ingesting = (more.get(name, {}) for name in ("failures", "before", "ingesting"))
    return plate_states(found, known or {}, failures, before, now, settings, ingesting)


def test_settled_plates_are_ready_known_ones_are_not() -> None:
    found = {
        BOX / "a.zarr": FolderSnapshot("1", SETTLED),
        BOX / "b.ome.zarr": FolderSnapshot("2", SETTLED),
        BOX / "c": FolderSnapshot("3", SETTLED),
    }
    assert states(found, {"b": "2"}) == [("a", "ready"), ("b", "known"), ("c", "ready")]
    assert states(found, {"b": "1"})[1] == ("b", "changed")


def test_two_folders_of_one_name_are_both_held_back_by_name() -> None:
    found = {
        BOX / "a.zarr": FolderSnapshot("1"),
        BOX / "a.ome.zarr": FolderSnapshot("2"),
        BOX / "b.zarr": FolderSnapshot("3"),
    }
    first, second, third = all_states(found)
    assert first.state == second.state == "unreadable" and third.state == "ready"
    assert "a.zarr" in first.reason and "a.ome.zarr" in second.reason


def test_a_folder_that_is_no_plate_is_listed_and_blocks_no_plate() -> None:
    notes, plate = all_states({BOX / "a": None, BOX / "a.zarr": FolderSnapshot("1", SETTLED)})
    assert (notes.state, plate.state) == ("unreadable", "ready") and "unknown format" in notes.reason


def test_an_unusable_name_is_unreadable() -> None:
    (found,) = all_states({BOX / "my plate;.zarr": FolderSnapshot("1", SETTLED)})
    assert found.state == "unreadable" and "not a valid plate name" in found.reason


@pytest.mark.parametrize(
    ("snapshot", "before", "settings", "state"),
    [
        (FolderSnapshot("1", NOW.timestamp() - 119), {}, DEFAULT, "copying"),
        (FolderSnapshot("1", NOW.timestamp() - 120), {}, DEFAULT, "ready"),
        (FolderSnapshot("1", NOW.timestamp() + 60), {}, DEFAULT, "copying"),
        (AHEAD, {"a": (AHEAD.token, NOW.timestamp() - 120)}, DEFAULT, "ready"),
        (AHEAD, {"a": (AHEAD.token, NOW.timestamp() - 30)}, DEFAULT, "copying"),
        (FolderSnapshot("1", NOW.timestamp()), {"a": (FolderSnapshot("1", SETTLED).token, 0.0)}, DEFAULT, "copying"),
        (FolderSnapshot("1", NOW.timestamp()), {}, InboxConfig(settle_seconds=0), "ready"),
        (FolderSnapshot("", float("inf")), {}, DEFAULT, "copying"),
        (
            FolderSnapshot("1", SETTLED),
            {"a": (FolderSnapshot("1", SETTLED).token, 0.0)},
            InboxConfig(marker="done"),
            "copying",
        ),
        (FolderSnapshot("1", NOW.timestamp(), marked=True), {}, InboxConfig(marker="done"), "ready"),
    ],
)
def test_when_a_plate_counts_as_complete(
    snapshot: FolderSnapshot, before: dict, settings: InboxConfig, state: str
) -> None:
    assert states({BOX / "a.zarr": snapshot}, before=before, settings=settings) == [("a", state)]


def test_settings_are_checked() -> None:
    for wrong in ({"marker": "../done"}, {"marker": ""}, {"settle_seconds": -1}, {"settle_seconds": "soon"}):
        with pytest.raises(GradcamoError):
            InboxConfig(**wrong)  # type: ignore[arg-type]


def failed(*hours: float, signature: str = "1", reason: str | None = "no fields") -> dict[str, Failures]:
    """Failures of plate a, so many hours before now."""
    return {"a": Failures(signature, tuple(Attempt(NOW - timedelta(hours=h), reason) for h in hours))}


@pytest.mark.parametrize(
    ("failures", "state"),
    [
        (failed(0.1), "waiting"),
        (failed(0.2), "ready"),
        (failed(4, 0.9), "waiting"),
        (failed(4, 1.1), "ready"),
        (failed(80, 79, 78, 23), "waiting"),
        (failed(80, 79, 78, 25), "ready"),
        (failed(80, 79, 78, 77, 76), "quarantined"),
        (failed(900, 800, 700, 600, 500), "quarantined"),
        (failed(80, 79, 78, 77, 76, signature="2"), "ready"),
        (failed(-9000), "ready"),
        (failed(), "ready"),
    ],
)
def test_failures_hold_a_plate_back_until_it_changes(failures: dict, state: str) -> None:
    (found,) = all_states({BOX / "a.zarr": FolderSnapshot("1", SETTLED)}, failures=failures)
    assert found.state == state
    assert ("no fields" in found.reason) == (state != "ready")
    assert ("--retry a" in found.reason) == (state == "quarantined")


def test_a_killed_attempt_counts_and_a_running_one_is_shown() -> None:
    found = {BOX / "a.zarr": FolderSnapshot("1", SETTLED)}
    killed = {"a": Failures("1", (*failed(9, 8, 7, 6)["a"].attempts, Attempt(NOW, None)))}
    (given_up,) = all_states(found, failures=killed)
    assert given_up.state == "quarantined" and "stopped without an error message" in given_up.reason
    for known in ({}, {"a": "1"}, {"a": "0"}):
        (going_on,) = all_states(found, known, failures=killed, ingesting={"a": (3, 8)})
        assert going_on.state == "ingesting"
        assert going_on.reason == "a run is ingesting it since 2026-03-05 02:00 UTC, 3 of 8 fields are done"
    (unannounced,) = all_states(found, ingesting={"a": (0, 0)})
    assert (unannounced.state, unannounced.reason) == ("ingesting", "a run is ingesting it")


FOLDERS = [BOX / name for name in ("a", "a.zarr", "b.zarr", "b.ome.zarr", "c", " d", "e f.zarr")]
NAMES = st.sampled_from(["a", "b", "c", "e_f"])
SIGNATURES = st.sampled_from(["", "1", "2"])
AGES = st.floats(-100, 1e6)
SNAPSHOTS = st.none() | st.builds(
    lambda signature, age, marked, problem: FolderSnapshot(signature, NOW.timestamp() - age, marked, problem),
    SIGNATURES, AGES, st.booleans(), st.none() | st.just("links."),
)  # fmt: skip
ATTEMPTS = st.builds(lambda h, r: Attempt(NOW - timedelta(hours=h), r), st.floats(0, 99), st.none() | st.just("bad"))
WORLD = {
    "found": st.dictionaries(st.sampled_from(FOLDERS), SNAPSHOTS),
    "known": st.dictionaries(NAMES, SIGNATURES),
    "failures": st.dictionaries(
        NAMES, st.builds(lambda s, a: Failures(s, tuple(sorted(a, key=lambda x: x.at))), SIGNATURES, st.lists(ATTEMPTS))
    ),
    "settings": st.builds(InboxConfig, st.floats(0, 1000), st.none() | st.just("done")),
    "ingesting": st.dictionaries(NAMES, st.just((0, 9))),
}


@given(**WORLD, random=st.randoms(use_true_random=False))
def test_every_folder_has_one_state_whatever_the_order(
    found: dict, known: dict, failures: dict, settings: InboxConfig, ingesting: dict, random: object
) -> None:
    result = plate_states(found, known, failures, {}, NOW, settings, ingesting)
    assert sorted(state.path for state in result) == sorted(found)
    ready = [state for state in result if state.state == "ready"]
    assert len({state.name for state in ready}) == len(ready)
    for state in ready:
        snapshot = found[state.path]
        assert snapshot.problem is None and state.name not in ingesting
        if state.name in known:
            # Its record exists, but the attempt that wrote it did not finish.
            assert known[state.name] == failures[state.name].signature == snapshot.signature
            assert failures[state.name].attempts
    assert all(state.reason for state in result if state.state not in ("ready", "known"))
    shuffled = list(found.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plate_states(dict(shuffled), known, failures, {}, NOW, settings, ingesting) == result


@given(found=WORLD["found"], settings=WORLD["settings"], missed=st.sets(st.integers(0, 5)))
def test_a_missed_night_changes_nothing(found: dict, settings: InboxConfig, missed: set[int]) -> None:
    def after(nights: list[int]) -> dict[str, str]:
        known: dict[str, str] = {}
        for night in nights:
            for state in plate_states(found, known, {}, {}, NOW + timedelta(days=night), settings):
                if state.state == "ready":
                    known[state.name] = found[state.path].signature
        return known

    assert after([night for night in range(6) if night not in missed] + [6]) == after(list(range(7)))


def test_a_plate_whose_rows_were_not_written_is_tried_again() -> None:
    found = {BOX / "a.zarr": FolderSnapshot("1", SETTLED)}
    failures = {"a": Failures("1", (Attempt(NOW - timedelta(hours=2), "the lake is full"),))}
    assert states(found, known={"a": "1"}, failures=failures) == [("a", "ready")]
    assert states(found, known={"a": "1"}, failures={"a": Failures("1", retries=1)}) == [("a", "ready")]
    assert states(found, known={"a": "0"}, failures=failures) == [("a", "changed")]
