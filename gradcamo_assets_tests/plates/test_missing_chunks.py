"""Chunks that a copy lost make a bad field; chunks that a writer left out do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import ingest_plate, open_plate
from gradcamo_assets.plates.missing_chunks import check_chunks
from gradcamo_assets.plates.omezarr import check_field
from gradcamo_assets_tests.plates.formats.exports import write_pattern
from gradcamo_assets_tests.plates.test_omezarr import foreign_plate

SHAPE, CHUNKS, SHARDS = (2, 2, 32, 32), (1, 1, 8, 8), (1, 2, 16, 16)


def camera_image() -> np.ndarray:
    """No pixel of a camera is 0."""
    return np.random.default_rng(0).integers(90, 900, SHAPE).astype(np.uint16)


def write_levels(folder: Path, image: np.ndarray, levels: int = 1, *, zarr_format: Any = 3, **options: Any) -> Path:
    """Arrays ``0``, ``1``, ... in ``folder``, each half as wide as the one before."""
    chunks = {"chunks": CHUNKS, **options}
    for level in range(levels):
        zarr.create_array(folder / str(level), data=image, zarr_format=zarr_format, **chunks)
        image = image.reshape(*image.shape[:2], image.shape[2] // 2, 2, -1, 2).mean((3, 5)).astype(np.uint16)
        chunks = {"chunks": CHUNKS}
    return folder


def check(folder: Path, levels: int = 1) -> str | None:
    return check_chunks(folder, "0", [str(level) for level in range(1, levels)], 0)


LAYOUTS: dict[str, tuple[dict[str, Any], str, int]] = {
    "zarr 2": ({"zarr_format": 2}, "1.0.2.3", 64),
    "zarr 2, nested": (
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        "1/0/2/3",
        64,
    ),
    "zarr 3": ({}, "c/1/0/2/3", 64),
    "zarr 3, sharded": ({"shards": SHARDS}, "c/1/0/1/1", 8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lost_chunk_is_named(layout: str, tmp_path: Path) -> None:
    options, key, total = LAYOUTS[layout]
    folder = write_levels(tmp_path, camera_image(), **options)
    assert check(folder) is None
    (folder / "0" / key).unlink()
    with pytest.raises(PlateError, match=f"1 of its {total} chunks are missing \\({key}\\)"):
        check(folder)


def test_many_lost_chunks_are_counted(tmp_path: Path) -> None:
    folder = write_levels(tmp_path, camera_image())
    for path in (folder / "0" / "c" / "1").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(PlateError, match=r"32 of its 64 chunks are missing \(c/1/0/0/0, c/1/0/0/1, .* and 27 more\)"):
        check(folder)


def test_an_image_without_chunks_is_refused(tmp_path: Path) -> None:
    folder = write_levels(tmp_path, np.zeros(SHAPE, np.uint16))
    with pytest.raises(PlateError, match="64 of its 64 chunks are missing"):
        check(folder)


@pytest.mark.parametrize("shards", [{}, {"shards": SHARDS}])
def test_coarser_levels_tell_where_nothing_was_imaged(shards: dict[str, Any], tmp_path: Path) -> None:
    image = camera_image()
    image[..., 16:, 16:] = 0
    folder = write_levels(tmp_path, image, 3, **shards)
    with pytest.raises(PlateError, match=r"chunks are missing \(c/0/0/"):
        check(folder, 2)  # Level 1 left the place out too.
    assert check(folder, 3) is None  # Level 2 has one chunk a slice.
    (folder / "0" / "c/0/0/0/0").unlink()
    with pytest.raises(PlateError, match=r"1 of its \d+ chunks are missing \(c/0/0/0/0\)"):
        check(folder, 3)


def test_where_nothing_tells_dark_pixels_decide(tmp_path: Path) -> None:
    """A background that a program subtracted has pixels of 0, so a whole chunk of them is possible."""
    image = camera_image()
    image[0, :, 8:24, 8:24] = 0  # Four chunks of each slice of the first channel.
    image[0, 0, 0, 0] = 0  # And a pixel of a chunk that is stored.
    note = check(write_levels(tmp_path, image))
    keys = "c/0/0/1/1, c/0/0/1/2, c/0/0/2/1, c/0/0/2/2, c/0/1/1/1"
    assert note == f"8 of its 64 chunks are missing ({keys} and 3 more) and were read as 0"
    (tmp_path / "0" / "c/1/0/0/0").unlink()
    with pytest.raises(PlateError, match=r"1 of its 64 chunks are missing \(c/1/0/0/0\)"):
        check(tmp_path)


def test_a_field_that_lost_chunks_is_left_out_and_a_doubtful_one_gets_a_warning(tmp_path: Path) -> None:
    images = {f"A/1/{site}": camera_image() for site in range(3)}
    images["A/1/2"][0, :, :, 1:] = 0  # Of the coarser level, the half from 8 on is left out too.
    options = {"chunks": CHUNKS}
    plate = foreign_plate(tmp_path / "p.zarr", images, "czyx", "0.4", storage_options=options)
    array = plate / "A/1/1" / open_level(plate / "A/1/1")
    next(path for path in sorted(array.rglob("*")) if path.is_file() and path.name.isdigit()).unlink()
    done = ingest_plate(plate, tmp_path / "plates")
    flags, warnings = done.fields_frame["qc_flag"].to_list(), done.fields_frame["qc_warning"].to_list()
    assert flags[0] is flags[2] is None and flags[1] == "1 of its 64 chunks are missing (0/0/0/0)"
    assert warnings[:2] == [None, None] and "16 of its 64 chunks are missing" in warnings[2]
    assert any(problem.startswith("field A/1/2: 16 of its 64 chunks") for problem in done.problems)


def open_level(field: Path) -> str:
    """Path of the array at full resolution."""
    datasets = zarr.open_group(field, mode="r").attrs["multiscales"][0]["datasets"]  # type: ignore[index, call-overload]
    return str(datasets[0]["path"])


def test_a_converted_plate_has_every_chunk(tmp_path: Path) -> None:
    """Also of a channel without light, so that its loss is noticed."""
    image = np.stack([np.zeros((1, 16, 16)), np.random.default_rng(0).integers(1, 9, (1, 16, 16))]).astype(np.uint16)
    ingest_plate(write_pattern(tmp_path / "p", {("B02", 1): image}), tmp_path / "plates")
    plate = open_plate(tmp_path / "plates" / "p.zarr")
    (field,) = plate.fields
    assert check_field(plate, field) is None
    (plate.path / field.path / "0/c/0/0/0/0").unlink()
    with pytest.raises(PlateError, match=r"well B02, site 1.*1 of its 2 chunks are missing \(c/0/0/0/0\)"):
        check_field(plate, field)


def test_an_absurd_number_of_chunks_is_refused_before_they_are_counted(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "0", shape=(2**16, 2**16), chunks=(1, 1), dtype="u2")
    with pytest.raises(PlateError, match="4294967296 chunks"):
        check_chunks(tmp_path, "0", [], None)
