"""Plates in an inbox in a bucket, and their ingestion into a bucket."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gradcamo_assets import buckets
from gradcamo_assets.errors import PlateError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import (
    InboxConfig,
    PlateState,
    field_version,
    ingest_plate,
    list_inbox,
    list_known_plates,
    load_plate,
    plate_states,
    read_field,
    read_label,
    sources,
)
from gradcamo_assets.plates.ingest import IngestConfig, IngestedPlate
from gradcamo_assets.plates.plate_records import plate_folders
from gradcamo_assets.storage import list_visible, read_bytes, remove, upload_tree, write_bytes
from gradcamo_assets_tests.buckets import fail, forget_copies, keys, memory_bucket
from gradcamo_assets_tests.plates.formats.exports import write_metaxpress


@pytest.fixture
def home() -> Home:
    return Home(memory_bucket())


def drop(home: Home, source: Path, tmp_path: Path) -> Path:
    """Copy a plate and its plate map into the inbox; return its path there."""
    upload_tree(shutil.copytree(source, tmp_path / f"copy of {source.name}"), home.inbox / source.name)
    plate_map = source.with_name(f"{source.name.removesuffix('.zarr')}.csv")
    if plate_map.exists():
        write_bytes(home.inbox / plate_map.name, plate_map.read_bytes())
    return home.inbox / source.name


def ingest(home: Home, source: Path, config: IngestConfig | None = None) -> IngestedPlate:
    """Ingest a plate as another process would."""
    forget_copies(home.root)
    return ingest_plate(source, home.plates, config)


def states(home: Home, later: timedelta = timedelta(0), **settings: object) -> list[PlateState]:
    known, config = list_known_plates(home.plates), InboxConfig(**settings)  # type: ignore[arg-type]
    found = list_inbox(home.inbox, config, known, "contents")
    return plate_states(found, known, {}, {}, datetime.now(UTC) + later, config)


def test_a_plate_becomes_ready_known_and_changed(home: Home, tiny: Path, tmp_path: Path) -> None:
    source = drop(home, tiny, tmp_path)
    write_bytes(home.inbox / "notes" / "read me.txt", b"no plate")
    write_bytes(home.inbox / "platemaps" / "other.csv", b"a,b\n")
    notes, plate = states(home)
    assert (notes.name, notes.state) == ("notes", "unreadable")
    assert notes.reason.endswith("None of its 1 files has a name that ends in .tif, .tiff, .png, zarr.json, .zattrs.")
    assert (plate.name, plate.state, plate.path) == ("tiny", "copying", source)
    assert states(home, timedelta(minutes=5))[1].state == "ready"
    assert states(home, marker="done")[1].state == "copying"
    write_bytes(home.inbox / "tiny.done", b"")
    assert states(home, marker="done")[1].state == "ready"
    ingested = ingest(home, source)
    assert ingested.wells_frame["Metadata_Compound"].null_count() == 0, "the plate map was not read"
    assert states(home)[1].state == "known"
    for changed in ("tiny.csv", "tiny.zarr/A/01/0/0/c/0/0/0/0"):
        before = bytes(buckets.find(home.inbox)[0].read(f"inbox/{changed}") or b"")  # type: ignore[index]
        write_bytes(home.inbox / changed, before[:-1] + b"x")
        assert states(home)[1].state == "changed", changed
        write_bytes(home.inbox / changed, before)
    forget_copies(home.root)
    assert not any(path.is_file() for path in home.inbox.rglob("*"))


@pytest.mark.parametrize("kind", ["ome-zarr", "reference", "export"])
def test_a_plate_in_a_bucket_is_the_plate_in_a_folder(kind: str, home: Home, tiny: Path, tmp_path: Path) -> None:
    source = tiny
    if kind == "export":
        rng = np.random.default_rng(0)
        pixels = {(well, 1): rng.integers(90, 4000, (2, 3, 64, 64)).astype(np.uint16) for well in ("B02", "B03")}
        source = tmp_path / "inbox" / "tiny"
        write_metaxpress(source, pixels)
    config = IngestConfig(ome_zarr="reference" if kind == "reference" else "copy", illumination=True)
    local = ingest_plate(source, tmp_path / "plates", config).plate
    copied = drop(home, source, tmp_path)
    ingest(home, copied, config)
    assert not any(home.plates.glob("*.zarr/**/zarr.json")), "the plate remains on the scratch disk"
    plate = load_plate(home.plates, "tiny", illumination=True)
    local = load_plate(tmp_path / "plates", "tiny", illumination=True)
    assert plate.version == local.version and plate.fields == local.fields
    for field in plate.fields:
        assert field_version(plate, field) == field_version(local, field)
        np.testing.assert_array_equal(read_field(plate, field), read_field(local, field))
        cells, local_cells = (read_label(one, field, "cells") for one in (plate, local))
        assert (cells is None) == (local_cells is None) == (kind == "export")
        if cells is not None:
            np.testing.assert_array_equal(cells, local_cells)
    assert not any(home.plates.glob("*.zarr/**/zarr.json")), "copies of fields remain"


@pytest.mark.parametrize(
    "export", ["phenix_v1", "phenix_v5", "phenix_v7_index", "metaxpress_no_htd", "scanr_names", "cv8000_blank"]
)
def test_a_real_export_in_a_bucket_is_the_export_in_a_folder(
    export: str, home: Home, shared: Callable[[str], Path], tmp_path: Path
) -> None:
    """Names of files with ``#`` and blanks included (cv8000_blank), whose fields are empty."""
    source = shared("exports") / export
    copied = drop(home, source, tmp_path)
    try:
        local = ingest_plate(source, tmp_path / "plates").plate
    except PlateError as error:
        with pytest.raises(PlateError, match=re.escape(error.problem)):
            ingest(home, copied)
        return
    plate = ingest(home, copied).plate
    assert (plate.channels, plate.fields, plate.version) == (local.channels, local.fields, local.version)
    for field in plate.fields:
        np.testing.assert_array_equal(read_field(plate, field), read_field(local, field))


