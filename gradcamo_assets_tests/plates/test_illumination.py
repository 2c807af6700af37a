"""Illumination estimates on a plate with known illumination."""

from __future__ import annotations

import numpy as np

from gradcamo_assets.plates.illumination import correct_illumination, estimate_illumination
from gradcamo_assets.plates.image_quality import FieldMeter

OFFSET = 100.0


def _light(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size - 0.5
    light = 1.2 - 1.1 * (y**2 + (x - 0.1) ** 2)
    return light / light.mean()


def _plate(size: int = 128, fields: int = 40) -> list[np.ndarray]:
    """(2, 3, size, size) each: cells at random positions on an even background, lit unevenly in the first channel."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(fields):
        scene = np.full((2, 3, size, size), 400.0)
        for y, x in rng.integers(0, size - 12, (12, 2)):
            scene[:, :, y : y + 12, x : x + 12] = 1500
        scene[0] *= _light(size)
        images.append(rng.poisson(scene + OFFSET).astype(np.uint16))
    return images


def _thumbnail(image: np.ndarray) -> np.ndarray:
    meter = FieldMeter("")
    for stack in image:
        meter.add(stack)
    return meter.thumbnail


def test_illumination_is_estimated_and_corrected() -> None:
    images = _plate()
    light = estimate_illumination([_thumbnail(image) for image in images], OFFSET)
    assert light is not None and light.shape == (2, 32, 32)
    truth = _light(128).reshape(32, 4, 32, 4).mean((1, 3))
    assert np.abs(light[0] - truth).max() < 0.08 and np.abs(light[1] - 1).max() < 0.05

    background = np.median(np.stack([image[0, 1] for image in images]), axis=0)
    corrected = np.median(np.stack([correct_illumination(image[0], light[0], OFFSET)[1] for image in images]), axis=0)
    before, after = (np.ptp(np.percentile(plane - OFFSET, (2, 98))) / 400 for plane in (background, corrected))
    assert before > 0.4 and after < 0.15


def test_few_fields_give_no_estimate() -> None:
    assert estimate_illumination([np.ones((1, 8, 8), np.float32)] * 7) is None


def test_even_light_changes_no_pixel() -> None:
    stack = np.random.default_rng(1).integers(0, 65536, (2, 37, 41)).astype(np.uint16)
    np.testing.assert_array_equal(correct_illumination(stack, np.ones((32, 32), np.float32), 12.5), stack)


def test_pixels_stay_within_16_bits() -> None:
    stack = np.array([[[0, 65535]]], np.uint16)
    dim = correct_illumination(stack, np.full((1, 2), 0.5, np.float32), 100)
    assert dim.tolist() == [[[0, 65535]]]
