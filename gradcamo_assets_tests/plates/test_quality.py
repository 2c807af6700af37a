"""Image quality compared with brute-force calculations."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from gradcamo_assets.plates.image_quality import FieldMeter, center_and_scale, field_warnings


def field_quality(image: np.ndarray) -> SimpleNamespace:
    meter = FieldMeter("")
    for stack in image:
        meter.add(stack)
    return SimpleNamespace(**meter.quality())


def _field(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(100, 3000, (2, 5, 40, 40)).astype(np.uint16)


def test_the_sharpest_slice_is_found() -> None:
    image = _field(np.random.default_rng(0))
    blurred = np.stack([[ndimage.gaussian_filter(p, 0.5 + abs(z - 3)) for z, p in enumerate(c)] for c in image])
    assert field_quality(blurred).focus_slice == 3
    assert field_quality(blurred).focus_score < field_quality(image).focus_score


def test_focus_does_not_depend_on_gain() -> None:
    image = _field(np.random.default_rng(1))
    assert field_quality(image * 10).focus_score == pytest.approx(field_quality(image).focus_score, rel=1e-4)


@pytest.mark.parametrize("ceiling", [255, 4095, 65535])
def test_saturation_counts_pixels_at_the_ceiling(ceiling: int) -> None:
    image = np.full((1, 2, 10, 10), 7, np.uint16)
    image[0, 0, :3] = ceiling
    assert field_quality(image).saturation == pytest.approx(30 / 200)


def test_only_a_constant_field_is_empty() -> None:
    image = np.full((2, 3, 8, 8), 5, np.uint16)
    assert field_quality(image).qc_flag == "empty"
    image[1, 2, 4, 4] = 6
    assert field_quality(image).qc_flag is None


def test_percentiles_agree_with_numpy() -> None:
    image = _field(np.random.default_rng(2))
    quality = field_quality(image)
    assert quality.intensity_median == [float(np.median(channel)) for channel in image]
    assert quality.intensity_p99 == pytest.approx([float(np.percentile(channel, 99)) for channel in image])


def _sample(image: np.ndarray, name: str = "A01_s1") -> np.ndarray:
    meter = FieldMeter(name)
    for stack in image:
        meter.add(stack)
    return meter.sample


def test_plate_statistics_match_those_of_all_pixels() -> None:
    rng = np.random.default_rng(3)
    fields = [rng.normal([[[[500]]], [[[9000]]]], 100, (2, 4, 64, 64)).astype(np.uint16) for _ in range(4)]
    center, scale = center_and_scale([_sample(field, str(index)) for index, field in enumerate(fields)])
    pixels = np.concatenate([f.reshape(2, -1) for f in fields], axis=1)
    assert center == pytest.approx(np.median(pixels, axis=1), abs=5)
    assert scale == pytest.approx(np.percentile(pixels, 99, axis=1) - np.median(pixels, axis=1), rel=0.05)


def test_a_flat_channel_has_scale_one() -> None:
    assert center_and_scale([_sample(np.full((1, 1, 8, 8), 40, np.uint16))]) == ([40.0], [1.0])


def test_noise_is_that_of_the_camera_not_of_the_cells() -> None:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:600, :600]
    cells = 2000 * np.exp(-((x % 100 - 50) ** 2 + (y % 100 - 50) ** 2) / 400)
    image = (rng.normal(0, 12, (1, 3, 600, 600)) + 300 + cells).round().astype(np.uint16)
    quality = field_quality(image)
    p5, p99 = np.percentile(image, (5, 99))
    assert quality.background == pytest.approx([p5], rel=0.01)
    assert quality.signal_to_noise[0] == pytest.approx((p99 - p5) / 12, rel=0.25)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_repeated_slices_are_counted(order: list[int]) -> None:
    planes = np.random.default_rng(5).integers(0, 9, (4, 20, 20)).astype(np.uint16)
    expected = sum(one == other for one, other in pairwise(order))
    assert field_quality(planes[order][None]).repeated_slices == [expected]


def _fields(sharp: list[float], flags: list[str | None] | None = None) -> pl.DataFrame:
    rows = {
        "qc_flag": flags or [None] * len(sharp),
        "channel_focus": [[score, 0.2] for score in sharp],
        "repeated_slices": [[0, 0]] * len(sharp),
        "focus_profile": [[[score], [0.2]] for score in sharp],
    }
    return pl.DataFrame(rows, schema_overrides={"qc_flag": pl.String})


def test_a_field_far_below_the_others_is_out_of_focus() -> None:
    scores = [0.10, 0.11, 0.09, 0.12, 0.10, 0.11, 0.10, 0.09, 0.001]
    warnings = field_warnings(_fields(scores), ["DNA", "ER"]).to_list()
    assert warnings[:-1] == [None] * 8 and "DNA is out of focus" in warnings[-1]
    assert field_warnings(_fields(scores[-4:]), ["DNA", "ER"]).to_list() == [None] * 4
    flagged = field_warnings(_fields(scores, [None] * 8 + ["empty"]), ["DNA", "ER"]).to_list()
    assert flagged == [None] * 9


def test_fields_that_differ_a_little_are_not_warned_of() -> None:
    assert field_warnings(_fields([0.1] * 20 + [0.06]), ["DNA", "ER"]).to_list() == [None] * 21


@given(st.integers(2, 600), st.integers(2, 600), st.integers(1, 4))
def test_the_thumbnail_has_the_mean_of_the_plane(height: int, width: int, depth: int) -> None:
    y, x = np.mgrid[:height, :width]
    plane = (1000 + y / height * 500 + x / width * 300).astype(np.uint16)
    meter = FieldMeter("")
    meter.add(np.broadcast_to(plane, (depth, height, width)))
    assert meter.thumbnail.shape == (1, min(32, height), min(32, width))
    assert meter.thumbnail.mean() == pytest.approx(plane.mean(), rel=0.02)
