"""Test cropping against a brute-force loop, the crop store, and the dataset's standardisation."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradcamo_assets.cells import CropConfig, cut_crops, open_crops, write_crops
from gradcamo_assets.cells.cell_rows import TREATMENT_COLUMNS, build_field_cells, number_crops, sample_cells
from gradcamo_assets.cells.crop import qc_flag
from gradcamo_assets.cells.dataset import CropDataset, standardise, standardise_channels_last
from gradcamo_assets.errors import CropError, GradcamoError
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.segmentation import Masks


def _table(cells: np.ndarray) -> pl.DataFrame:
    rows = []
    for label in np.unique(cells[cells > 0]):
        z, y, x = (axis.mean() for axis in np.nonzero(cells == label))
        rows.append({"label": int(label), "centroid_z": z, "centroid_y": y, "centroid_x": x})
    return pl.DataFrame(rows, schema={"label": pl.Int32, **{f"centroid_{a}": pl.Float64 for a in "zyx"}})


@given(
    hnp.arrays(
        np.int32, st.tuples(st.integers(1, 5), st.integers(4, 9), st.integers(4, 9)), elements=st.integers(0, 3)
    ),
    st.tuples(st.integers(1, 7), st.integers(3, 11), st.integers(3, 11)),
)
def test_cutting_against_a_loop_over_voxels(cells: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Every crop voxel is either the field's voxel at one constant shift, or padding with no label."""
    image = np.random.default_rng(0).integers(1, 60000, (2, *cells.shape)).astype(np.uint16)
    fill = np.array([7.0, 9.0])
    table = _table(cells)
    rows = list(table.iter_rows(named=True))
    try:
        crops = list(cut_crops(image, cells, table, CropConfig(shape), fill))
    except CropError:
        return  # A scattered "cell" may have no voxel near its centroid, which is an error.
    for row, (crop, labels) in zip(rows, crops, strict=True):
        start = []
        for axis, n, size in zip("zyx", shape, cells.shape, strict=True):
            centred = round(row[f"centroid_{axis}"] + 0.5 - n / 2)
            start.append(centred if size > n else -((n - size) // 2))
        for z, y, x in np.ndindex(*shape):
            at = (start[0] + z, start[1] + y, start[2] + x)
            if all(0 <= a < s for a, s in zip(at, cells.shape, strict=True)):
                assert (crop[:, z, y, x] == image[(slice(None), *at)]).all()
                expected = 1 if cells[at] == row["label"] else 2 if cells[at] else 0
            else:
                assert crop[:, z, y, x].tolist() == [7, 9]
                expected = 0
            assert labels[z, y, x] == expected


def test_the_centre_of_a_cell_is_the_centre_of_its_crop() -> None:
    cells = np.zeros((1, 40, 40), np.uint32)
    cells[0, 10:20, 14:22] = 5
    _, labels = next(
        cut_crops(np.zeros((1, 1, 40, 40), np.uint16), cells, _table(cells), CropConfig((1, 16, 16)), np.zeros(1))
    )
    _, y, x = np.nonzero(labels == 1)
    assert (y.min(), y.max(), x.min(), x.max()) == (3, 12, 4, 11)


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(CropError, match="differ in shape"):
        next(
            cut_crops(
                np.zeros((1, 2, 8, 8), np.uint16),
                np.ones((2, 8, 9), np.uint32),
                _table(np.ones((2, 8, 9))),
                CropConfig((1, 4, 4)),
                np.zeros(1),
            )
        )
    with pytest.raises(GradcamoError, match="shape"):
        CropConfig((0, 4, 4))


def test_border_cells_are_flagged_and_crops_numbered() -> None:
    cells = pl.DataFrame(
        {"label": [3, 1, 2], "qc_flag": [None, None, "bystander"], "touches_xy_border": [False, True, False]},
        schema_overrides={"qc_flag": pl.String},
    )
    table = number_crops(cells, qc_flag(CropConfig((1, 4, 4))))
    assert table["label"].to_list() == [1, 2, 3]
    assert table["qc_flag"].to_list() == ["touches the field's border", "bystander", None]
    assert table["crop_index"].to_list() == [None, None, 0]
    kept = number_crops(cells, qc_flag(CropConfig((1, 4, 4), keep_border=True)))
    assert kept["crop_index"].to_list() == [0, None, 1]


@given(st.floats(0, 39), st.floats(0, 49), st.sampled_from([(3, 16, 12), (3, 15, 13), (3, 60, 12)]))
def test_without_padding_cells_whose_crop_leaves_the_field_are_left_out(y, x, shape) -> None:
    """The crop is the oracle: one that leaves the field in y or x contains padding, which is 0 here."""
    image, cells = np.ones((1, 2, 40, 50), np.uint16), np.ones((2, 40, 50), np.uint32)
    table = pl.DataFrame(
        {"label": [1], "centroid_z": [0.5], "centroid_y": [y], "centroid_x": [x], "qc_flag": [None],
         "touches_xy_border": [False]}, schema_overrides={"qc_flag": pl.String},
    )  # fmt: skip
    config = CropConfig(shape, pad=False)
    crop, _ = next(cut_crops(image, cells, table, config, np.zeros(1)))
    flag = table.select(qc_flag(config, cells.shape)).item()
    assert flag == (None if crop.max(axis=(0, 1)).all() else "the crop leaves the field")
    assert table.select(qc_flag(CropConfig(shape))).item() is None
    with pytest.raises(CropError, match="field's shape"):
        qc_flag(config)


def make_store(path: Path, n: int, channels: tuple[str, ...] = ("DNA", "ER"), shape: tuple[int, int, int] = (2, 8, 8)):
    """Write a store of ``n`` random crops; return their images and labels."""
    rng = np.random.default_rng(n)
    images = rng.integers(0, 1000, (n, len(channels), *shape)).astype(np.uint16)
    labels = rng.integers(0, 3, (n, *shape)).astype(np.uint8)
    labels[:, :, :2] = 1
    write_crops(
        path, zip(images, labels, strict=True), cell_ids=[f"P/A01/1/{i}" for i in range(n)], shape=shape,
        channels=list(channels), statistics={"center": [100.0, 200.0], "scale": [50.0, 20.0]},
        voxel_size=[1.0, 0.5, 0.5], provenance=Provenance("in", {}, "1"),
    )  # fmt: skip
    return images, labels


@pytest.mark.parametrize(("n", "shards"), [(0, 0), (1, 1), (3, 1), (5, 2), (41, 6)])
def test_stored_crops_equal_written_crops(tmp_path: Path, n: int, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcamo_assets.cells.crop_store._SHARD_BYTES", 9 * 512)
    images, labels = make_store(tmp_path / "a.zarr", n)
    field = open_crops(tmp_path / "a.zarr")
    assert len(field) == n
    got_images, got_labels = field.read(slice(0, n))
    np.testing.assert_array_equal(got_images, images)
    np.testing.assert_array_equal(got_labels, labels)
    for row in range(n):
        image, label = field.read(row)
        np.testing.assert_array_equal(image, images[row])
        np.testing.assert_array_equal(label, labels[row])
    assert field.images.chunks[0] == 1
    for name in ("images", "labels"):
        assert len([path for path in (tmp_path / "a.zarr" / name / "c").rglob("*") if path.is_file()]) == shards


def test_damaged_stores_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CropError, match="cannot be opened"):
        open_crops(tmp_path / "nothing.zarr")
    make_store(tmp_path / "a.zarr", 3)
    chunk = next(path for path in (tmp_path / "a.zarr" / "images").rglob("*") if path.is_file() and path.name == "0")
    chunk.write_bytes(chunk.read_bytes()[:200])
    with pytest.raises(CropError, match=r"a\.zarr"):
        open_crops(tmp_path / "a.zarr").read(0)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    (tmp_path / "b.zarr" / "provenance.json").unlink()
    with pytest.raises(CropError, match="provenance"):
        open_crops(tmp_path / "b.zarr")


def test_a_wrong_number_of_crops_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(CropError, match="0 crops for 1 cells"):
        write_crops(
            tmp_path / "a.zarr", iter([]), cell_ids=["x"], shape=(1, 4, 4), channels=["DNA"],
            statistics={"center": [0.0], "scale": [1.0]}, voxel_size=[1, 1, 1], provenance=Provenance("", {}, ""),
        )  # fmt: skip
    assert not (tmp_path / "a.zarr").exists()


def test_the_dataset_standardises_by_the_plate_and_orders_channels(tmp_path: Path) -> None:
    images, labels = make_store(tmp_path / "a.zarr", 4)
    dataset = CropDataset([open_crops(tmp_path / "a.zarr")], {"P/A01/1/2": 1, "P/A01/1/0": 0}, ["ER", "DNA"])
    assert dataset.targets.tolist() == [0, 1]
    image, label, target = dataset[1]
    np.testing.assert_allclose(image[0], (images[2, 1] - 200.0) / 20, rtol=1e-6)
    np.testing.assert_allclose(image[1], (images[2, 0] - 100.0) / 50, rtol=1e-6)
    np.testing.assert_array_equal(label, labels[2])
    assert target == 1
    with pytest.raises(CropError, match="lack channel Mito"):
        CropDataset([open_crops(tmp_path / "a.zarr")], {}, ["Mito"])


@given(
    hnp.arrays(
        np.uint16,
        st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    ),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 200, 1 << 20]),
)
def test_channels_last_are_the_same_standardised_values(
    images: np.ndarray, random: random.Random, block_bytes: int
) -> None:
    """They are the same bits, for all stored channels and for some of them in another order."""
    stored = images.shape[1]
    order = random.sample(range(stored), random.randint(1, stored))
    center, scale = (np.array([random.uniform(0.1, 3e4) for _ in order], np.float32) for _ in range(2))
    out = np.empty((len(images), *images.shape[2:], len(order)), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradcamo_assets.cells.dataset._BLOCK_BYTES", block_bytes)
        standardise_channels_last(images, order, center, scale, out)
    expected = standardise(torch.from_numpy(images[:, order]), torch.from_numpy(center), torch.from_numpy(scale))
    assert expected.permute(0, 2, 3, 4, 1).numpy().tobytes() == out.tobytes()


def test_standardising_keeps_differences_of_brightness_between_crops() -> None:
    """Standardising per crop would map both crops to the same values."""
    dim, bright = torch.full((1, 1, 2, 4, 4), 100.0), torch.full((1, 1, 2, 4, 4), 300.0)
    center, scale = torch.tensor([100.0]), torch.tensor([50.0])
    assert float(standardise(bright, center, scale).mean() - standardise(dim, center, scale).mean()) == 4.0


def test_the_sample_is_reproducible() -> None:
    cells = pl.DataFrame({"Metadata_CellID": [f"P/A01/1/{i}" for i in range(50)], "label": range(50)})
    first = sample_cells(cells, 8)
    assert len(first) == 8 and first.equals(sample_cells(cells.sample(50, shuffle=True), 8))
    assert len(sample_cells(cells, 99)) == 50


def test_the_volume_of_a_cell_of_unknown_size_is_unknown() -> None:
    cells = np.zeros((2, 8, 8), np.uint32)
    cells[:, 2:5, 2:5] = 1
    well = dict.fromkeys(TREATMENT_COLUMNS)

    def volume(voxel_size: tuple[float | None, ...]) -> float | None:
        frame = build_field_cells(
            Masks(cells, cells), plate="P", well="A01", site=1, voxel_size=voxel_size, well_row=well, mask_version="1"
        )
        assert frame["volume_voxels"].to_list() == [18] and frame.schema["volume_um3"] == pl.Float64
        return frame["volume_um3"][0]

    assert volume((2.0, 0.5, 0.5)) == 9.0
    assert volume((None, 0.5, 0.5)) is None


def test_crops_of_unknown_voxel_size_are_read_back(tmp_path: Path) -> None:
    write_crops(
        tmp_path / "crops.zarr", iter([]), cell_ids=[], shape=(1, 8, 8), channels=["DNA"],
        statistics={"center": [0.0], "scale": [1.0]}, voxel_size=[None, 0.5, 0.5], provenance=Provenance("", {}, ""),
    )  # fmt: skip
    field = open_crops(tmp_path / "crops.zarr")
    assert field.voxel_size == [None, 0.5, 0.5]
