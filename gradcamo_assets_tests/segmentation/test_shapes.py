"""Shapes and distances compared with formulas, scikit-image and loops over all voxels."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from skimage.draw import disk
from skimage.measure import perimeter_crofton, regionprops
from skimage.morphology import convex_hull_image

from gradcamo_assets.cells import cell_table
from gradcamo_assets_tests.segmentation.test_cells import LABELS


def ellipsoid(radii: tuple[float, float, float], voxel: tuple[float, float, float], at: float = 0.0) -> np.ndarray:
    axes = [np.arange(-np.ceil(r / v) - 1, np.ceil(r / v) + 2) * v + at * v for r, v in zip(radii, voxel, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return (sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True)) <= 1).astype(np.uint32)


def measure_single_cell(cells: np.ndarray, voxel: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> dict:
    return cell_table(cells, np.zeros_like(cells), voxel).row(0, named=True)


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.5), (3.0, 0.3, 0.3)])
@pytest.mark.parametrize("radii", [(10.0, 10.0, 10.0), (6.0, 10.0, 10.0), (6.0, 9.0, 13.0)])
@pytest.mark.parametrize("at", [0.0, 0.37])
def test_sphericity_of_ellipsoids_follows_knud_thomsens_formula(radii, voxel, at):
    """The error of the formula is at most 1.2%; a sphere has 1."""
    a, b, c = radii
    surface = 4 * np.pi * (((a * b) ** 1.6075 + (a * c) ** 1.6075 + (b * c) ** 1.6075) / 3) ** (1 / 1.6075)
    expected = np.pi ** (1 / 3) * (8 * np.pi * a * b * c) ** (2 / 3) / surface
    assert measure_single_cell(ellipsoid(radii, voxel, at), voxel)["sphericity"] == pytest.approx(expected, rel=0.05)


def test_two_joined_balls_are_less_spherical_and_less_solid_than_one():
    ball = ellipsoid((8.0, 8.0, 8.0), (1.0, 1.0, 1.0))
    pair = np.concatenate([ball, ball], axis=2)
    one, two = measure_single_cell(ball), measure_single_cell(pair)
    # Twice the volume and surface of one ball. The hull is a ball and a cylinder as long as the distance of centres.
    assert two["sphericity"] == pytest.approx(2 ** (-1 / 3), rel=0.07)
    assert two["solidity"] == pytest.approx(one["solidity"] * (8 / 3) / (4 / 3 + 19 / 8), rel=0.05)


def test_flat_cells_are_measured_as_scikit_image_does():
    plane = np.zeros((80, 90), np.uint32)
    for label, centre in enumerate([(25, 25), (40, 40)], start=1):
        plane[disk(centre, 15 + label)] = label
    plane[60:70, 10:80] = 3
    table = cell_table(plane[None], np.zeros_like(plane[None]), (7.0, 0.5, 0.5))
    for row, p in zip(table.iter_rows(named=True), regionprops(plane.astype(int)), strict=True):
        expected = min(1.0, 4 * np.pi * p.area / perimeter_crofton(p.image, 4) ** 2)
        assert row["sphericity"] == pytest.approx(expected, rel=1e-9)
        assert row["solidity"] == pytest.approx(p.solidity, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_solidity_agrees_with_scikit_images_hull(seed):
    """On joined balls; scikit-image counts the voxels of the hull, which here is a volume."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((24, 40, 40), np.uint32)
    grid = np.indices(cells.shape)
    for centre in rng.uniform(9, (15, 31, 31), (3, 3)):
        cells[((grid - centre[:, None, None, None]) ** 2).sum(0) < rng.uniform(5, 9) ** 2] = 1
    assert measure_single_cell(cells)["solidity"] == pytest.approx(
        (cells > 0).sum() / convex_hull_image(cells).sum(), abs=0.03
    )


@given(st.tuples(*[st.integers(1, 9)] * 3))
def test_boxes_are_solid(size):
    cells = np.pad(np.ones(size, np.uint32), 1)
    row = measure_single_cell(cells)
    assert row["solidity"] == pytest.approx(1.0)
    assert row["n_slices"] == size[0]


