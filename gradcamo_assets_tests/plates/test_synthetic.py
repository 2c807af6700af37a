"""Properties of synthetic plates on which training and tests rely."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ngio
import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from gradcamo_assets.errors import PlateError
from gradcamo_assets.synthetic import SyntheticPlate, render_field, write_synthetic_plate
from gradcamo_assets.synthetic.render import signature

CONFIG = SyntheticPlate(shape=(8, 128, 128), cells=6, seed=3)


def test_a_field_depends_on_well_site_and_seed_alone() -> None:
    alone = render_field(CONFIG, 7, 2)
    again = render_field(replace(CONFIG, wells=12, sites=5), 7, 2)
    np.testing.assert_array_equal(alone.cells, again.cells)
    np.testing.assert_array_equal(alone.image, again.image)
    assert (render_field(CONFIG, 7, 1).image != alone.image).any()
    assert (render_field(replace(CONFIG, seed=4), 7, 2).image != alone.image).any()


@pytest.mark.parametrize("shortcut", ["none", "neighbour"])
def test_masks_are_true(shortcut: str) -> None:
    field = render_field(replace(CONFIG, shortcut=shortcut), 0, 1)
    labels = field.table["label"].to_list()
    assert field.image.dtype == np.uint16 and field.image.shape == (5, 8, 128, 128)
    assert sorted(set(np.unique(field.cells)) - {0}) == labels == sorted(set(np.unique(field.nuclei)) - {0})
    inside = field.nuclei > 0
    np.testing.assert_array_equal(field.nuclei[inside], field.cells[inside])
    for label in labels:
        inside_cell = field.cells == label
        pieces, count = ndimage.label(inside_cell)
        assert np.bincount(pieces.ravel())[1:].max() > 0.95 * inside_cell.sum(), f"cell {label} is in {count} pieces"
        width = inside_cell.any(axis=0).any(axis=0).sum()
        assert width <= 48
    dna = field.image[0].astype(float)
    assert np.median(dna[inside]) > 3 * np.median(dna[field.cells == 0])


def test_classes_are_balanced_and_spread_over_the_plate() -> None:
    config = SyntheticPlate()
    counts = {t: config.layout.count(t) for t in config.treatments}
    assert set(counts.values()) == {6} and [t.dose for t in config.treatments] == [0, 0.1, 1, 10]
    for line in (0, slice(1, None)):  # rows, then columns
        of_class = [{w[line] for w, t in zip(config.well_names, config.layout, strict=True) if t == c} for c in counts]
        assert all(len(lines) >= 2 for lines in of_class)


def test_a_signature_moves_with_dose_and_keeps_its_sum() -> None:
    signatures = [signature(level, CONFIG.stains) for level in np.linspace(0, 1, 7)]
    assert all(a.size < b.size for a, b in pairwise(signatures))
    assert all(sum(one.balance.values()) == pytest.approx(1) for one in signatures)
    centre = [np.dot(list(one.balance.values()), range(4)) for one in signatures]
    assert all(a < b for a, b in pairwise(centre))


def _granularity(field: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Local contrast of every channel in a region; debris is too rare to matter."""
    image = field.astype(float)
    detail = image - ndimage.gaussian_filter(image, (0, 0, 4, 4))
    return np.array([np.ptp(np.percentile(channel[where], (2, 98))) for channel in detail])


@pytest.mark.parametrize("shortcut", ["none", "background", "neighbour"])
def test_the_class_shows_only_where_it_was_painted(shortcut: str) -> None:
    config = replace(CONFIG, shortcut=shortcut, doses=1, cells=8, shape=(8, 160, 160))
    wells = [next(i for i, t in enumerate(config.layout) if t.level == level) for level in (0.0, 1.0)]
    seen = []
    for well in wells:
        field = render_field(config, well, 1)
        bystanders = field.table.filter(pl.col("kind") == "bystander")["label"].to_list()
        bystander = np.isin(field.cells, bystanders)
        regions = {
            "target": (field.cells > 0) & ~bystander & (field.nuclei == 0),
            "neighbour": bystander & (field.nuclei == 0),
            # Far enough from cells for the filter that measures contrast.
            "background": np.broadcast_to(
                ndimage.distance_transform_edt((field.cells == 0).all(axis=0)) > 14, field.cells.shape
            ),
        }
        seen.append({name: _granularity(field.image, where) for name, where in regions.items() if where.any()})
    er, mito = 1, 4
    low, high = ({name: contrast[er] / contrast[mito] for name, contrast in field.items()} for field in seen)
    ratio = {name: low[name] / high[name] for name in low}
    painted = {"none": "target"}.get(shortcut, shortcut)
    assert ratio.pop(painted) > 2
    assert all(0.4 < other < 1.8 for other in ratio.values()), ratio


