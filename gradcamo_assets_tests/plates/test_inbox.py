"""What the inbox holds and what of it is to be ingested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.plates import ingest_plate, known_plates, list_inbox, plates_to_ingest

BOX = Path("inbox")


def test_new_plates_are_ready_known_ones_are_not() -> None:
    found = {BOX / "a.zarr": "1", BOX / "b.ome.zarr": "2", BOX / "c": "3"}
    state = plates_to_ingest(found, {"b": {"signature": "2"}})
    assert state.ready == [BOX / "a.zarr", BOX / "c"] and state.problems == {}


def test_two_folders_of_one_name_are_both_held_back() -> None:
    state = plates_to_ingest({BOX / "a.zarr": "1", BOX / "a.ome.zarr": "2", BOX / "b.zarr": "3"}, {})
    assert state.ready == [BOX / "b.zarr"]
    assert "a.zarr" in state.problems["a"] and "a.ome.zarr" in state.problems["a"]


def test_a_changed_plate_is_a_problem() -> None:
    state = plates_to_ingest({BOX / "a.zarr": "2"}, {"a": {"signature": "1"}})
    assert state.ready == [] and "changed after ingestion" in state.problems["a"]


def test_an_unusable_name_is_a_problem() -> None:
    state = plates_to_ingest({BOX / "my plate;.zarr": "1"}, {})
    assert state.ready == [] and "no usable plate name" in state.problems["my plate;.zarr"]


FOLDERS = [BOX / name for name in ("a", "a.zarr", "b.zarr", "b.ome.zarr", "c", " d")]
RECORDS = st.builds(lambda signature: {"signature": signature}, st.text(max_size=2))


@given(
    st.dictionaries(st.sampled_from(FOLDERS), st.text(max_size=2)),
    st.dictionaries(st.sampled_from("abc"), RECORDS),
)
def test_nothing_is_ready_twice_or_ready_and_a_problem(found: dict, known: dict) -> None:
    state = plates_to_ingest(found, known)
    names = [path.name.removesuffix(".zarr").removesuffix(".ome") for path in state.ready]
    assert len(names) == len(set(names)) and not set(names) & (set(state.problems) | set(known))


def test_a_missing_inbox_is_no_empty_one(tmp_path: Path) -> None:
    assert list_inbox(tmp_path) == {}
    with pytest.raises(PlateError, match="cannot be listed"):
        list_inbox(tmp_path / "gone")


def test_plates_are_found_by_ending_or_by_metadata(tiny: Path) -> None:
    inbox = tiny.parent
    (inbox / "notes").mkdir()
    (inbox / ".tmp.zarr").mkdir()
    (inbox / "old").mkdir()
    (inbox / "old" / ".zattrs").write_text('{"plate": {}}')
    assert sorted(path.name for path in list_inbox(inbox)) == ["old", "tiny.zarr"]
    tiny.rename(inbox / "bare")
    assert sorted(path.name for path in list_inbox(inbox)) == ["bare", "old"]


def test_the_cheap_look_agrees_with_the_deep_one(tiny: Path, tmp_path: Path) -> None:
    plates, inbox = tmp_path / "plates", tiny.parent
    assert plates_to_ingest(list_inbox(inbox), {}).ready == [tiny]
    ingest_plate(tiny, plates)
    known = known_plates(plates)
    assert list_inbox(inbox, known) == list_inbox(inbox) == {tiny: known["tiny"]["signature"]}

    chunk = next(path for path in (tiny / "A" / "01" / "0" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"x")
    assert "tiny" in plates_to_ingest(list_inbox(inbox), known).problems, "the deep look sees pixels change"
    assert plates_to_ingest(list_inbox(inbox, known), known).problems == {}, "the cheap look does not"
    (tiny / "A" / "01" / "7").mkdir()
    assert "tiny" in plates_to_ingest(list_inbox(inbox, known), known).problems, "both see fields come"


def test_one_plate_out_of_reach_does_not_hide_the_others(tiny: Path) -> None:
    link = tiny.parent / "linked.zarr"
    link.symlink_to(tiny)
    state = plates_to_ingest(list_inbox(tiny.parent), {})
    assert state.ready == [tiny] and "symbolic link" in state.problems["linked"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can list any folder")
def test_a_folder_without_permission_is_a_problem(tiny: Path) -> None:
    (tiny / "A").chmod(0)
    try:
        assert "unreadable" in plates_to_ingest(list_inbox(tiny.parent), {}).problems["tiny"]
    finally:
        (tiny / "A").chmod(0o755)
