"""OME-Zarr plates of other writers: which are read and which are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image, write_labels, write_plate_metadata, write_well_metadata

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import Plate, open_plate, read_field, read_label
from gradcamo_assets_tests.plates.conftest import TINY

FORMATS = {"0.4": FormatV04(), "0.5": FormatV05()}


def foreign_plate(
    path: Path, images: dict[str, np.ndarray], axes: str, version: str = "0.5", channels: list[str] | None = None,
    scale: dict[str, float] | None = None, label: np.ndarray | None = None, label_axes: str = "zyx",
    storage_options: dict | None = None,
) -> Path:  # fmt: skip
    """Write a plate with the ome-zarr package; ``images`` by path of the field, such as ``B/3/0``.

    Args:
        scale: in micrometres; without it no axis has a unit.
    """
    units = None if scale is None else {axis: "micrometer" for axis in axes if axis in "zyx"}
    fmt = FORMATS[version]
    root = zarr.open_group(str(path), mode="w", zarr_format=fmt.zarr_format)
    wells: dict[str, list[str]] = {}
    for field in images:
        row, column, image = field.split("/")
        wells.setdefault(f"{row}/{column}", []).append(image)
    rows, columns = (sorted({well.split("/")[k] for well in wells}) for k in (0, 1))
    write_plate_metadata(root, rows, columns, list(wells), fmt=fmt)
    for well, paths in wells.items():
        write_well_metadata(root.require_group(well), paths, fmt=fmt)
    for field, array in images.items():
        group = root.require_group(field)
        write_image(
            array, group, axes=axes, fmt=fmt, scale_factors=(2,), scale=scale, axes_units=units,
            storage_options=storage_options,
        )  # fmt: skip
        if channels:
            window = {"start": 0, "end": 9, "min": 0, "max": 9}
            omero = {"channels": [{"label": name, "color": "FFFFFF", "window": window} for name in channels]}
            group.attrs.update(
                {"omero": omero} if version == "0.4" else {"ome": {**group.attrs["ome"], "omero": omero}}
            )
        if label is not None:
            write_labels(label, group, "cells", axes=label_axes, fmt=fmt, scale_factors=(2,))
    return path


def _metadata(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content["attributes"]["ome"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "zyx", "cyx", "yx"])
def test_any_axes_become_czyx(tmp_path: Path, version: str, axes: str) -> None:
    sizes = {"t": 1, "c": 2, "z": 3, "y": 16, "x": 20}
    shape = tuple(sizes[axis] for axis in axes)
    array = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    plate = open_plate(foreign_plate(tmp_path / "P.ome.zarr", {"B/3/0": array}, axes, version))
    assert (plate.name, plate.ngff_version, plate.voxel_size) == ("P", version, (None, None, None))
    expected = array.reshape([sizes[axis] if axis in axes else 1 for axis in "czyx"])
    read = read_field(plate, plate.fields[0])
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == np.uint16
    assert plate.channels == tuple(f"channel_{i}" for i in range(expected.shape[0]))


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path: Path) -> None:
    image = np.ones((1, 16, 16), np.uint16)
    path = foreign_plate(tmp_path / "P.zarr", {"A/1/0": image}, "zyx", label=image.astype(np.float32))
    zarr.open_array(path / "A/1/0/labels/cells/s0", mode="r+")[:] = 1.5
    plate = open_plate(path)
    with pytest.raises(PlateError, match=r"label 'cells' contains values that are not whole numbers \(1.5\)"):
        read_label(plate, plate.fields[0], "cells")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_sites_voxels_and_labels_of_a_foreign_plate(tmp_path: Path, version: str) -> None:
    array = np.ones((2, 3, 16, 16), np.uint16)
    label = np.random.default_rng(1).integers(0, 5, (3, 16, 16)).astype(np.uint16)
    images = {f"B/3/{i}": array * k for k, i in enumerate(("10", "2", "1"), start=1)}
    scale = {"c": 1.0, "z": 2.0, "y": 0.25, "x": 0.25}
    plate = open_plate(foreign_plate(tmp_path / "P.zarr", images, "czyx", version, scale=scale, label=label))
    assert [(f.well, f.site, f.path) for f in plate.fields] == [
        ("B03", 1, "B/3/1"), ("B03", 2, "B/3/2"), ("B03", 3, "B/3/10")
    ]  # fmt: skip
    assert plate.voxel_size == (2.0, 0.25, 0.25)
    stored = read_label(plate, plate.fields[0], "cells")
    assert stored is not None and stored.dtype == np.uint32
    np.testing.assert_array_equal(stored, label)
    assert read_label(plate, plate.fields[0], "nuclei") is None


@pytest.mark.parametrize(
    ("units", "voxel_size"),
    [
        ({"z": "nanometer", "y": "nanometer", "x": "nanometer"}, (0.001, 0.0005, 0.0005)),
        ({"z": "pixel", "y": "pixel", "x": "pixel"}, (None, None, None)),
        ({}, (None, None, None)),
        ({"y": "micrometer", "x": "micrometer"}, (None, 0.5, 0.5)),
        ({"z": "second", "y": "micrometer", "x": "micrometer"}, (None, 0.5, 0.5)),
    ],
)
def test_an_axis_without_a_unit_of_length_states_no_size(
    tiny: Path, units: dict[str, str], voxel_size: tuple[float | None, ...]
) -> None:
    """The scales are 1, 0.5 and 0.5. ngio calls a missing unit micrometre."""

    def change(ome: dict) -> None:
        for axis in ome["multiscales"][0]["axes"]:
            axis.pop("unit", None)
            axis |= {"unit": units[axis["name"]]} if axis["name"] in units else {}

    for field in tiny.glob("*/*/*/zarr.json"):
        _metadata(field, change)
    assert open_plate(tiny).voxel_size == voxel_size


def test_a_five_axis_label_is_flattened(tmp_path: Path) -> None:
    array = np.ones((1, 1, 3, 16, 16), np.uint16)
    label = np.arange(3 * 256, dtype=np.uint32).reshape(1, 1, 3, 16, 16)
    path = foreign_plate(tmp_path / "P.zarr", {"A/1/0": array}, "tczyx", label=label, label_axes="tczyx")
    plate = open_plate(path)
    np.testing.assert_array_equal(read_label(plate, plate.fields[0], "cells"), label[0, 0])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((4, 4), -1, np.int32), "range from -1"),
        (np.full((4, 4), 65536, np.uint32), "65536"),
        (np.array([[np.nan, 1], [2, 3]], np.float32), "NaN"),
        (np.array([[0.1, 0.5], [0.2, 1.0]], np.float32), "not whole numbers"),
        (np.array([[0.1, 0.5], [0.2, 1.07]], np.float32), "not whole numbers"),
        (np.array([[90.0, 900.5], [200.0, 1000.0]], np.float64), r"not whole numbers \(900.5\)"),
    ],
)
def test_values_that_16_bits_cannot_hold_are_refused(tmp_path: Path, array: np.ndarray, says: str) -> None:
    plate = open_plate(foreign_plate(tmp_path / "P.zarr", {"A/1/0": np.tile(array, (4, 4))}, "yx"))
    with pytest.raises(PlateError, match=says):
        read_field(plate, plate.fields[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_values_that_fit_are_kept(tmp_path: Path, dtype: type) -> None:
    array = np.random.default_rng(0).integers(2, 250, (16, 16))
    plate = open_plate(foreign_plate(tmp_path / "P.zarr", {"A/1/0": array.astype(dtype)}, "yx"))
    np.testing.assert_array_equal(read_field(plate, plate.fields[0])[0, 0], array)


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    path = foreign_plate(tmp_path / "P.zarr", {"A/1/0": np.ones((2, 1, 1, 16, 16), np.uint16)}, "tczyx")
    with pytest.raises(PlateError, match="2 time points"):
        open_plate(path)


def test_a_field_that_differs_is_a_bad_field(tmp_path: Path) -> None:
    two, one = np.ones((2, 2, 16, 16), np.uint16), np.ones((1, 2, 16, 16), np.uint16)
    plate = open_plate(foreign_plate(tmp_path / "P.zarr", {"A/1/0": two, "A/1/1": one, "A/2/0": two}, "czyx"))
    assert [f.path for f in plate.fields] == ["A/1/0", "A/2/0"]
    ((field, reason),) = plate.bad_fields.items()
    assert (field.path, field.site) == ("A/1/1", 2) and "1 channels, most fields have 2" in reason


def test_swapped_channels_make_a_bad_field(tiny: Path) -> None:
    def swap(ome: dict) -> None:
        ome["omero"]["channels"].reverse()

    _metadata(tiny / "A" / "01" / "1" / "zarr.json", swap)
    plate = open_plate(tiny)
    assert plate.channels == TINY.stains
    assert [field.path for field in plate.bad_fields] == ["A/01/1"]


@pytest.mark.parametrize(
    "change",
    [lambda channels: channels.pop(), lambda channels: channels.append({**channels[0], "label": "one more"})],
)
def test_a_field_that_names_too_few_or_too_many_channels_is_bad(tiny: Path, change: Callable[[list], object]) -> None:
    _metadata(tiny / "A" / "01" / "1" / "zarr.json", lambda ome: change(ome["omero"]["channels"]))
    plate = open_plate(tiny)
    assert plate.channels == TINY.stains and len(plate.fields) == 7
    ((field, reason),) = plate.bad_fields.items()
    assert field.path == "A/01/1" and "metadata" in reason and "channels" in reason


def test_a_field_without_pixels_is_bad(tiny: Path) -> None:
    array = tiny / "A" / "01" / "1" / "0" / "zarr.json"
    array.write_text(json.dumps(json.loads(array.read_text()) | {"shape": [4, 4, 0, 64]}))
    assert [field.path for field in open_plate(tiny).bad_fields] == ["A/01/1"]


def test_a_well_without_metadata_is_reported_and_the_others_are_read(tiny: Path) -> None:
    (tiny / "A" / "02" / "zarr.json").unlink()
    plate = open_plate(tiny)
    assert len(plate.fields) == 6
    assert [(field.well, "A02" in reason) for field, reason in plate.bad_fields.items()] == [("A02", True)]


def test_a_missing_array_is_a_bad_field(tiny: Path) -> None:
    shutil.rmtree(tiny / "A" / "02" / "0" / "0")
    assert [field.path for field in open_plate(tiny).bad_fields] == ["A/02/0"]


@pytest.mark.parametrize("path", ["../x", "A/..", "A/01/0", "A", "/etc/passwd", "A/0 1", "A/01\n"])
def test_a_well_path_that_leaves_the_plate_is_refused(tiny: Path, path: str) -> None:
    _metadata(tiny / "zarr.json", lambda ome: ome["plate"]["wells"][0].update(path=path))
    with pytest.raises(PlateError):
        open_plate(tiny)


@pytest.mark.parametrize("path", ["..", "../../B/01/0", "/etc", ".hidden"])
def test_a_field_path_that_leaves_its_well_is_refused(tiny: Path, path: str) -> None:
    _metadata(tiny / "A" / "01" / "zarr.json", lambda ome: ome["well"]["images"][0].update(path=path))
    plate = open_plate(tiny)
    assert {f.well for f in plate.fields} == {"A02", "A03", "B01"}


def test_an_array_path_that_leaves_its_field_is_refused(tiny: Path) -> None:
    def escape(ome: dict) -> None:
        ome["multiscales"][0]["datasets"][0]["path"] = "../1/0"

    _metadata(tiny / "A" / "01" / "0" / "zarr.json", escape)
    assert [field.path for field in open_plate(tiny).bad_fields] == ["A/01/0"]


def test_one_well_under_two_paths_is_refused(tmp_path: Path) -> None:
    array = np.ones((8, 8), np.uint16)
    path = foreign_plate(tmp_path / "P.zarr", {"A/1/0": array, "A/01/0": array}, "yx")
    with pytest.raises(PlateError, match="well A01"):
        open_plate(path)


def test_a_truncated_chunk_is_reported_with_its_place(tiny: Path) -> None:
    chunk = next(path for path in sorted((tiny / "A" / "01" / "0" / "0" / "c").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:50])
    plate = open_plate(tiny)
    with pytest.raises(PlateError, match=r"well A01, site 1.*pixels cannot be read"):
        read_field(plate, plate.fields[0])


def test_plates_of_the_ome_zarr_examples(shared: Callable[[str], Path]) -> None:
    root = shared("ngff_foreign")
    plate = open_plate(root / "ome-zarr-examples/data/valid/plate-01.zarr")
    assert [f.well for f in plate.fields] == ["A01", "A02", "B01", "B02"] and plate.ngff_version == "0.4"
    assert read_field(plate, plate.fields[0]).shape == (1, 1, 1000, 1000)
    assert plate.voxel_size == (None, 1.0, 1.0), "it has no z"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("ez_zarr/tests/example_data/plate_ones.zarr", "B/03: well B03 has no readable metadata"),
        ("ome-zarr-examples/data/valid/image-02.zarr", "not an OME-Zarr plate"),
        ("yaozarrs/tests/data/v05/76-45.ome.zarr", "none of its"),
        ("nowhere.zarr", "not an OME-Zarr plate"),
    ],
)
def test_foreign_folders_that_must_be_refused(shared: Callable[[str], Path], path: str, says: str) -> None:
    with pytest.raises(PlateError, match=says):
        open_plate(shared("ngff_foreign") / path)


def test_a_real_stack_by_a_foreign_writer(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    tifffile = pytest.importorskip("tifffile")
    stack = tifffile.imread(shared("plantseg_rgb3d") / "tests/resources/rgb_3D.tif").transpose(1, 0, 2, 3)
    for version in FORMATS:
        plate: Plate = open_plate(
            foreign_plate(tmp_path / f"P{version}.zarr", {"C/4/0": stack}, "czyx", version, ["DNA", "AGP"])
        )
        assert plate.channels == ("DNA", "AGP")
        assert plate.voxel_size == (None, None, None)
        np.testing.assert_array_equal(read_field(plate, plate.fields[0]), stack)


def plate_around(image: Path, plate: Path) -> Path:
    """A plate whose one field is a copy of a foreign image, of the NGFF version the image has."""
    shutil.copytree(image, plate / "A" / "1" / "0")
    row = {"rows": [{"name": "A"}], "columns": [{"name": "1"}]}
    meta: dict[Path, dict] = {
        plate: {"plate": {**row, "wells": [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}], "version": "0.4"}},
        plate / "A": {},
        plate / "A" / "1": {"well": {"images": [{"path": "0"}], "version": "0.4"}},
    }
    for folder, content in meta.items():
        if (image / "zarr.json").exists():
            attributes = {"ome": {"version": "0.5", **content}} if content else {}
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            (folder / "zarr.json").write_text(json.dumps(group))
        else:
            (folder / ".zgroup").write_text('{"zarr_format": 2}')
            (folder / ".zattrs").write_text(json.dumps(content))
    return plate


_EXAMPLES = "ome-zarr-examples/data/"


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (_EXAMPLES + "valid/image-01.zarr", (1, 1, 1000, 1000)),
        (_EXAMPLES + "valid/image-04.zarr", (1, 2, 64, 64)),
        (_EXAMPLES + "warning/image-01.zarr", (1, 1, 64, 64)),
    ],
)
def test_valid_foreign_images_are_read(
    shared: Callable[[str], Path], tmp_path: Path, image: str, shape: tuple[int, ...]
) -> None:
    plate = open_plate(plate_around(shared("ngff_foreign") / image, tmp_path / "p.zarr"))
    stored = zarr.open_array(shared("ngff_foreign") / image / "0", mode="r")[:]
    np.testing.assert_array_equal(read_field(plate, plate.fields[0]), np.asarray(stored).reshape(shape))


@pytest.mark.parametrize("image", ["valid/image-02.zarr", "valid/image-03.zarr"])
def test_valid_foreign_images_of_fractions_are_refused(
    shared: Callable[[str], Path], tmp_path: Path, image: str
) -> None:
    plate = open_plate(plate_around(shared("ngff_foreign") / _EXAMPLES / image, tmp_path / "p.zarr"))
    with pytest.raises(PlateError, match=r"range from 0\.\d+ to 999\.98\d and are not whole numbers"):
        read_field(plate, plate.fields[0])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (_EXAMPLES + "invalid/image-01.zarr", "multiscales"),
        (_EXAMPLES + "invalid/image-02.zarr", "multiscales"),
        (_EXAMPLES + "invalid/image-03.zarr", "No array found at 0"),
        (_EXAMPLES + "invalid/image-04.zarr", "level 1 has 2 axes, the image has 3"),
        ("ez_zarr/tests/example_data_5d/tubhiswt4D_sub.zarr", "3 time points"),
        ("ez_zarr/tests/example_data/plate_ones.zarr/B/03/0", "path Input should be a valid string"),
    ],
)
def test_invalid_foreign_images_are_refused(
    shared: Callable[[str], Path], tmp_path: Path, image: str, says: str
) -> None:
    with pytest.raises(PlateError, match=says):
        open_plate(plate_around(shared("ngff_foreign") / image, tmp_path / "p.zarr"))


def test_a_broken_plate_keeps_its_good_fields_and_names_the_others(shared: Callable[[str], Path]) -> None:
    plate = open_plate(shared("ngff_foreign") / "yaozarrs/tests/data/broken/broken_v05.ome.zarr")
    assert [field.path for field in plate.fields] == [
        "A/1/1", "A/3/0", "A/3/1", "B/1/1", "B/2/1", "B/3/0", "C/1/0", "C/2/1",
    ]  # fmt: skip
    reasons = {field.path: reason for field, reason in plate.bad_fields.items()}
    assert set(reasons) == {"A/1/0", "A/2", "B/1/0", "B/2/0", "B/3/1", "C/1/1", "C/2/0", "C/3"}
    assert all(reasons.values())
    assert plate.voxel_size == (None, None, None), "its axes have the scale 1 and no unit"


def test_a_plate_of_an_archive_states_no_z_step(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """Metadata only; the arrays are made up. Its y and x are in micrometres, its z has the scale 1 and no unit."""
    plate = plate_around(shared("ngff_foreign") / "yaozarrs/tests/data/v04/2551.zarr/A/2/2", tmp_path / "p.zarr")
    image = plate / "A" / "1" / "0"
    (image / ".zgroup").write_text('{"zarr_format": 2}')
    for dataset in json.loads((image / ".zattrs").read_text())["multiscales"][0]["datasets"]:
        zarr.create_array(image / dataset["path"], shape=(2, 1, 8, 8), dtype="uint16", zarr_format=2, overwrite=True)
    assert open_plate(plate).voxel_size == (None, pytest.approx(0.1077, abs=1e-4), pytest.approx(0.1077, abs=1e-4))


def test_fields_of_known_and_unknown_size_are_not_mixed(tiny: Path) -> None:
    def change(ome: dict) -> None:
        for axis in ome["multiscales"][0]["axes"]:
            axis.pop("unit", None)

    _metadata(tiny / "A/01/0/zarr.json", change)
    plate = open_plate(tiny)
    assert plate.voxel_size == (1.0, 0.5, 0.5)
    (reason,) = plate.bad_fields.values()
    assert reason == "its voxel size is (unknown, unknown, unknown) um, most fields have (1, 0.5, 0.5) um"


@pytest.mark.parametrize("shape", [[2**18, 8], [2**17, 2**17, 2]])
def test_arrays_of_absurd_shape_are_refused(tiny: Path, shape: list[int]) -> None:
    array = tiny / "A" / "01" / "0" / "0" / "zarr.json"
    meta = json.loads(array.read_text())
    meta["shape"] = [1, 1, *shape][-4:] if len(shape) == 2 else [1, *shape]
    array.write_text(json.dumps(meta))
    plate = open_plate(tiny)
    reason = next(reason for field, reason in plate.bad_fields.items() if field.path == "A/01/0")
    assert "implausible shape" in reason