def test_background_shift_changes_the_background_alone_and_cells_show_the_class() -> None:
    shared = {"labels": "cell", "cells": 8, "shape": (10, 128, 128), "doses": 1}
    no_shortcut, own_glow, other_glow = (
        render_field(replace(CONFIG, **shared, **more), 0, 1)
        for more in ({}, *({"shortcut": "background", "background_shift": shift} for shift in (0, 1)))
    )
    assert own_glow.table.equals(other_glow.table) and own_glow.table.equals(no_shortcut.table)
    depth = ndimage.distance_transform_edt(own_glow.cells > 0, sampling=(2.5, 1, 1))
    away = ndimage.distance_transform_edt(own_glow.cells == 0, sampling=(2.5, 1, 1))
    same = own_glow.image == other_glow.image
    assert same[:, depth > 6].all() and same[1:, away > 6].mean() < 0.5
    # Cells look as on a plate without a shortcut, so they show their class.
    inside = depth > 6
    for label in own_glow.table["label"]:
        in_cell = inside & (own_glow.cells == label) & (own_glow.nuclei == 0)
        if in_cell.sum() > 200:
            contrasts = [_granularity(field.image, in_cell) for field in (own_glow, no_shortcut)]
            np.testing.assert_allclose(*contrasts, rtol=0.35)


def test_every_target_has_a_bystander_close_by() -> None:
    field = render_field(replace(CONFIG, shortcut="neighbour", cells=8, shape=(6, 160, 160)), 0, 1)
    kinds = dict(field.table.select("label", "kind").iter_rows())
    bystander = np.isin(field.cells, [k for k, v in kinds.items() if v == "bystander"]).any(axis=0)
    distance = ndimage.distance_transform_edt(~bystander)
    targets = [k for k, v in kinds.items() if v == "target"]
    assert 0.3 < len(targets) / len(kinds) < 0.7
    for label in targets:
        assert distance[(field.cells == label).any(axis=0)].min() <= 20


def test_pooled_cells_have_treatments_of_their_own() -> None:
    config = replace(CONFIG, labels="cell", cells=12, shape=(6, 192, 192))
    table = render_field(config, 0, 1).table
    counts = table.group_by("Metadata_Dose").len()["len"]
    assert len(counts) == 4 and counts.max() - counts.min() <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": "cell", "shortcut": "neighbour"},
        {"channels": 3},
        {"shortcut": "none", "background_shift": 1},
        {"shape": (4, 8, 8)},
        {"name": "../x"},
        {"doses": 0},
    ],
)
def test_invalid_plates_are_rejected(wrong: dict) -> None:
    with pytest.raises(PlateError):
        SyntheticPlate(**wrong)


def test_a_written_plate_equals_the_rendered_fields(pristine: Path, tmp_path: Path) -> None:
    config = SyntheticPlate(name="p", wells=2, sites=1, shape=(3, 64, 64), doses=1, cells=2, labels="cell", seed=9)
    path = write_synthetic_plate(tmp_path, config)
    assert path == tmp_path / "p.zarr"
    rendered = render_field(config, 1, 1)
    row, column = config.well_names[1][0], config.well_names[1][1:]
    stored = ngio.open_ome_zarr_container(str(path / row / column / "0"), mode="r")
    np.testing.assert_array_equal(stored.get_image().get_as_numpy(), rendered.image)
    np.testing.assert_array_equal(stored.get_label("cells").get_as_numpy(), rendered.cells)
    np.testing.assert_array_equal(stored.get_label("nuclei").get_as_numpy(), rendered.nuclei)
    plate_map = pl.read_csv(tmp_path / "p.csv")
    assert plate_map["Metadata_Compound"].to_list() == ["pooled"] * 2
    assert pl.read_csv(tmp_path / "p.labels.csv").height >= 2
    assert not (pristine / "tiny.labels.csv").exists()
