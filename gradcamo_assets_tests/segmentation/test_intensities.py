from __future__ import annotations

import numpy as np
import pytest

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.segmentation.intensities import combine_stains, find_channels


def normalised(stack: np.ndarray) -> np.ndarray:
    return combine_stains([stack])


@pytest.mark.parametrize(
    ("channels", "nucleus", "cytoplasm", "want"),
    [
        (["AGP", "DNA", "ER", "Mito", "RNA"], None, None, (1, (0, 2, 3, 4))),
        (["hoechst 33342", "Cyto"], None, None, (0, (1,))),
        (["DAPI", "GFP", "Brightfield", "phase_contrast"], None, None, (0, (1,))),
        (["nuclei", "cytoplasm"], None, None, (0, (1,))),
        (["w1", "w2", "w3"], "W2", None, (1, (0, 2))),
        (["w1", "w2", "w3"], "w2", ("w3",), (1, (2,))),
        (["DNA"], None, None, (0, ())),
        (["DNA"], None, ("DNA",), (0, (0,))),
        (["GFP"], "none", None, (None, (0,))),
        (["GFP", "DNA", "Brightfield"], "None", None, (None, (0, 1))),
        (["GFP", "RFP"], "none", ("RFP",), (None, (1,))),
    ],
)
def test_channels_are_found(channels, nucleus, cytoplasm, want):
    assert find_channels(channels, nucleus, cytoplasm) == want


@pytest.mark.parametrize(
    ("channels", "nucleus", "cytoplasm"),
    [
        (["w1", "w2"], None, None),
        (["DAPI", "Hoechst"], None, None),
        (["w1", "w2"], "w9", None),
        (["DNA", "w2"], None, ("w9",)),
        (["DNA", "DNA"], "DNA", None),
    ],
)
def test_ambiguous_and_missing_channels_are_rejected(channels, nucleus, cytoplasm):
    with pytest.raises(SegmentationError, match="Set nucleus"):
        find_channels(channels, nucleus, cytoplasm)


def test_a_plate_without_a_recognisable_nucleus_is_told_what_to_write():
    with pytest.raises(SegmentationError, match=r"no channel could be the nucleus: the channels are GFP.*'none'"):
        find_channels(["GFP"], None, None)
    with pytest.raises(SegmentationError, match="cells need a cytoplasm stain"):
        find_channels(["Brightfield"], "none", None)


def test_normalising_ignores_scale_and_offset():
    rng = np.random.default_rng(0)
    stack = rng.gamma(0.4, 200, (2, 64, 64))
    np.testing.assert_allclose(normalised(stack), normalised(7 * stack + 900), atol=1e-4)
    assert np.percentile(normalised(stack), 1) == pytest.approx(0, abs=0.01)
    brightest = np.sort(((stack - np.percentile(stack, 1)) / np.percentile(stack, 99.7)).ravel())[-66:]  # 0.8% of 8192
    assert np.percentile(normalised(stack), 99.7) == pytest.approx(
        np.percentile(brightest, 62.5) / brightest.mean(), abs=0.02
    )


@pytest.mark.parametrize("bright", [0.001, 0.002, 0.0025, 0.003, 0.0035, 0.004, 0.008, 0.05])
def test_the_scale_of_an_image_follows_the_area_of_its_nuclei(bright: float):
    """No jump when they begin to cover the share of a percentile: their mean is diluted in proportion, down to 3."""
    pixels = np.full(100_000, 200, np.uint16)
    pixels[: round(bright * pixels.size)] = 3200
    image = normalised(np.random.default_rng(0).permutation(pixels).reshape(1, 250, 400))
    assert image.max() == pytest.approx(min(3.0, max(1.0, 0.008 / bright)), rel=0.01)
    assert image.min() == 0


def test_noise_is_not_amplified_and_constants_are_zero():
    noise = normalised(np.random.default_rng(0).normal(500, 20, (3, 64, 64)).round().astype(np.uint16))
    assert noise.std() < 0.12
    assert not normalised(np.full((3, 8, 8), 77, np.uint16)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_rejected(bad):
    stack = np.ones((1, 4, 4), np.float32)
    stack[0, 1, 1] = bad
    with pytest.raises(SegmentationError, match="NaN or infinity"):
        normalised(stack)


def test_one_bad_stain_of_four_has_no_effect():
    rng = np.random.default_rng(0)
    disk = np.hypot(*np.mgrid[-32:32, -32:32])[None] < 14
    good = [1000 * disk + rng.normal(100, 10, disk.shape) for _ in range(3)]
    grains = rng.gamma(0.3, 3000, disk.shape)
    image = combine_stains([*good, grains])
    assert np.corrcoef(image.ravel(), disk.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("stains", [1, 2, 3, 4, 5, 6])
def test_stains_combine_to_their_median_in_any_order(stains):
    rng = np.random.default_rng(stains)
    stacks = [rng.gamma(2, 50 * 4**k, (3, 40, 50)).astype(np.uint16) for k in range(stains)]
    image = combine_stains(stacks)
    np.testing.assert_allclose(image, np.median([combine_stains([stack]) for stack in stacks], axis=0), atol=1e-6)
    for _ in range(4):
        np.testing.assert_array_equal(combine_stains([stacks[k] for k in rng.permutation(stains)]), image)