@given(LABELS, st.tuples(*[st.floats(0.2, 5)] * 3))
@example(np.array([[[1, 0, 0], [0, 0, 2]]], np.uint32), (1.0, 1.0, 3.0))
def test_the_nearest_neighbour_agrees_with_a_loop_over_pairs_of_voxels(cells, voxel):
    table = cell_table(cells, np.zeros_like(cells), voxel)
    for row in table.iter_rows(named=True):
        voxels, others = np.argwhere(cells == row["label"]), np.argwhere((cells > 0) & (cells != row["label"]))
        if not len(others):
            assert row["nearest_neighbour_um"] is None
            continue
        faces = (np.abs(voxels[:, None] - others).sum(-1) == 1).any()
        expected = 0.0 if faces else cdist(voxels * voxel, others * voxel).min()
        assert row["nearest_neighbour_um"] == pytest.approx(expected)


def test_the_nearest_neighbour_of_scattered_balls():
    rng, voxel = np.random.default_rng(3), np.array([2.0, 0.5, 0.5])
    cells = np.zeros((12, 90, 90), np.uint32)
    grid = np.indices(cells.shape)
    for label in range(1, 25):
        centre = rng.uniform(4, np.array(cells.shape) - 4)[:, None, None, None]
        cells[(((grid - centre) * voxel[:, None, None, None]) ** 2).sum(0) < rng.uniform(1, 4) ** 2] = label
    table = cell_table(cells, np.zeros_like(cells), tuple(voxel))
    assert (table["nearest_neighbour_um"] > 0).any()
    for label, gap in table.filter(pl.col("nearest_neighbour_um") > 0).select("label", "nearest_neighbour_um").rows():
        voxels, others = np.argwhere(cells == label), np.argwhere((cells > 0) & (cells != label))
        assert gap == pytest.approx(cdist(voxels * voxel, others * voxel).min())


def test_the_nearest_neighbour_among_many_cells_of_all_sizes_agrees_with_all_pairs_of_voxels():
    """A large cell is near although its centre is far, and a cell inside a ring has the ring's centre."""
    rng, voxel = np.random.default_rng(0), np.array([1.0, 0.5, 0.5])
    cells = np.zeros((1, 150, 150), np.uint32)
    y, x = np.mgrid[:150, :150]
    cells[0, 60:64] = 1
    cells[0][np.abs(np.hypot(y - 110, x - 60) - 20) < 2] = 2
    cells[0][np.hypot(y - 110, x - 60) < 4] = 3
    for label in range(4, 120):
        centre_y, centre_x = rng.uniform(0, 150, 2)
        place = np.hypot(y - centre_y, x - centre_x) < rng.uniform(1, 4)
        if not cells[0][place].any():
            cells[0][place] = label
    table = cell_table(cells, np.zeros_like(cells), tuple(voxel))
    points, labels = np.argwhere(cells) * voxel, cells[cells > 0]
    distances = cdist(points, points)
    for label, gap in table.select("label", "nearest_neighbour_um").rows():
        nearest = distances[labels == label][:, labels != label].min()
        assert gap == pytest.approx(0.0 if nearest <= 0.5 else nearest)


def test_without_a_voxel_size_only_what_needs_it_is_unknown():
    """Two touching cells and one apart, 2 slices thick; in a single slice pixels are square."""
    cells = np.zeros((4, 20, 20), np.uint32)
    cells[1:3, 2:6, 2:6], cells[1:3, 2:6, 6:10], cells[1:3, 14:18, 14:18] = 1, 2, 3
    nuclei = np.zeros_like(cells)
    known, unknown = cell_table(cells, nuclei, (2.0, 0.5, 0.5)), cell_table(cells, nuclei, (None, 0.5, 0.5))
    needs_size = ["sphericity", "nearest_neighbour_um"]
    assert unknown.drop(needs_size).equals(known.drop(needs_size))
    assert unknown["nearest_neighbour_um"].to_list() == [0.0, 0.0, None]
    assert unknown["sphericity"].to_list() == [None] * 3
    # From (5, 9) to (14, 14) in pixels of 0.5 um.
    assert known["nearest_neighbour_um"][2] == pytest.approx(0.5 * np.hypot(9, 5))

    flat = cells[1:2]
    rows = [cell_table(flat, nuclei[1:2], size) for size in ((None, 0.5, 0.5), (7.0, 0.5, 0.5), (None, None, None))]
    assert rows[0].equals(rows[1])
    assert rows[2]["sphericity"].to_list() == pytest.approx(rows[0]["sphericity"].to_list())
    assert rows[2]["nearest_neighbour_um"].to_list() == [0.0, 0.0, None]
