"""What the inbox holds and what of it is to be ingested."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.common.errors import GradcamoError, PlateError
from gradcamo_assets.plates import (
    InboxSettings,
    inbox,
    ingest_plate,
    known_plates,
    list_inbox,
    plate_states,
)
from gradcamo_assets.plates.failures import Attempt, Failures
from gradcamo_assets.plates.inbox import Look
from gradcamo_assets.plates.signature import folder_times

BOX = Path("inbox")
NOW = datetime(2026, 3, 5, 2, tzinfo=UTC)
SETTLED = NOW.timestamp() - 1000
DEFAULT = InboxSettings()


def states(found: dict[Path, Look | None], known: dict | None = None, now: datetime = NOW, **more: dict) -> list:
    """(name, state) of each folder."""
    return [(s.name, s.state) for s in every(found, known, now, **more)]


def every(found: dict[Path, Look | None], known: dict | None = None, now: datetime = NOW, **more: dict) -> list:
    return plate_states(
        found, known or {}, more.get("failures", {}), more.get("before", {}), now, more.get("settings", DEFAULT)
    )


def state_in(folder: Path, known: dict | None = None, settings: InboxSettings = DEFAULT, days: int = 1) -> dict:
    """State and reason by name of what really lies in a folder, as it will be seen some days from now."""
    later = datetime.now(UTC) + timedelta(days=days)
    found = list_inbox(folder, known or {}, settings)
    return {s.name: (s.state, s.reason) for s in plate_states(found, known or {}, {}, {}, later, settings)}


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
        (Look("1", NOW.timestamp()), {"a": Look("1", NOW.timestamp()).token}, DEFAULT, "ready"),
        (Look("1", NOW.timestamp()), {"a": Look("1", SETTLED).token}, DEFAULT, "copying"),
        (Look("1", NOW.timestamp()), {}, InboxSettings(settle_seconds=0), "ready"),
        (Look("", float("inf")), {"a": Look("", float("inf")).token}, DEFAULT, "copying"),
        (Look("1", SETTLED), {"a": Look("1", SETTLED).token}, InboxSettings(marker="done"), "copying"),
        (Look("1", NOW.timestamp(), marked=True), {}, InboxSettings(marker="done"), "ready"),
    ],
)
def test_when_a_plate_counts_as_complete(look: Look, before: dict, settings: InboxSettings, state: str) -> None:
    assert states({BOX / "a.zarr": look}, before=before, settings=settings) == [("a", state)]


def test_settings_are_checked() -> None:
    for wrong in ({"marker": "../done"}, {"marker": ""}, {"settle_seconds": -1}, {"settle_seconds": "soon"}):
        with pytest.raises(GradcamoError):
            InboxSettings(**wrong)  # type: ignore[arg-type]


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
    "settings": st.builds(InboxSettings, st.floats(0, 1000), st.none() | st.just("done")),
}


@given(**WORLD, random=st.randoms(use_true_random=False))
def test_every_folder_has_one_state_whatever_the_order(
    found: dict, known: dict, failures: dict, settings: InboxSettings, random: object
) -> None:
    result = plate_states(found, known, failures, {}, NOW, settings)
    assert sorted(state.path for state in result) == sorted(found)
    ready = [state for state in result if state.state == "ready"]
    assert len({state.name for state in ready}) == len(ready)
    for state in ready:
        assert found[state.path].problem is None
        assert state.name not in known
    assert all(state.reason for state in result if state.state not in ("ready", "known"))
    shuffled = list(found.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plate_states(dict(shuffled), known, failures, {}, NOW, settings) == result


@given(found=WORLD["found"], settings=WORLD["settings"], missed=st.sets(st.integers(0, 5)))
def test_a_missed_night_changes_nothing(found: dict, settings: InboxSettings, missed: set[int]) -> None:
    def after(nights: list[int]) -> dict[str, dict]:
        known: dict[str, dict] = {}
        for night in nights:
            for state in plate_states(found, known, {}, {}, NOW + timedelta(days=night), settings):
                if state.state == "ready":
                    known[state.name] = {"signature": found[state.path].signature}
        return known

    assert after([night for night in range(6) if night not in missed] + [6]) == after(list(range(7)))


def test_a_missing_inbox_is_no_empty_one(tmp_path: Path) -> None:
    assert list_inbox(tmp_path, {}) == {}
    with pytest.raises(PlateError, match="cannot be listed"):
        list_inbox(tmp_path / "gone", {})


def test_plates_are_found_by_ending_by_metadata_or_by_their_format(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.parent
    for name in ("notes", ".tmp.zarr", "Platemaps", "metadata", "old", "export"):
        (folder / name).mkdir()
    (folder / "old" / ".zattrs").write_text('{"plate": {}}')
    monkeypatch.setattr(inbox, "format_of", lambda path: "MetaXpress" if path.name == "export" else None)
    found = state_in(folder)
    assert {name: state for name, (state, _) in found.items()} == {
        "export": "ready", "notes": "unreadable", "old": "ready", "tiny": "ready",
    }  # fmt: skip
    tiny.rename(folder / "bare")
    assert state_in(folder)["bare"][0] == "ready"


def test_only_one_plate_is_looked_at_on_request(tiny: Path) -> None:
    shutil.copytree(tiny, tiny.with_name("other.zarr"))
    shutil.copytree(tiny, tiny.with_name("tiny.ome.zarr"))
    assert sorted(path.name for path in list_inbox(tiny.parent, {}, only="tiny")) == ["tiny.ome.zarr", "tiny.zarr"]


def test_copying_with_preserved_times_is_seen(tiny: Path) -> None:
    for path in (tiny, *tiny.rglob("*"), tiny.with_name("tiny.csv")):
        os.utime(path, (0, 0))
    assert state_in(tiny.parent, days=0)["tiny"][0] == "copying"
    assert state_in(tiny.parent)["tiny"][0] == "ready"


def test_the_table_beside_a_plate_belongs_to_it(tiny: Path) -> None:
    (before,) = list_inbox(tiny.parent, {}).values()
    tiny.with_name("tiny.csv").touch()
    (after,) = list_inbox(tiny.parent, {}).values()
    assert before and after and before.newest < after.newest and before.signature != after.signature


def test_a_marker_alone_decides(tiny: Path) -> None:
    settings = InboxSettings(marker="complete.txt")
    state, reason = state_in(tiny.parent, settings=settings)["tiny"]
    assert state == "copying" and "complete.txt" in reason
    for marker in (
        tiny / "complete.txt",
        tiny.with_name("tiny.complete.txt"),
        tiny.with_name("tiny.zarr.complete.txt"),
    ):
        marker.touch()
        assert state_in(tiny.parent, settings=settings, days=0)["tiny"][0] == "ready"
        marker.unlink()


def test_the_cheap_look_agrees_with_the_deep_one(tiny: Path, tmp_path: Path) -> None:
    plates, folder = tmp_path / "plates", tiny.parent
    ingest_plate(tiny, plates)
    known = known_plates(plates)

    def both() -> tuple[str, str]:
        full = plate_states(list_inbox(folder, {}), known, {}, {}, NOW, DEFAULT)[0].state
        return state_in(folder, known)["tiny"][0], full

    assert both() == ("known", "known")
    chunk = next(path for path in (tiny / "A" / "01" / "0" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"x")
    assert both() == ("known", "changed"), "only the deep look sees pixels change"
    (tiny / "A" / "01" / "7").mkdir()
    assert both() == ("changed", "changed"), "both see fields come"
    shutil.rmtree(tiny)
    shutil.copytree(plates / "tiny.zarr", tiny)
    assert both() == ("known", "known"), "put back as it was, by times"
    tiny.with_name("tiny.csv").write_text("well\n")
    assert both() == ("changed", "changed")


def test_records_of_earlier_versions_are_known_by_a_deep_look(tiny: Path, tmp_path: Path) -> None:
    ingest_plate(tiny, tmp_path / "plates")
    known = known_plates(tmp_path / "plates")
    del known["tiny"]["folders"]
    assert state_in(tiny.parent, known)["tiny"][0] == "known"


def test_known_plates_are_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {}
    for number in range(200):
        plate = tmp_path / f"p{number}.zarr"
        for folder in ("A/01", "A/02"):
            (plate / folder).mkdir(parents=True)
            for file in range(15):
                (plate / folder / f"{file}.tif").touch()
        known[f"p{number}"] = {"signature": "1", "folders": folder_times(plate)}
    assert list(known["p0"]["folders"]) == [".", "A", "A/01", "A/02"]
    (tmp_path / "p7.zarr" / "A" / "02" / "new.tif").touch()
    listed = []

    def counted(real: Callable) -> Callable:
        def listing(folder: str | Path = ".") -> object:
            listed.append(Path(folder))
            return real(folder)

        return listing

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    found = list_inbox(tmp_path, known)
    new = tmp_path / "p7.zarr"
    assert {path for path in listed if path != tmp_path} == {new, new / "A", new / "A" / "01", new / "A" / "02"}
    result = plate_states(found, known, {}, {}, NOW, DEFAULT)
    assert [state.name for state in result if state.state != "known"] == ["p7"]


def test_no_more_folders_are_recorded_than_are_asked_for_cheaply(tmp_path: Path) -> None:
    for number in range(2100):
        (tmp_path / "p" / f"{number:04}").mkdir(parents=True)
    assert len(folder_times(tmp_path / "p")) == 2000


def test_one_plate_out_of_reach_does_not_hide_the_others(tiny: Path) -> None:
    tiny.with_name("linked.zarr").symlink_to(tiny)
    found = state_in(tiny.parent)
    assert found["tiny"][0] == "ready"
    assert found["linked"][0] == "unreadable" and "symbolic link" in found["linked"][1]


def test_files_that_vanish_under_the_look_mean_copying(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(folder: str | Path = ".") -> object:
        if str(folder).endswith("tiny.zarr/A"):
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert state_in(tiny.parent)["tiny"] == ("copying", "it is changing at this moment")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can list any folder")
def test_a_folder_without_permission_is_unreadable(tiny: Path) -> None:
    (tiny / "A").chmod(0)
    try:
        assert state_in(tiny.parent)["tiny"][0] == "unreadable"
    finally:
        (tiny / "A").chmod(0o755)
