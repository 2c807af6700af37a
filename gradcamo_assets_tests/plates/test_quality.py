"""Image quality against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from gradcamo_assets.plates import PlateStatistics, field_quality


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


def test_plate_statistics_are_those_of_all_pixels() -> None:
    rng = np.random.default_rng(3)
    fields = [rng.normal([[[[500]]], [[[9000]]]], 100, (2, 4, 64, 64)).astype(np.uint16) for _ in range(4)]
    statistics = PlateStatistics()
    for field in fields:
        statistics.add(field)
    center, scale = statistics.center_and_scale()
    pixels = np.concatenate([f.reshape(2, -1) for f in fields], axis=1)
    assert center == pytest.approx(np.median(pixels, axis=1), abs=5)
    assert scale == pytest.approx(np.percentile(pixels, 99, axis=1) - np.median(pixels, axis=1), rel=0.05)


def test_a_flat_channel_has_scale_one() -> None:
    statistics = PlateStatistics()
    statistics.add(np.full((1, 1, 8, 8), 40, np.uint16))
    assert statistics.center_and_scale() == ([40.0], [1.0])
