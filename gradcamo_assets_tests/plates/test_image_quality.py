"""Image quality compared with brute-force calculations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import tifffile
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
    brightest = np.sort(pixels, axis=1)[:, -len(pixels[0]) // 40 :].mean(axis=1)
    assert scale == pytest.approx(brightest - np.median(pixels, axis=1), rel=0.05)


@given(st.integers(1, 400))
def test_the_scale_of_a_plate_follows_the_area_of_its_nuclei(bright: int) -> None:
    """No jump where they begin to cover the share of a percentile: their mean is diluted in proportion."""
    pixels = np.full((1, 4000), 200, np.uint16)
    pixels[:, :bright] = 3200
    assert center_and_scale([pixels]) == ([200.0], [pytest.approx(3000 * min(1.0, bright / 100))])


def test_focus_and_noise_do_not_jump_when_nuclei_begin_to_cover_a_hundredth() -> None:
    y, x = np.mgrid[:512, :512]
    measured = []
    for nuclei in (18, 26):  # 0.8% and 1.2% of the pixels
        rng = np.random.default_rng(0)
        image = np.full((512, 512), 200.0)
        for centre_y, centre_x in rng.uniform(10, 500, (nuclei, 2)):
            image[np.hypot(y - centre_y, x - centre_x) < 6] = 3200
        assert (image > 200).mean() == pytest.approx(nuclei / 2000, rel=0.3)
        quality = field_quality(rng.poisson(image).astype(np.uint16)[None, None])
        measured.append((quality.focus_score, quality.signal_to_noise[0]))
    (few_focus, few_noise), (more_focus, more_noise) = measured
    assert 0.5 < few_focus / more_focus < 2.5 and 0.5 < few_noise / more_noise < 1


def _real_images(shared: Callable[[str], Path]) -> Iterator[np.ndarray]:
    """Real images without saturation, (Z, Y, X)."""
    import zarr

    for path in sorted(shared("imagexpress_9987").rglob("ZStep_1/*.TIF")):
        yield tifffile.imread(path)[None]
    for path in sorted(shared("organoids_3d").rglob("*TIF-OVR.tif")):
        yield tifffile.imread(path)
    jump = zarr.open_array(shared("jump_rab30_mini") / "jump_rab30_mini" / "images.zarr" / "images", mode="r")
    yield from (channel[None] for field in np.asarray(jump[:]) for channel in field if channel.max() < 65535)


def test_the_scale_of_real_images_is_near_their_99th_percentile(shared: Callable[[str], Path]) -> None:
    for image in _real_images(shared):
        (center,), (scale,) = center_and_scale([image.reshape(1, -1)])
        assert scale == pytest.approx(np.percentile(image, 99) - center, rel=0.16)


def _camera(rng: np.random.Generator) -> np.ndarray:
    """An image of a 12 bit camera; a tenth of its pixels are brighter than the camera's range."""
    light = rng.normal(600, 60, (1, 1, 256, 256))
    light[..., 60:140, 60:140] += 5000
    return np.clip(np.rint(light), 0, 4095)


@pytest.mark.parametrize(
    "process",
    [
        lambda raw: raw * 16,
        lambda raw: raw + 32768,
        lambda raw: np.maximum(raw - 100, 0),
        lambda raw: raw // 4,
        lambda raw: np.rint(raw / np.linspace(0.9, 1.1, 256)),
        lambda raw: np.rint(raw / (1.2 - np.hypot(*np.mgrid[-0.7:0.7:256j, -0.7:0.7:256j]) ** 2 / 2)),
    ],
    ids=["shifted", "offset", "dark subtracted", "10 bits", "flat-fielded", "flat-fielded, round"],
)
def test_saturation_is_found_at_any_ceiling(process: Callable[[np.ndarray], np.ndarray]) -> None:
    raw = _camera(np.random.default_rng(0))
    quality = field_quality(process(raw).astype(np.uint16))
    assert quality.saturation == pytest.approx((raw == 4095).mean(), rel=0.02)


@pytest.mark.parametrize("brightness", [100, 3000, 30000])
@pytest.mark.parametrize("divisor", [1, 16, 100])
def test_bright_cells_are_not_saturated(brightness: int, divisor: int) -> None:
    """Nor in 8 bits, where values are few and many pixels share each."""
    rng = np.random.default_rng(0)
    light = rng.normal(600, 5, (1, 1, 256, 256))
    light[..., 60:140, 60:140] += brightness
    assert field_quality(rng.poisson(light / divisor).astype(np.uint16)).saturation == 0


def test_real_images_are_not_saturated(shared: Callable[[str], Path]) -> None:
    for image in _real_images(shared):
        assert field_quality(image[None]).saturation == 0
        in_8_bits = np.rint(image / image.max() * 254).astype(np.uint16)
        assert field_quality(in_8_bits[None]).saturation == 0


def test_the_saturation_of_a_real_12_bit_camera_with_an_offset(shared: Callable[[str], Path]) -> None:
    """ScanR adds 32768. Both images of GFP reach 32768 + 4095, those of mCherry do not."""
    for path in sorted((shared("exports") / "scanr_names").rglob("*.tif")):
        image = tifffile.imread(path)
        expected = (image == 36863).mean()
        assert ("GFP" in path.name) == (expected > 0)
        assert field_quality(image[None, None]).saturation == expected


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
        "qc_warning": [None] * len(sharp),
        "channel_focus": [[score, 0.2] for score in sharp],
        "repeated_slices": [[0, 0]] * len(sharp),
        "focus_profile": [[[score], [0.2]] for score in sharp],
    }
    return pl.DataFrame(rows, schema_overrides={"qc_flag": pl.String, "qc_warning": pl.String})


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
