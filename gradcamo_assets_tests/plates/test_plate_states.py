"""What is to become of what is found in the inbox: a pure function, asked in every situation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.common.errors import GradcamoError
from gradcamo_assets.plates import InboxConfig, plate_states
from gradcamo_assets.plates.failures import Attempt, Failures
from gradcamo_assets.plates.inbox import Look

BOX = Path("inbox")
NOW = datetime(2026, 3, 5, 2, tzinfo=UTC)
SETTLED = NOW.timestamp() - 1000
AHEAD = Look("1", NOW.timestamp() + 3600)
DEFAULT = InboxConfig()


def states(found: dict[Path, Look | None], known: dict | None = None, now: datetime = NOW, **more: dict) -> list:
    """(name, state) of each folder."""
    return [(s.name, s.state) for s in every(found, known, now, **more)]


def every(found: dict[Path, Look | None], known: dict | None = None, now: datetime = NOW, **more: dict) -> list:
    return plate_states(
        found, known or {}, more.get("failures", {}), more.get("before", {}), now, more.get("settings", DEFAULT)
    )


def test_settled_plates_are_ready_known_ones_are_not() -> None:
    found = {BOX / "a.zarr": Look("1", SETTLED), BOX / "b.ome.zarr": Look("2", SETTLED), BOX / "c": Look("3", SETTLED)}
    assert states(found, {"b": {"signature": "2"}}) == [("a", "ready"), ("b", "known"), ("c", "ready")]
    assert states(found, {"b": {"signature": "1"}})[1] == ("b", "changed")


def test_two_folders_of_one_name_are_both_held_back_by_name() -> None:
    found = {BOX / "a.zarr": Look("1"), BOX / "a.ome.zarr": Look("2"), BOX / "b.zarr": Look("3")}
    first, second, third = every(found)
    assert first.state == second.state == "unreadable" and third.state == "ready"
    assert "a.zarr" in first.reason and "a.ome.zarr" in second.reason


def test_a_folder_that_is_no_plate_is_named_and_blocks_none() -> None:
    notes, plate = every({BOX / "a": None, BOX / "a.zarr": Look("1", SETTLED)})
    assert (notes.state, plate.state) == ("unreadable", "ready") and "no format that is read" in notes.reason


def test_an_unusable_name_is_unreadable() -> None:
    (found,) = every({BOX / "my plate;.zarr": Look("1", SETTLED)})
    assert found.state == "unreadable" and "no usable plate name" in found.reason


@pytest.mark.parametrize(
    ("look", "before", "settings", "state"),
    [
        (Look("1", NOW.timestamp() - 119), {}, DEFAULT, "copying"),
        (Look("1", NOW.timestamp() - 120), {}, DEFAULT, "ready"),
        (Look("1", NOW.timestamp() + 60), {}, DEFAULT, "copying"),
        (AHEAD, {"a": (AHEAD.token, NOW.timestamp() - 120)}, DEFAULT, "ready"),
        (AHEAD, {"a": (AHEAD.token, NOW.timestamp() - 30)}, DEFAULT, "copying"),
        (Look("1", NOW.timestamp()), {"a": (Look("1", SETTLED).token, 0.0)}, DEFAULT, "copying"),
        (Look("1", NOW.timestamp()), {}, InboxConfig(settle_seconds=0), "ready"),
        (Look("", float("inf")), {}, DEFAULT, "copying"),
        (Look("1", SETTLED), {"a": (Look("1", SETTLED).token, 0.0)}, InboxConfig(marker="done"), "copying"),
        (Look("1", NOW.timestamp(), marked=True), {}, InboxConfig(marker="done"), "ready"),
    ],
)
def test_when_a_plate_counts_as_complete(look: Look, before: dict, settings: InboxConfig, state: str) -> None:
    assert states({BOX / "a.zarr": look}, before=before, settings=settings) == [("a", state)]


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
        (failed(0.9), "waiting"),
        (failed(1.1), "ready"),
        (failed(4, 1.9), "waiting"),
        (failed(4, 2.1), "ready"),
        (failed(20, 19, 18, 17, 16, 23.9), "waiting"),
        (failed(48, 24, 1), "quarantined"),
        (failed(500, 400, 300), "quarantined"),
        (failed(48, 24, 1, signature="2"), "ready"),
        (failed(48, 47, 46), "ready"),
        (failed(), "ready"),
    ],
)
def test_failures_hold_a_plate_back_until_it_changes(failures: dict, state: str) -> None:
    (found,) = every({BOX / "a.zarr": Look("1", SETTLED)}, failures=failures)
    assert found.state == state
    assert ("no fields" in found.reason) == (state != "ready")
    assert ("--retry a" in found.reason) == (state == "quarantined")


def test_an_attempt_that_goes_on_is_no_third_night_yet() -> None:
    going_on = failed(48, 24)["a"]
    going_on = Failures("1", (*going_on.attempts, Attempt(NOW, None)))
    (found,) = every({BOX / "a.zarr": Look("1", SETTLED)}, failures={"a": going_on})
    assert found.state == "waiting" and "has not ended" in found.reason
    assert states({BOX / "a.zarr": Look("1", SETTLED)}, now=NOW + timedelta(days=1), failures={"a": going_on}) == [
        ("a", "quarantined")
    ]


FOLDERS = [BOX / name for name in ("a", "a.zarr", "b.zarr", "b.ome.zarr", "c", " d", "e f.zarr")]
NAMES = st.sampled_from(["a", "b", "c", "e_f"])
SIGNATURES = st.sampled_from(["", "1", "2"])
AGES = st.floats(-100, 1e6)
LOOKS = st.none() | st.builds(
    lambda signature, age, marked, problem: Look(signature, NOW.timestamp() - age, marked, problem),
    SIGNATURES, AGES, st.booleans(), st.none() | st.just("links."),
)  # fmt: skip
ATTEMPTS = st.builds(lambda h, r: Attempt(NOW - timedelta(hours=h), r), st.floats(0, 99), st.none() | st.just("bad"))
WORLD = {
    "found": st.dictionaries(st.sampled_from(FOLDERS), LOOKS),
    "known": st.dictionaries(NAMES, st.fixed_dictionaries({"signature": SIGNATURES})),
    "failures": st.dictionaries(
        NAMES, st.builds(lambda s, a: Failures(s, tuple(sorted(a, key=lambda x: x.at))), SIGNATURES, st.lists(ATTEMPTS))
    ),
    "settings": st.builds(InboxConfig, st.floats(0, 1000), st.none() | st.just("done")),
}


@given(**WORLD, random=st.randoms(use_true_random=False))
def test_every_folder_has_one_state_whatever_the_order(
    found: dict, known: dict, failures: dict, settings: InboxConfig, random: object
) -> None:
    result = plate_states(found, known, failures, {}, NOW, settings)
    assert sorted(state.path for state in result) == sorted(found)
    ready = [state for state in result if state.state == "ready"]
    assert len({state.name for state in ready}) == len(ready)
    for state in ready:
        look = found[state.path]
        assert look.problem is None
        if state.name in known:
            # Its record is there, but the attempt that wrote it did not come to its end.
            assert known[state.name]["signature"] == failures[state.name].signature == look.signature
            assert failures[state.name].attempts
    assert all(state.reason for state in result if state.state not in ("ready", "known"))
    shuffled = list(found.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plate_states(dict(shuffled), known, failures, {}, NOW, settings) == result


@given(found=WORLD["found"], settings=WORLD["settings"], missed=st.sets(st.integers(0, 5)))
def test_a_missed_night_changes_nothing(found: dict, settings: InboxConfig, missed: set[int]) -> None:
    def after(nights: list[int]) -> dict[str, dict]:
        known: dict[str, dict] = {}
        for night in nights:
            for state in plate_states(found, known, {}, {}, NOW + timedelta(days=night), settings):
                if state.state == "ready":
                    known[state.name] = {"signature": found[state.path].signature}
        return known

    assert after([night for night in range(6) if night not in missed] + [6]) == after(list(range(7)))


def test_a_plate_whose_rows_were_not_written_is_tried_again() -> None:
    found = {BOX / "a.zarr": Look("1", SETTLED)}
    failures = {"a": Failures("1", (Attempt(NOW - timedelta(hours=2), "the lake is full"),))}
    assert states(found, known={"a": {"signature": "1"}}, failures=failures) == [("a", "ready")]
    assert states(found, known={"a": {"signature": "0"}}, failures=failures) == [("a", "changed")]
