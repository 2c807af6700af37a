from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.profiling import sphere


def test_agrees_with_whitening_as_the_regularisation_vanishes():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    controls, others = rng.normal(size=(40, 6)) @ mixing + 3, rng.normal(size=(9, 6)) @ mixing
    whitening = PCA(whiten=True).fit(controls)
    # Sphering is whitening rotated back to the original axes.
    expected = whitening.transform(others) @ whitening.components_
    found = sphere(others, controls, regularisation=1e-13)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_is_the_published_formula_with_a_relative_lambda():
    rng = np.random.default_rng(1)
    controls = rng.normal(size=(5, 8)) * np.arange(1, 9)
    covariance = (controls - controls.mean(0)).T @ (controls - controls.mean(0)) / 4
    v, s, _ = np.linalg.svd(covariance)
    w = sum(np.outer(v[:, i], v[:, i]) / np.sqrt(s[i] + 0.1 * s[0]) for i in range(8))
    x = rng.normal(size=(3, 8))
    np.testing.assert_allclose(sphere(x, controls, 0.1), (x - controls.mean(0)) @ w, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), wells=st.integers(2, 12), seed=st.integers(0, 99))
def test_does_not_depend_on_the_scale_or_origin_of_the_embedding(scale, shift, wells, seed):
    rng = np.random.default_rng(seed)
    controls, x = rng.normal(size=(wells, 5)), rng.normal(size=(4, 5))
    plain = sphere(x, controls)
    moved = sphere(x * scale + shift, controls * scale + shift)
    np.testing.assert_allclose(moved, plain, rtol=1e-3, atol=1e-5)


def test_controls_without_spread_are_only_centred():
    found = sphere(np.array([[1.1, 0.1, 0.1]]), np.full((4, 3), 0.1))
    np.testing.assert_allclose(found, [[1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("controls", "regularisation"),
    [(np.ones((1, 3)), 0.01), (np.empty((0, 3)), 0.01), (np.array([[1, np.nan], [0, 1]]), 0.01), (np.eye(3), 0.0)],
)
def test_what_cannot_be_fitted_says_why(controls, regularisation):
    with pytest.raises(GradcamoError) as error:
        sphere(controls, controls, regularisation)
    assert error.value.remedy
