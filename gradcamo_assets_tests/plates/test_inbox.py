"""How the inbox is looked at: what is a plate, whether it is complete, and what is not walked again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.plates import InboxConfig, inbox, ingest_plate, known_plates, list_inbox, plate_states
from gradcamo_assets.plates.companions import folder_times

NOW = datetime(2026, 3, 5, 2, tzinfo=UTC)
DEFAULT = InboxConfig()


def state_in(folder: Path, known: dict | None = None, settings: InboxConfig = DEFAULT, days: int = 1) -> dict:
    """State and reason by name of what really lies in a folder, as it will be seen some days from now."""
    later = datetime.now(UTC) + timedelta(days=days)
    found = list_inbox(folder, known or {}, settings)
    return {s.name: (s.state, s.reason) for s in plate_states(found, known or {}, {}, {}, later, settings)}


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
    settings = InboxConfig(marker="complete.txt")
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
