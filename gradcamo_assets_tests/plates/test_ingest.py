"""Ingestion of good and bad plates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from gradcamo_assets.errors import PlateError, PlateMapError
from gradcamo_assets.plates import (
    IngestConfig,
    field_version,
    ingest,
    ingest_plate,
    list_known_plates,
    load_plate,
    open_plate,
    read_field,
    read_plate_record,
)
from gradcamo_assets.plates.image_quality import FieldMeter
from gradcamo_assets.plates.platemap import read_plate_map
from gradcamo_assets_tests.plates.conftest import TINY
from gradcamo_assets_tests.plates.test_omezarr import foreign_plate


def _chunk(field: Path) -> Path:
    return next(path for path in sorted((field / "0" / "c").rglob("*")) if path.is_file())


@pytest.mark.parametrize("ome_zarr", ["copy", "reference"])
def test_an_ome_zarr_plate_can_be_given_its_voxel_size(tmp_path: Path, ome_zarr: Literal["copy", "reference"]) -> None:
    source, plates = tmp_path / "inbox" / "P.zarr", tmp_path / "plates"
    foreign_plate(source, {"B/3/0": np.arange(512, dtype=np.uint16).reshape(2, 16, 16)}, "zyx")
    config = IngestConfig(ome_zarr=ome_zarr)
    done = ingest_plate(source, plates, config)
    assert done.plate.voxel_size == (None, None, None)
    problem = "the voxel size along z, y, x is not known; give voxel_size = [z, y, x] in P.toml beside the plate"
    assert problem in done.problems
    before = field_version(done.plate, done.plate.fields[0])
    (tmp_path / "inbox" / "P.toml").write_text("voxel_size = [2, 0.5, 0.5]")
    done = ingest_plate(source, plates, config)
    assert done.plate.voxel_size == (2.0, 0.5, 0.5) and problem not in done.problems
    assert field_version(done.plate, done.plate.fields[0]) != before, "masks depend on it"


def test_a_good_plate_is_copied_and_recorded(tiny: Path, tmp_path: Path) -> None:
    plates = tmp_path / "plates"
    done = ingest_plate(tiny, plates)
    assert done.problems == []
    plate = load_plate(plates, "tiny")
    assert plate == done.plate and plate.path == plates / "tiny.zarr"
    source = open_plate(tiny)
    assert (plate.fields, plate.channels, plate.voxel_size) == (source.fields, source.channels, source.voxel_size)
    for field in plate.fields:
        np.testing.assert_array_equal(read_field(plate, field), read_field(source, field))
    pixels = np.concatenate([read_field(plate, f).reshape(4, -1) for f in plate.fields], axis=1)
    for channel, values in zip(plate.channels, pixels, strict=True):
        assert done.statistics[channel]["center"] == pytest.approx(np.median(values), rel=0.02)
    row = done.plate_frame.row(0, named=True)
    assert row["format"] == "ome-zarr 0.5" and (row["n_wells"], row["n_fields"], row["n_channels"]) == (4, 8, 4)
    assert (row["size_z"], row["size_y"], row["size_x"], row["voxel_y_um"]) == (4, 64, 64, 0.5)
    assert done.plate_frame.schema["ingested_at"] == pl.Datetime("us")
    assert done.fields_frame["qc_flag"].null_count() == 8 and done.fields_frame["focus_slice"].null_count() == 0
    kept = read_plate_map(plates / "tiny.platemap.csv", TINY.well_names).frame
    assert kept.equals(done.wells_frame.drop("Metadata_Plate"))
    assert kept["Metadata_Compound"].to_list() == [t.compound for t in TINY.layout]


def test_bad_fields_are_left_out_and_the_others_ingested(tiny: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny / "A" / "01" / "0" / "0")  # a missing array
    chunk = _chunk(tiny / "A" / "02" / "1")
    chunk.write_bytes(chunk.read_bytes()[:40])  # a truncated chunk
    shutil.rmtree(tiny / "B" / "01" / "0" / "0" / "c")  # an empty field: no chunk was ever written
    (tiny.parent / "tiny.csv").write_text("well,compound\nA1,DMSO\nH12,x\n")
    done = ingest_plate(tiny, tmp_path / "plates")
    flagged = dict(done.fields_frame.drop_nulls("qc_flag").select("path", "qc_flag").iter_rows())
    assert set(flagged) == {"A/01/0", "A/02/1", "B/01/0"}
    assert "array cannot be read" in flagged["A/01/0"] and "pixels cannot be read" in flagged["A/02/1"]
    assert flagged["B/01/0"].startswith("4 of its 4 chunks are missing")
    assert done.fields_frame.height == 8 and len(load_plate(tmp_path / "plates", "tiny").fields) == 5
    problems = " | ".join(done.problems)
    assert all(words in problems for words in ("A/01/0", "lacks wells A02, A03, B01", "H12"))


def test_nothing_readable_is_an_error_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    for array in tiny.glob("*/*/*/0"):
        shutil.rmtree(array)
    with pytest.raises(PlateError, match="none of its 8"):
        ingest_plate(tiny, tmp_path / "plates")
    assert read_plate_record(tmp_path / "plates", "tiny") is None and not list((tmp_path / "plates").glob("*"))


def test_links_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tiny / "A" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(PlateError, match="link"):
        ingest_plate(tiny, tmp_path / "plates")
    link = tmp_path / "other.zarr"
    link.symlink_to(tiny)
    with pytest.raises(PlateError, match="link"):
        ingest_plate(link, tmp_path / "plates")
    assert not (tmp_path / "plates").exists()


def test_a_wrong_plate_map_stops_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    (tiny.parent / "tiny.csv").write_text("well,compound\nA1,x\nA01,y\n")
    with pytest.raises(PlateMapError, match="A01"):
        ingest_plate(tiny, tmp_path / "plates")
    assert not (tmp_path / "plates").exists()


def test_a_plate_that_changes_while_copied_is_not_recorded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_file_then_measure(*arguments: object) -> object:
        (tiny / "late").write_text("x")
        return FieldMeter(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "FieldMeter", add_file_then_measure)
    with pytest.raises(PlateError, match="changed while"):
        ingest_plate(tiny, tmp_path / "plates")
    assert list_known_plates(tmp_path / "plates") == {}
    assert [path.name for path in (tmp_path / "plates").iterdir()] == [".locks"]


def test_without_a_map_wells_are_empty(tiny: Path, tmp_path: Path) -> None:
    (tiny.parent / "tiny.csv").unlink()
    done = ingest_plate(tiny, tmp_path / "plates")
    assert done.wells_frame["Metadata_pert_type"].unique().to_list() == ["empty"]
    assert any("no plate map" in problem for problem in done.problems)


def test_ingesting_again_replaces(tiny: Path, tmp_path: Path) -> None:
    ingest_plate(tiny, tmp_path / "plates")
    shutil.rmtree(tiny / "B" / "01" / "1" / "0")
    ingest_plate(tiny, tmp_path / "plates")
    assert len(load_plate(tmp_path / "plates", "tiny").fields) == 7


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_foreign_2d_plate_is_ingested(tmp_path: Path, version: str) -> None:
    rng = np.random.default_rng(0)
    images = {f"A/{i}/0": rng.integers(90, 900, (2, 32, 32)).astype(np.uint16) for i in (1, 2)}
    done = ingest_plate(foreign_plate(tmp_path / "P.ome.zarr", images, "cyx", version), tmp_path / "plates")
    plate = load_plate(tmp_path / "plates", "P")
    np.testing.assert_array_equal(read_field(plate, plate.fields[1])[:, 0], images["A/2/0"])
    assert done.plate_frame["format"].item() == f"ome-zarr {version}"


def test_channels_of_one_name_are_refused(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(90, 900, (2, 16, 16)).astype(np.uint16)
    path = foreign_plate(tmp_path / "P.zarr", {"A/1/0": image}, "cyx", channels=["GFP", "GFP"])
    with pytest.raises(PlateError, match="A/1/0"):
        ingest_plate(path, tmp_path / "plates")


def test_a_damaged_record_is_reported(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(PlateError, match="unreadable record"):
        read_plate_record(tmp_path, "p")
    (tmp_path / "p.json").write_text(json.dumps({"name": "other"}))
    with pytest.raises(PlateError, match="other"):
        read_plate_record(tmp_path, "p")
    with pytest.raises(PlateError, match="not been ingested"):
        load_plate(tmp_path, "q")
