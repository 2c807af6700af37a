"""Image versions depend on pixels alone: not on the writer or times, and also while a plate is replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import (
    IngestConfig,
    field_version,
    ingest_plate,
    is_current,
    list_known_plates,
    load_plate,
    read_field,
    read_plate_record,
)
from gradcamo_assets.plates.omezarr import image_version
from gradcamo_assets_tests.plates.formats.exports import some_pixels, write_metaxpress, write_operetta
from gradcamo_assets_tests.plates.test_omezarr import foreign_plate

FEW = st.tuples(*[st.integers(1, 3)] * 4)
PIXELS = FEW.flatmap(lambda shape: arrays.arrays(np.uint16, shape, elements=st.integers(0, 2)))


@given(PIXELS, PIXELS)
def test_versions_are_equal_if_all_pixels_are(one: np.ndarray, other: np.ndarray) -> None:
    same = one.shape == other.shape and bool((one == other).all())
    assert (image_version(one) == image_version(other)) == same
    assert image_version(one.astype(">u2")) == image_version(np.asfortranarray(one)) == image_version(one)


def test_versions_are_the_same_whoever_wrote_the_files(tmp_path: Path) -> None:
    pixels = some_pixels(wells=("B02", "B03"), sites=2, shape=(2, 3, 24, 40))
    images = {f"{well[0]}/{int(well[1:])}/{site - 1}": image for (well, site), image in pixels.items()}
    sources = [
        write_metaxpress(tmp_path / "a", pixels, ["DNA", "AGP"]),
        write_operetta(tmp_path / "b", pixels),
        foreign_plate(tmp_path / "c.zarr", images, "czyx", "0.4", channels=["DNA", "AGP"]),
        foreign_plate(tmp_path / "d.zarr", images, "czyx", "0.5", channels=["DNA", "AGP"]),
    ]
    configs = [IngestConfig()] * 3 + [IngestConfig(ome_zarr="reference")]
    versions = []
    for source, config in zip(sources, configs, strict=True):
        done = ingest_plate(source, tmp_path / "plates", config)
        rows = done.fields_frame.select("Metadata_Well", "Metadata_Site", "image_version").rows()
        versions.append({(well, site): version for well, site, version in rows})
        assert {(f.well, f.site): v for f, v in done.plate.image_versions.items()} == versions[-1]
        assert done.fields_frame.schema["image_version"] == pl.String
    assert versions == [versions[0]] * 4 and len(set(versions[0].values())) == len(pixels)


def test_a_field_that_changed_has_another_version_and_a_bad_one_none(tiny: Path, tmp_path: Path) -> None:
    plates = tmp_path / "plates"
    before = ingest_plate(tiny, plates).plate
    again = ingest_plate(tiny, plates).plate
    assert again == before and is_current(plates, before), "nothing changed"
    changed, bad = before.fields[0], before.fields[-1]
    import zarr

    array = zarr.open_array(tiny / changed.path / "0", mode="r+")
    array[1, 2, 3, 4] = int(array[1, 2, 3, 4]) + 1
    shutil.rmtree(tiny / bad.path / "0" / "c")
    after = ingest_plate(tiny, plates)
    assert not is_current(plates, before) and is_current(plates, after.plate)
    differ = {f for f in before.fields if before.image_versions[f] != after.plate.image_versions.get(f)}
    assert differ == {changed, bad}
    (flagged,) = after.fields_frame.drop_nulls("qc_flag").select("path", "image_version").rows()
    assert flagged == (bad.path, None)


def test_field_versions_depend_on_illumination_and_channel_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    light = np.linspace(0.5, 1.5, 64)
    pixels = {
        (f"B{column:02d}", 1): rng.poisson(np.full((2, 2, 64, 64), 800.0) * light).astype(np.uint16)
        for column in range(2, 12)
    }
    source, plates = write_metaxpress(tmp_path / "p", pixels, ["DNA", "AGP"]), tmp_path / "plates"

    def versions(illumination: bool) -> dict[str, str]:
        plate = load_plate(plates, "p", illumination=illumination)
        return {field.path: field_version(plate, field) for field in plate.fields}

    ingest_plate(source, plates)
    plain, corrected = versions(False), versions(True)
    assert len(set(plain.values()) | set(corrected.values())) == 20
    for path in plates.rglob("*"):
        os.utime(path, (0, 0))
    assert (versions(False), versions(True)) == (plain, corrected), "times do not count"
    stored = plates / "p.illumination.npy"
    np.save(stored, np.load(stored)[:, ::-1])
    assert versions(False) == plain and not set(versions(True).values()) & set(corrected.values())
    ingest_plate(source, plates, IngestConfig(camera_offset=100))
    assert versions(False) == plain and not set(versions(True).values()) & set(corrected.values())
    (tmp_path / "p.toml").write_text('channels = { DNA = "Hoechst" }\n')
    ingest_plate(source, plates)
    assert not set(versions(False).values()) & set(plain.values())


def test_missing_chunks_are_an_error_not_zeros(tiny: Path, tmp_path: Path) -> None:
    plate = ingest_plate(tiny, tmp_path / "plates").plate
    field = plate.fields[0]
    assert read_field(plate, field).any()
    shutil.rmtree(plate.path / field.path / "0" / "c")
    with pytest.raises(PlateError, match="differ from those that were ingested") as raised:
        read_field(plate, field)
    assert (raised.value.well, raised.value.site) == (field.well, field.site)


@pytest.mark.parametrize("changed", [False, True])
def test_reading_while_a_plate_is_replaced_never_mixes_old_and_new_pixels(
    changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = some_pixels(wells=("B02",), sites=1, shape=(2, 3, 24, 40))
    plates, source = tmp_path / "plates", tmp_path / "p"
    plate = ingest_plate(write_metaxpress(source, pixels), plates).plate
    if changed:
        shutil.rmtree(source)
        write_metaxpress(source, {key: image[:, :, ::-1] for key, image in pixels.items()})
    seen = []

    def read_again() -> None:
        try:
            np.testing.assert_array_equal(read_field(plate, plate.fields[0]), pixels["B02", 1])
            seen.append(True)
        except PlateError:
            seen.append(False)

    def followed_by_a_read(change: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            result = change(*args, **options)
            read_again()
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(Path, name, followed_by_a_read(getattr(Path, name)))
        ingest_plate(source, plates)
    assert True in seen and False in seen
    read_again()
    assert seen[-1] == is_current(plates, plate) == (not changed)


def test_a_plate_is_not_current_while_its_record_is_replaced(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plates = tmp_path / "plates"
    plate = ingest_plate(tiny, plates).plate
    replace = Path.replace
    answers = []

    def replace_and_check(path: Path, target: Path) -> Path:
        if plates in (path.parent, target.parent):
            answers.append(is_current(plates, plate))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_check)
        ingest_plate(tiny, plates)
    assert answers and not any(answers)
    assert is_current(plates, plate), "it has the same pixels"


def test_a_record_of_an_earlier_release_is_refused_with_the_remedy(tiny: Path, tmp_path: Path) -> None:
    plates = tmp_path / "plates"
    ingest_plate(tiny, plates)
    record = plates / "tiny.json"
    record.write_text(record.read_text().replace('"image_version"', '"no_such"'))
    for ask in (read_plate_record, load_plate):
        with pytest.raises(PlateError, match=r"earlier release.* into a new home"):
            ask(plates, "tiny")
    shutil.rmtree(plates / "known")
    with pytest.raises(PlateError, match=r"earlier release.* into a new home"):
        list_known_plates(plates)
