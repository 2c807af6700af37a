"""Crops that are cut from their field when they are read, against cutting them by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gradcamo_assets.cells import CropConfig, FieldSource, cut_crops, open_crops, record_crops, store_pixels
from gradcamo_assets.cells import field_crops as module
from gradcamo_assets.cells.cell_rows import build_field_cells
from gradcamo_assets.cells.crop_store import StoredCrops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.cells.field_crops import FieldCrops
from gradcamo_assets.errors import CropError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import field_version, ingest_plate, read_field, read_label
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.segmentation import Masks
from gradcamo_assets.segmentation.mask_store import write_masks
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets_tests.buckets import forget_copies, memory_bucket

SHAPE = (6, 24, 24)
PLATE = SyntheticPlate(name="tiny", wells=2, sites=1, shape=(4, 64, 64), doses=1, cells=4, channels=4, seed=3)


def record(home: Home) -> dict[Path, list]:
    """Record the crops of two fields; return their crops cut by hand, by folder."""
    plate = ingest_plate(write_synthetic_plate(home.inbox, PLATE), home.plates).plate
    by_hand = {}
    for field in plate.fields:
        image, labels = read_field(plate, field), read_label(plate, field, "cells")
        assert labels is not None
        provenance = Provenance(field.path, {}, "1")
        masks = home.masks / "tiny" / field.well / provenance.version
        write_masks(masks, Masks(labels, None), plate.voxel_size, provenance)
        cells = build_field_cells(
            Masks(labels, None), plate="tiny", well=field.well, site=1, voxel_size=plate.voxel_size, mask_version="1",
            well_row=dict.fromkeys(
                ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_Dose_Rank", "Metadata_pert_type")
            ),
        )  # fmt: skip
        folder = home.crops / "tiny" / field.well / provenance.version
        source = FieldSource(home.plates, masks, "tiny", field.well, 1, False, field_version(plate, field))
        center = [100.7, 200.2, 300.9, 50.0]
        record_crops(
            folder, cells, source, shape=SHAPE, channels=list(plate.channels), voxel_size=list(plate.voxel_size),
            statistics={"center": center, "scale": [10.0, 20.0, 30.0, 5.0]}, provenance=provenance,
        )  # fmt: skip
        by_hand[folder] = list(cut_crops(image, labels, cells, CropConfig(SHAPE), np.array(center)))
    return by_hand


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, dict[Path, list]]:
    home = Home(tmp_path_factory.mktemp("home")).create()
    return home, record(home)


def test_crops_are_those_cut_by_hand_and_take_no_disk(recorded: tuple[Home, dict[Path, list]]) -> None:
    _, by_hand = recorded
    for folder, expected in by_hand.items():
        crops = open_crops(folder)
        assert isinstance(crops, FieldCrops) and len(crops) == len(expected) > 1 and crops.crop_shape == SHAPE
        buffer = np.empty((len(crops), 4, *SHAPE), np.uint16)
        for images, labels in (crops.read(slice(0, None)), crops.read(slice(0, 99), buffer)):
            np.testing.assert_array_equal(images, np.stack([image for image, _ in expected]))
            np.testing.assert_array_equal(labels, np.stack([regions for _, regions in expected]))
        image, labels = crops.read(1)
        np.testing.assert_array_equal(image, expected[1][0])
        np.testing.assert_array_equal(labels, expected[1][1])
        assert {path.name for path in folder.rglob("*")} == {"zarr.json", "provenance.json"}


def test_stored_pixels_are_the_same_and_are_found(recorded: tuple[Home, dict[Path, list]], tmp_path: Path) -> None:
    _, by_hand = recorded
    folder, expected = next(iter(by_hand.items()))
    aside = store_pixels(folder, tmp_path / "aside")
    assert aside == tmp_path / "aside" and isinstance(open_crops(folder), FieldCrops)
    try:
        beside = store_pixels(folder)
        assert store_pixels(folder) == beside
        for path in (aside, beside, folder):
            crops = open_crops(path)
            assert isinstance(crops, StoredCrops) and crops.version == folder.name
            images, labels = crops.read(slice(0, len(crops)))
            np.testing.assert_array_equal(images, np.stack([image for image, _ in expected]))
            np.testing.assert_array_equal(labels, np.stack([regions for _, regions in expected]))
    finally:
        shutil.rmtree(folder / "pixels")


def test_crops_in_a_bucket_are_those_in_a_folder(recorded: tuple[Home, dict[Path, list]]) -> None:
    home = Home(memory_bucket())
    by_hand = record(home)
    assert {folder.relative_to(home.root) for folder in by_hand} == {
        folder.relative_to(recorded[0].root) for folder in recorded[1]
    }
    for folder, expected in by_hand.items():
        forget_copies(home.root)
        cut = open_crops(folder)
        assert isinstance(cut, FieldCrops)
        np.testing.assert_array_equal(cut.read(1)[0], expected[1][0])
        assert not any(home.plates.glob("*.zarr/**/zarr.json")), "copies of the field remain"
        store_pixels(folder)
        forget_copies(home.root)
        stored = open_crops(folder)
        assert isinstance(stored, StoredCrops) and stored.version == cut.version
        images, labels = stored.read(slice(0, len(stored)))
        np.testing.assert_array_equal(images, np.stack([image for image, _ in expected]))
        np.testing.assert_array_equal(labels, np.stack([regions for _, regions in expected]))


def test_a_moved_home_has_its_crops(recorded: tuple[Home, dict[Path, list]], tmp_path: Path) -> None:
    home, by_hand = recorded
    shutil.copytree(home.root, tmp_path / "moved")
    folder, expected = next(iter(by_hand.items()))
    crops = open_crops(tmp_path / "moved" / folder.relative_to(home.root))
    assert str(tmp_path) in str(crops.source.plates.resolve())  # type: ignore[attr-defined]
    np.testing.assert_array_equal(crops.read(0)[0], expected[0][0])


def test_a_field_that_changed_or_is_lost_is_an_error_that_names_it(
    recorded: tuple[Home, dict[Path, list]], tmp_path: Path
) -> None:
    home, by_hand = recorded
    shutil.copytree(home.root, tmp_path / "home")
    folder = tmp_path / "home" / next(iter(by_hand)).relative_to(home.root)
    crops = open_crops(folder)
    shutil.rmtree(tmp_path / "home" / "masks")
    with pytest.raises(CropError, match=r"plate tiny, well \w+, site 1.*no readable masks"):
        crops.read(0)
    record = tmp_path / "home" / "plates" / "tiny.json"
    content = json.loads(record.read_text())
    for field in content["fields"]:
        field["image_version"] = "another"
    record.write_text(json.dumps(content))
    with pytest.raises(CropError, match="ingested again"):
        crops.read(0)


def test_each_field_is_read_once_while_its_crops_are_cached(
    recorded: tuple[Home, dict[Path, list]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, by_hand = recorded
    fields = [open_crops(folder) for folder in by_hand]
    loads: list[str] = []
    load = FieldSource.load
    monkeypatch.setattr(FieldSource, "load", lambda self: (loads.append(self.well), load(self))[1])
    # One byte, so that only the field read last stays in memory.
    monkeypatch.setattr(module, "_LOADED", module._LoadedFields(1))
    classes = {cell: 0 for field in fields for cell in field.cell_ids}
    crops = CropDataset(fields, classes, fields[0].channels)
    order = np.random.default_rng(0).permutation(len(crops)).tolist()
    for item in order + order:
        crops[item]
    assert sorted(loads) == sorted(field.source.well for field in fields)  # type: ignore[attr-defined]
    loads.clear()
    without_cache = CropDataset(fields, classes, fields[0].channels, memory=0)
    for item in range(len(without_cache)):
        without_cache[item]
    assert len(loads) == len(fields)
