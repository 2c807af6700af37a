from __future__ import annotations

import time

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import regionprops

from gradcamo_assets.cells import CELL_SCHEMA, cell_table, match_labels
from gradcamo_assets.segmentation.masks import CONFIDENCE_SCHEMA

LABELS = hnp.arrays(
    np.uint32, st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 5)
)


@given(LABELS)
def test_geometry_agrees_with_skimage(cells):
    table = cell_table(cells, np.zeros_like(cells))
    assert table.schema == pl.Schema(CELL_SCHEMA)
    properties = regionprops(cells.astype(np.int32))
    assert table["label"].to_list() == [p.label for p in properties]
    for row, p in zip(table.iter_rows(named=True), properties, strict=True):
        np.testing.assert_allclose([row["centroid_z"], row["centroid_y"], row["centroid_x"]], p.centroid)
        assert p.bbox == tuple(row[f"bbox_{axis}{end}"] for end in (0, 1) for axis in "zyx")
        assert row["volume_voxels"] == p.area
        z, y, x = p.coords.T
        depth, height, width = cells.shape
        assert row["touches_xy_border"] == bool(((y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)).any())
        assert row["touches_z_border"] == (depth > 1 and bool(((z == 0) | (z == depth - 1)).any()))
        assert row["nucleus_label"] is None
        assert row["n_nuclei"] == 0


@given(LABELS, st.integers(0, 2**31))
def test_nuclei_agree_with_a_loop(cells, seed):
    nuclei = np.random.default_rng(seed).integers(0, 6, cells.shape).astype(np.uint32)
    table = cell_table(cells, nuclei)
    owners: dict[int, list[tuple[int, int]]] = {}
    for nucleus in np.unique(nuclei[nuclei > 0]).tolist():
        shares = [(-int(((nuclei == nucleus) & (cells == c)).sum()), c) for c in np.unique(cells[cells > 0]).tolist()]
        shares = [share for share in shares if share[0] < 0]
        if shares:
            share, owner = min(shares)
            owners.setdefault(owner, []).append((share, nucleus))
    for row in table.iter_rows(named=True):
        nuclei_of_cell = owners.get(row["label"], [])
        assert row["n_nuclei"] == len(nuclei_of_cell)
        assert row["nucleus_label"] == (min(nuclei_of_cell)[1] if nuclei_of_cell else None)


@given(LABELS, st.integers(0, 2**31))
def test_matching_agrees_with_a_loop(predicted, seed):
    truth = np.random.default_rng(seed).integers(0, 4, predicted.shape).astype(np.uint32)
    table = match_labels(predicted, truth)
    assert table["label"].to_list() == np.unique(predicted[predicted > 0]).tolist()
    for row in table.iter_rows(named=True):
        inside = predicted == row["label"]
        shared = {t: int((inside & (truth == t)).sum()) for t in (1, 2, 3)}
        best = max(shared, key=lambda t: (shared[t], -t))
        if shared[best] == 0:
            assert (row["true_label"], row["overlap"], row["iou"]) == (None, 0.0, 0.0)
        else:
            assert row["true_label"] == best
            assert row["overlap"] == shared[best] / inside.sum()
            assert row["iou"] == shared[best] / (inside | (truth == best)).sum()


def test_empty_masks_give_empty_tables_of_the_same_schema():
    empty = np.zeros((2, 4, 4), np.uint32)
    assert cell_table(empty, empty).schema == pl.Schema(CELL_SCHEMA)
    assert cell_table(empty, empty).is_empty()
    assert match_labels(empty, empty).is_empty()
    assert match_labels(empty, empty).schema == match_labels(empty + 1, empty).schema


def test_thousands_of_cells_take_seconds_at_most():
    cells = np.kron(np.arange(1, 4097, dtype=np.uint32).reshape(64, 64), np.ones((8, 8), np.uint32))[None].repeat(
        4, axis=0
    )
    start = time.perf_counter()
    assert len(cell_table(cells, cells)) == len(match_labels(cells, cells)) == 4096
    assert time.perf_counter() - start < 10


@given(LABELS, st.integers(0, 2**31))
def test_intensities_slices_and_nuclear_shares_agree_with_a_loop(cells, seed):
    rng = np.random.default_rng(seed)
    nuclei, image = rng.integers(0, 3, cells.shape), rng.integers(0, 60000, (2, *cells.shape)).astype(np.uint16)
    for row in cell_table(cells, nuclei.astype(np.uint32), image=image).iter_rows(named=True):
        inside = cells == row["label"]
        np.testing.assert_allclose(row["mean_intensity"], [channel[inside].mean() for channel in image])
        assert row["n_slices"] == inside.any((1, 2)).sum()
        sizes = {
            n: [(inside & (nuclei == n)).sum(), [((cells == c) & (nuclei == n)).sum() for c in range(1, 6)]]
            for n in (1, 2)
        }
        owned = [
            n
            for n, (shared, by_cell) in sizes.items()
            if shared == max(by_cell) > 0 and by_cell.index(shared) == row["label"] - 1
        ]
        assert row["nucleus_share"] == sum(sizes[n][0] for n in owned) / inside.sum()
        assert row["qc_warning"] == {0: "no nucleus", 1: None, 2: "2 nuclei"}[len(owned)]


def test_without_a_nucleus_stain_nothing_is_said_about_nuclei():
    table = cell_table(np.array([[[1, 1, 0, 2]]], np.uint32), None)
    assert table.select("n_nuclei", "nucleus_label", "nucleus_share", "qc_warning").rows() == [(None,) * 4] * 2


def test_confidence_joins_its_cell():
    cells = np.array([[[1, 1, 0, 3, 3]]], np.uint32)
    row = {"label": 3, "cell_probability": 0.9, "flow_error": 0.1, "stitch_breaks": 2}
    table = cell_table(cells, cells, confidence=pl.DataFrame([row], schema=CONFIDENCE_SCHEMA))
    assert table.select(*row).rows() == [(1, None, None, None), tuple(row.values())]
