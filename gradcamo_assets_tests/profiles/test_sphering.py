from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from gradcamo_assets.errors import GradcamoError, StoreError
from gradcamo_assets.profiles import Sphering, fit_sphering, load_fitted, save_fitted


def sphere(x, controls, regularisation=1e-2):
    return fit_sphering(controls, regularisation)(x)


def test_sphering_approaches_whitening_as_the_regularisation_vanishes():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    controls, others = rng.normal(size=(40, 6)) @ mixing + 3, rng.normal(size=(9, 6)) @ mixing
    whitening = PCA(whiten=True).fit(controls)
    # Sphering is whitening, rotated back to the original axes.
    expected = whitening.transform(others) @ whitening.components_
    found = sphere(others, controls, regularisation=1e-13)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wells", [5, 30])
def test_sphering_equals_the_published_formula_with_a_relative_lambda(wells):
    rng = np.random.default_rng(1)
    controls = rng.normal(size=(wells, 8)) * np.arange(1, 9)
    covariance = (controls - controls.mean(0)).T @ (controls - controls.mean(0)) / (wells - 1)
    s, v = np.linalg.eigh(covariance)
    w = v @ np.diag(1 / np.sqrt(s.clip(min=0) + 0.1 * s.max())) @ v.T
    x = rng.normal(size=(3, 8))
    np.testing.assert_allclose(sphere(x, controls, 0.1), (x - controls.mean(0)) @ w, atol=1e-9)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), wells=st.integers(2, 12), seed=st.integers(0, 99))
def test_sphering_does_not_depend_on_scale_and_origin_of_the_embedding(scale, shift, wells, seed):
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
def test_impossible_fits_are_refused_with_a_remedy(controls, regularisation):
    with pytest.raises(GradcamoError) as error:
        sphere(controls, controls, regularisation)
    assert error.value.remedy


@given(wells=st.integers(2, 30), d=st.integers(1, 12), regularisation=st.floats(1e-6, 10), seed=st.integers(0, 99))
def test_no_variance_exceeds_one_and_the_order_of_variances_is_kept(wells, d, regularisation, seed):
    controls = np.random.default_rng(seed).normal(size=(wells, d)) * np.arange(1, d + 1)
    before = np.linalg.eigvalsh(np.atleast_2d(np.cov(controls, rowvar=False)))[::-1].clip(min=0)
    after = np.linalg.eigvalsh(np.atleast_2d(np.cov(sphere(controls, controls, regularisation), rowvar=False)))[::-1]
    np.testing.assert_allclose(after, before / (before + regularisation * before[0]), atol=1e-7)


def test_a_saved_sphering_gives_the_same_map(tmp_path):
    rng = np.random.default_rng(0)
    fitted = fit_sphering(rng.normal(size=(6, 9)), 0.05, ["P1/A01", "P1/A02"])
    save_fitted(tmp_path / "kept.safetensors", fitted.arrays, fitted.notes)
    kept = Sphering.from_fitted(*load_fitted(tmp_path / "kept.safetensors"))
    new = rng.normal(size=(4, 9)) + 2
    np.testing.assert_array_equal(kept(new), fitted(new))
    assert kept.digest == fitted.digest != fit_sphering(rng.normal(size=(6, 9)), 0.05).digest
    assert kept.fitted_on == ("P1/A01", "P1/A02")
    with pytest.raises(GradcamoError, match="9 dimensions"):
        kept(new[:, :5])


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    file = tmp_path / "kept.safetensors"
    fitted = fit_sphering(np.eye(3))
    save_fitted(file, fitted.arrays, fitted.notes)
    good = file.read_bytes()
    flipped_bit, truncated, pickled = good[:-1] + bytes([good[-1] ^ 1]), good[:40], b"\x80\x04."
    for bad in (flipped_bit, truncated, pickled):
        file.write_bytes(bad)
        with pytest.raises(StoreError, match=r"kept\.safetensors"):
            load_fitted(file)
    with pytest.raises(StoreError):
        load_fitted(tmp_path / "none")
