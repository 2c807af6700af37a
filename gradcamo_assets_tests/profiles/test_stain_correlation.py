from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from gradcamo_assets.profiles import correlation_table, stain_correlation


def _cell(seed: int = 0, channels: int = 3):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60000, (channels, 3, 8, 8)).astype(np.uint16)
    return image, rng.random((3, 8, 8)) < 0.4


def test_correlation_is_pearsons_over_the_voxels_of_the_mask():
    image, mask = _cell()
    found = stain_correlation(image, mask)
    for a in range(3):
        for b in range(3):
            assert np.isclose(
                found[a, b], pearsonr(image[a][mask].astype(float), image[b][mask].astype(float)).statistic
            )
    image[:, ~mask] = 0
    np.testing.assert_array_equal(stain_correlation(image, mask), found)


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 50), offset=st.floats(-500, 500))
def test_correlation_does_not_depend_on_offset_and_scale(seed, scale, offset):
    image, mask = _cell(seed)
    rescaled = image.astype(np.float64)
    rescaled[1] = rescaled[1] * scale + offset
    np.testing.assert_allclose(stain_correlation(rescaled, mask), stain_correlation(image, mask), atol=1e-9)


def test_undefined_correlations_are_left_out():
    image, mask = _cell()
    constant_stain = image.copy()
    constant_stain[2] = 7
    one_voxel = np.zeros_like(mask)
    one_voxel[0, 0, 0] = True
    cases = [(image, mask), (constant_stain, mask), (image, one_voxel)]
    cells = np.stack([stain_correlation(*case) for case in cases])
    table = correlation_table(cells, ["DNA", "ER", "AGP"])
    assert table.select("channel_a", "channel_b", "n_cells").rows() == [
        ("DNA", "ER", 2), ("DNA", "AGP", 1), ("ER", "AGP", 1),
    ]  # fmt: skip
    np.testing.assert_allclose(table["median_correlation"][0], np.median(cells[:2, 0, 1]))
    assert correlation_table(cells[2:], ["DNA", "ER", "AGP"])["median_correlation"].null_count() == 3
    assert correlation_table(cells[:, :1, :1], ["DNA"]).is_empty()
