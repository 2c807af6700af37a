"""Listing the inbox: what counts as a plate, when it is complete, and which plates are not scanned again."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import InboxConfig, inbox, ingest_plate, list_inbox, list_known_plates, plate_states
from gradcamo_assets.plates.companions import compute_signature
from gradcamo_assets.plates.inbox import Depth

DEFAULT = InboxConfig()


def state_in(
    folder: Path, known: dict | None = None, settings: InboxConfig = DEFAULT, days: int = 1, depth: Depth = "new"
) -> dict:
    """State and reason by name of the plates in a folder, as decided some days from now."""
    later = datetime.now(UTC) + timedelta(days=days)
    found = list_inbox(folder, settings, known, depth)
    return {s.name: (s.state, s.reason) for s in plate_states(found, known or {}, {}, {}, later, settings)}


def test_a_missing_inbox_does_not_count_as_empty(tmp_path: Path) -> None:
    assert list_inbox(tmp_path) == {}
    with pytest.raises(PlateError, match="cannot be listed"):
        list_inbox(tmp_path / "gone")


def test_plates_are_found_by_ending_by_metadata_or_by_their_format(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.parent
    for name in ("notes", ".tmp.zarr", "Platemaps", "metadata", "old", "export"):
        (folder / name).mkdir()
    (folder / "old" / ".zattrs").write_text('{"plate": {}}')
    monkeypatch.setattr(inbox, "detect_format", lambda path: "MetaXpress" if path.name == "export" else None)
    found = state_in(folder)
    assert {name: state for name, (state, _) in found.items()} == {
        "export": "ready", "notes": "unreadable", "old": "ready", "tiny": "ready",
    }  # fmt: skip
    tiny.rename(folder / "bare")
    assert state_in(folder)["bare"][0] == "ready"


def test_only_the_requested_plate_is_checked(tiny: Path) -> None:
    shutil.copytree(tiny, tiny.with_name("other.zarr"))
    shutil.copytree(tiny, tiny.with_name("tiny.ome.zarr"))
    assert sorted(path.name for path in list_inbox(tiny.parent, only="tiny")) == ["tiny.ome.zarr", "tiny.zarr"]


def test_copying_with_preserved_times_is_seen(tiny: Path) -> None:
    for path in (tiny, *tiny.rglob("*"), tiny.with_name("tiny.csv")):
        os.utime(path, (0, 0))
    assert state_in(tiny.parent, days=0)["tiny"][0] == "copying"
    assert state_in(tiny.parent)["tiny"][0] == "ready"


def test_the_table_beside_a_plate_belongs_to_it(tiny: Path) -> None:
    (before,) = list_inbox(tiny.parent).values()
    table = tiny.with_name("tiny.csv")
    table.touch()
    (touched,) = list_inbox(tiny.parent).values()
    assert before and touched and before.newest < touched.newest and before.signature == touched.signature
    table.write_text(table.read_text()[::-1])
    (written,) = list_inbox(tiny.parent).values()
    assert written and written.signature != before.signature, "of the same size"


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


def test_each_depth_detects_its_kind_of_change(tiny: Path, tmp_path: Path) -> None:
    plates, folder = tmp_path / "plates", tiny.parent
    shutil.copytree(folder, tmp_path / "as it was")
    ingest_plate(tiny, plates)
    known = list_known_plates(plates)

    def states() -> list[str]:
        return [state_in(folder, known, depth=depth)["tiny"][0] for depth in ("new", "names", "contents")]

    def restore() -> None:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "as it was", folder, copy_function=shutil.copyfile)
        assert states() == ["known"] * 3, "with other modification times"

    restore()
    chunk = next(path for path in (tiny / "A" / "01" / "0" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert states() == ["known", "known", "changed"], "pixels of the same size"
    restore()
    chunk.write_bytes(b"x")
    assert states() == ["known", "changed", "changed"], "another size"
    restore()
    (tiny / "A" / "01" / "note.txt").write_text("x")
    assert states() == ["known", "changed", "changed"], "another file"
    restore()
    tiny.with_name("tiny.csv").write_text("well\n")
    assert states() == ["known", "changed", "changed"], "another plate map"


def test_signatures_cover_samples_of_many_files_and_all_metadata(tmp_path: Path) -> None:
    plate = tmp_path / "p"
    (plate / "TimePoint_1").mkdir(parents=True)
    for number in range(1000):
        (plate / "TimePoint_1" / f"{number:04}.tif").write_bytes(b"x" * 20_000)
    (plate / "p.HTD").write_bytes(b"x" * 2000)
    whole = compute_signature(plate)
    seen = []
    for number in range(0, 1000, 25):
        file = plate / "TimePoint_1" / f"{number:04}.tif"
        for content in (b"y" + b"x" * 19_999, b"x" * 19_999 + b"y"):
            file.write_bytes(content)
            seen.append(compute_signature(plate) != whole)
        file.write_bytes(b"x" * 20_000)
    assert 0.2 <= sum(seen) / len(seen) < 1
    for file in plate.rglob("*.tif"):
        file.write_bytes(b"y" * 20_000)
    assert compute_signature(plate) != whole, "exported again, of the same sizes"
    for file in plate.rglob("*.tif"):
        file.write_bytes(b"x" * 20_000)
    assert compute_signature(plate) == whole
    (plate / "p.HTD").write_bytes(b"x" * 1000 + b"y" + b"x" * 999)
    assert compute_signature(plate) != whole


def test_a_folder_with_the_name_of_a_known_plate_is_checked(tiny: Path, tmp_path: Path) -> None:
    ingest_plate(tiny, tmp_path / "plates")
    known = list_known_plates(tmp_path / "plates")
    other = tiny.with_name("tiny")
    other.mkdir()
    assert state_in(tiny.parent, known)["tiny"][0] == "known"
    assert list_inbox(tiny.parent, DEFAULT, known)[other] is None, "it is no plate"
    shutil.copytree(tiny, other, dirs_exist_ok=True)
    assert state_in(tiny.parent, known)["tiny"][0] == "unreadable", "now both are"


def test_one_unreadable_plate_does_not_hide_the_others(tiny: Path) -> None:
    tiny.with_name("linked.zarr").symlink_to(tiny)
    found = state_in(tiny.parent)
    assert found["tiny"][0] == "ready"
    assert found["linked"][0] == "unreadable" and "symbolic link" in found["linked"][1]


def test_files_that_vanish_during_the_check_mean_copying(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(folder: str | Path = ".") -> object:
        if str(folder).endswith("tiny.zarr/A"):
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert state_in(tiny.parent)["tiny"] == ("copying", "its files changed during the check")


def images_in(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"II*\0")
    return folder


def test_the_reason_says_what_is_recognised_without_an_index(tmp_path: Path) -> None:
    images_in(tmp_path / "p1", *(f"x_{well}_{wave}.TIF" for well in ("A01_s1", "A02_s4") for wave in ("w1", "w3")))
    recognised = "MetaXpress names: 2 wells, sites 1 and 4, channels w1 and w3"
    assert state_in(tmp_path)["p1"] == ("ready", recognised)
    state, reason = state_in(tmp_path, days=0)["p1"]
    assert state == "copying" and reason.endswith(f"without change; {recognised}")


def test_images_of_an_unknown_scheme_get_a_configuration_to_write(tmp_path: Path) -> None:
    images_in(tmp_path / "p1", "B02 pos 1 DAPI.png", "B03 pos 2 GFP.png")
    state, reason = state_in(tmp_path)["p1"]
    assert state == "unreadable" and reason.startswith("unknown format")
    proposed = r"(?P<well>[A-P]\d+) pos (?P<site>\d+) (?P<channel>[A-Za-z0-9]+)\.png"
    assert f"Write this into p1.toml beside the plate, and correct it: pattern = '{proposed}'" in reason
    images_in(tmp_path / "p1.zarr")
    later = datetime.now(UTC) + timedelta(days=1)
    states = plate_states(list_inbox(tmp_path), {}, {}, {}, later, DEFAULT)
    assert {state.path.name: state.state for state in states} == {"p1": "unreadable", "p1.zarr": "ready"}


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_one_unreadable_plate(tiny: Path) -> None:
    Path(os.fsdecode(os.fsencode(tiny.parent) + b"/bad\xff")).mkdir()
    found = state_in(tiny.parent)
    assert found["tiny"][0] == "ready"
    state, reason = found["bad\ufffd"]
    assert state == "unreadable" and "not a valid plate name" in reason
    pl.DataFrame([(name, *row) for name, row in found.items()], ["plate", "state", "reason"], orient="row").write_json()


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_reason_with_a_name_that_is_not_utf_8_can_be_stored(tiny: Path) -> None:
    Path(os.fsdecode(os.fsencode(tiny) + b"/link\xff")).symlink_to(tiny)
    state, reason = state_in(tiny.parent)["tiny"]
    assert state == "unreadable" and "link\ufffd" in reason
    reason.encode()


def test_folders_and_files_of_operating_systems_are_no_plates_and_no_changes(tiny: Path) -> None:
    (before,) = list_inbox(tiny.parent).values()
    for name in ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"):
        (tiny.parent / name).mkdir()
    for folder in (tiny, tiny / "A"):
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / "._zarr.json").write_bytes(b"x")
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir" / "thumb.jpg").write_bytes(b"x")
    assert list(state_in(tiny.parent)) == ["tiny"]
    (after,) = list_inbox(tiny.parent).values()
    assert before and after and before.signature == after.signature


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can list any folder")
def test_a_folder_without_permission_is_unreadable(tiny: Path) -> None:
    (tiny / "A").chmod(0)
    try:
        assert state_in(tiny.parent)["tiny"][0] == "unreadable"
    finally:
        (tiny / "A").chmod(0o755)