def test_another_ingestion_replaces_the_plate_and_a_failed_one_leaves_it(
    home: Home, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = drop(home, tiny, tmp_path)
    ingest(home, source)
    first = [key for key in keys(home.root) if key.startswith("plates/")]
    plate = load_plate(home.plates, "tiny")
    with monkeypatch.context() as patch:
        fail(patch, "put", after=30)
        with pytest.raises(OSError, match="does not answer"):
            ingest(home, source)
    assert [key for key in keys(home.root) if key in first] == first
    assert load_plate(home.plates, "tiny") == plate
    abandoned = [path for path in plate_folders(home.plates, "tiny") if path != plate.path]
    assert len(abandoned) == 1
    remove(*abandoned)
    with monkeypatch.context() as patch:
        patch.setattr(sources.ZarrSource, "store_field", lambda *_: (_ for _ in ()).throw(PlateError("bad", "Mend it")))
        with pytest.raises(PlateError, match="none of its"):
            ingest(home, source)
    assert [key for key in keys(home.root) if key.startswith("plates/")] == first, "a rejected plate left objects"
    ingest(home, source)
    again = load_plate(home.plates, "tiny")
    assert again.version == plate.version and again.path != plate.path
    assert list_visible(home.plates, "*.zarr") == plate_folders(home.plates, "tiny") == [again.path]
    assert plate_folders(home.plates, "tin") == plate_folders(home.plates, "tiny.0") == []
    assert list_known_plates(home.plates).keys() == {"tiny"}


def test_the_record_of_one_plate_does_not_name_the_folder_of_another(home: Home, tiny: Path, tmp_path: Path) -> None:
    ingest(home, drop(home, tiny, tmp_path))
    record = read_bytes(home.plates / "tiny.json")
    assert record is not None
    write_bytes(home.plates / "twin.json", record.replace(b'"name": "tiny"', b'"name": "twin"'))
    with pytest.raises(PlateError, match="not its own"):
        load_plate(home.plates, "twin")
