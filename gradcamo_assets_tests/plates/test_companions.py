"""Companion files of a plate in the inbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import companions, ingest_plate, list_inbox
from gradcamo_assets.plates.companions import compute_signature, find_companions
from gradcamo_assets.plates.spreadsheets import read_table

TABLE = "Assay_Plate_Barcode,Plate_Map_Name\n"


def _inbox(folder: Path, *plates: str) -> Path:
    for plate in plates:
        (folder / plate).mkdir()
    return folder


def _file(path: Path, text: str = "well\tcompound\nA1\tx\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["P 1.csv", "P_1.csv", "P_1.tsv", "P_1.xlsx", "P_1.platemap.csv", "P 1.platemap.xlsx"])
def test_a_map_of_the_plates_name(tmp_path: Path, name: str) -> None:
    inbox = _inbox(tmp_path, "P 1.zarr")
    (inbox / "P_2.csv").touch()
    path, labels = _file(inbox / name), _file(inbox / "P_1.labels.csv")
    found = find_companions(inbox / "P 1.zarr")
    assert (found.maps, found.labels, found.files) == ((path,), labels, (path, labels))


@pytest.mark.parametrize("place", ["platemap/M-1.txt", "platemaps/M-1.csv", "M-1.tsv", "platemap/M-1.xlsx"])
def test_a_map_through_the_barcode_table(tmp_path: Path, place: str) -> None:
    inbox = _inbox(tmp_path, "BR1.zarr", "BR3.zarr")
    path = _file(inbox / place)
    table = _file(inbox / "barcode_platemap.csv", TABLE + "BR2,../../x\nBR1,M-1\nBR1,M-1\n")
    metadata = _file(inbox / "external_metadata.tsv")
    found = find_companions(inbox / "BR1.zarr")
    assert (found.maps, found.files, found.metadata) == ((path,), (path,), (metadata,))
    assert table not in found.files
    assert find_companions(inbox / "BR3.zarr").maps == ()


HARMONY = "BR00117010__2020-11-08T18_18_00-Measurement 1"


@pytest.mark.parametrize(
    ("folder", "barcode"),
    [
        (HARMONY, "BR00117010"), (HARMONY, HARMONY), ("BR00117010__x-Measurement1.zarr", "BR00117010"),
        ("0012345", "12345"), ("12345", "0012345"), ("0012345", "12345.0"), ("0012345__x-Measurement1", "12345"),
    ],
)  # fmt: skip
def test_a_barcode_as_harmony_and_spreadsheets_write_it(tmp_path: Path, folder: str, barcode: str) -> None:
    inbox = _inbox(tmp_path, folder)
    path = _file(inbox / "platemap" / "M-1.txt")
    _file(inbox / "barcode_platemap.csv", TABLE + f"BR00117011,M-2\n112345,M-2\n{barcode},M-1\n1234,M-2\n")
    found = find_companions(inbox / folder)
    assert (found.maps, found.note) == ((path,), None)


def test_the_exact_barcode_comes_first(tmp_path: Path) -> None:
    inbox = _inbox(tmp_path, "0012", "BR1__x-Measurement1")
    maps = [_file(inbox / "platemap" / f"M-{number}.txt") for number in (1, 2)]
    rows = "12,M-1\n0012,M-2\nBR1,M-1\nBR1__x-Measurement1,M-2\n"
    _file(inbox / "barcode_platemap.csv", TABLE + rows)
    assert [find_companions(inbox / name).maps for name in ("0012", "BR1__x-Measurement1")] == [(maps[1],)] * 2
    own = _file(inbox / "BR1.csv")
    assert find_companions(inbox / "BR1__x-Measurement1").maps == (own,)


def test_a_plate_without_a_row_in_the_barcode_table_says_what_was_looked_for(tiny: Path, tmp_path: Path) -> None:
    inbox = _inbox(tmp_path, "BR0012__x-Measurement1")
    _file(inbox / "barcode_platemap.csv", TABLE + "BR0013,M-1\nBR12,M-1\n")
    note = find_companions(inbox / "BR0012__x-Measurement1").note
    assert note == "barcode_platemap.csv has no row for BR0012__x-Measurement1 or BR0012"
    (tiny.parent / "tiny.csv").unlink()
    _file(tiny.parent / "barcode_platemap.csv", TABLE)
    reason = "(barcode_platemap.csv has no row for tiny)"
    expected = f"there is no plate map beside the plate {reason}, so its wells have no treatment"
    assert expected in ingest_plate(tiny, tmp_path / "plates").problems


def test_a_map_of_the_plates_name_comes_before_the_barcode_table(tmp_path: Path) -> None:
    inbox = _inbox(tmp_path, "BR1.zarr")
    own = _file(inbox / "BR1.csv")
    _file(inbox / "barcode_platemap.csv", TABLE + "BR1,M-1\n")
    assert find_companions(inbox / "BR1.zarr").maps == (own,)


def test_the_barcode_table_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = _inbox(tmp_path, "BR1", "BR2", "BR3")
    maps = [_file(inbox / "platemap" / f"M-{number}.txt") for number in (1, 2)]
    table = _file(inbox / "barcode_platemap.csv", TABLE + "BR1,M-1\nBR2,M-1\nBR3,M-1\n")
    parsed: list[Path] = []
    monkeypatch.setattr(companions, "read_table", lambda path: parsed.append(path) or read_table(path))
    assert [find_companions(inbox / name).maps for name in ("BR1", "BR2", "BR3")] == [(maps[0],)] * 3
    assert parsed == [table]
    times = table.stat()
    table.write_text(table.read_text().replace("BR3,M-1", "BR3,M-2"))
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert find_companions(inbox / "BR3").maps == (maps[1],), "of the same size and time"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (TABLE + "BR1,../../x\n", "'../../x' is not a valid plate map name"),
        (TABLE + "BR1,/etc/passwd\n", "'/etc/passwd' is not a valid"),
        (TABLE + "BR1,..\n", "not a valid"),
        (TABLE + "BR1,a\\b\n", "not a valid"),
        (TABLE + "BR1,\n", "'' is not a valid"),
        (TABLE + "BR1,M-1\nBR1,M-2\n", "two plate maps, M-1 and M-2"),
        (TABLE + "BR1,M-9\n", "M-9 does not exist"),
        (TABLE + "BR1\n", "1 cells"),
        (TABLE + "BR1,=M\n", "formula"),
        ("plate,map\nBR1,M-1\n", "are missing"),
        ("", "empty"),
    ],
)
def test_a_wrong_barcode_table_is_an_error_of_the_plate(tmp_path: Path, table: str, says: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    inbox = _inbox(tmp_path / "a" / "b", "BR1.zarr")
    _file(tmp_path / "x.txt")  # ../../x from the inbox
    _file(inbox / "platemap" / "M-1.txt")
    _file(inbox / "barcode_platemap.csv", table)
    with pytest.raises(PlateError, match=says) as raised:
        find_companions(inbox / "BR1.zarr")
    assert raised.value.plate == "BR1" and raised.value.path == inbox / "barcode_platemap.csv"


def test_a_plate_with_a_broad_map_is_ingested_and_only_its_own_map_changes_its_signature(
    tiny: Path, tmp_path: Path
) -> None:
    inbox = tiny.parent
    (inbox / "tiny.csv").unlink()
    (inbox / "tiny.labels.csv").unlink(missing_ok=True)
    rows = "A01\tBRD-1\t5\tDMSO\t9\nA02\t\t\tDMSO\t9\nB01\tBRD-1\t1\tDMSO\t9\nB02\tBRD-2\t1\tDMSO\t9\n"
    header = "well_position\tbroad_sample\tmmoles_per_liter\tsolvent\tvolume\n"
    path = _file(inbox / "platemap" / "M-1.txt", header + rows)
    table = _file(inbox / "barcode_platemap.csv", TABLE + "tiny,M-1\n")
    _file(inbox / "external_metadata.tsv", "broad_sample\tpert_iname\nBRD-1\tquinine\n")
    done = ingest_plate(tiny, tmp_path / "plates")
    wells = done.wells_frame.sort("Metadata_Well")
    compounds = dict(zip(wells["Metadata_Well"], wells["Metadata_Compound"], strict=True))
    assert compounds["A01"] == "quinine" and compounds["A02"] == "DMSO"
    assert done.problems[:2] == [
        "the plate map has columns of numbers or units that are not read: volume",
        "samples of the plate map without a row in external_metadata.tsv: BRD-2",
    ]

    signature = compute_signature(tiny)
    table.write_text(TABLE + "tiny,M-1\nother,M-2\n")
    _file(inbox / "external_metadata.tsv", "broad_sample\tpert_iname\nBRD-1\tquinine\nBRD-9\tz\n")
    assert compute_signature(tiny) == signature
    path.write_text(header + rows.replace("5", "6.5"))
    assert compute_signature(tiny) != signature


def test_one_plates_wrong_map_name_does_not_hide_the_others(tiny: Path) -> None:
    inbox = tiny.parent
    (inbox / "other.zarr").mkdir()
    _file(inbox / "barcode_platemap.csv", TABLE + "other,../../x\n")
    found = list_inbox(inbox)
    snapshot, other = found[tiny], found[inbox / "other.zarr"]
    assert snapshot is not None and snapshot.problem is None
    assert other is not None and "not a valid plate map name" in (other.problem or "")
