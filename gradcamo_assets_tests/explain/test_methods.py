"""Test parity with pytorch-grad-cam 1.5.7 in 2D and 3D."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain import METHODS, gradcamo
from gradcamo_assets.explain.methods import METHODS_2D_ONLY
from gradcamo_assets_tests.explain.nets import brute_share, random_case

CROPS = {2: (21, 34), 3: (7, 21, 18)}


def library_score(name: str, model, images, target, layers, classes) -> np.ndarray:
    """Compute the score from the library's full-resolution map: sum inside the mask divided by the sum."""
    with getattr(pytorch_grad_cam, name)(model, layers) as cam:
        maps = cam(images, [ClassifierOutputTarget(label) for label in classes])
    assert maps.shape == target.shape
    axes = tuple(range(1, maps.ndim))
    return (maps.astype(np.float64) * target.numpy()).sum(axes) / maps.astype(np.float64).sum(axes)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["gap", "mlp"])
@pytest.mark.parametrize("stride", [2, 4])
def test_the_librarys_definition_is_reproduced(axes, head, stride):
    model, images, target, neighbours = random_case(11, axes, 3, CROPS[axes], head=head, stride=stride)
    result = gradcamo(model, images, target, model.act, neighbours, definition="pytorch_grad_cam", target=[2, 0, 1])
    expected = library_score("GradCAM", model, images, target, [model.act], [2, 0, 1])
    np.testing.assert_allclose(result.gradcamo, expected, atol=1e-4)
    assert not np.isnan(result.gradcamo).all()
    assert result.columns()["gradcamo_max"] == result.columns()["looks_at"] == [None] * 3
    is_scored = ~np.isnan(result.gradcamo)
    total = result.gradcamo + result.neighbour_share + result.background_share
    np.testing.assert_allclose(total[is_scored], 1)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_librarys_mean_over_layers_is_reproduced(axes):
    model, images, target, _ = random_case(12, axes, 2, CROPS[axes], head="mlp")
    layers = [model.first, model.act]
    result = gradcamo(model, images, target, layers, definition="pytorch_grad_cam", target=1)
    expected = library_score("GradCAM", model, images, target, layers, [1, 1])
    np.testing.assert_allclose(result.gradcamo, expected, atol=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "randomcam"])
def test_the_librarys_other_methods_use_the_same_overlap(axes, method):
    model, images, target, neighbours = random_case(13, axes, 2, CROPS[axes], stride=3, head="mlp")
    call = {"model": model, "images": images, "target_masks": target, "layer": "act", "method": method}
    if axes == 3 and method in METHODS_2D_ONLY:
        with pytest.raises(ExplainError, match="2D images only"):
            gradcamo(**call)
        return
    result = gradcamo(**call, neighbour_masks=neighbours, target=2)
    assert result.cam.shape[1:] == model.act(model.second(images.new_zeros(1, 5, *CROPS[axes]))).shape[2:]
    np.testing.assert_allclose(result.gradcamo, brute_share(result.cam, target).numpy(), rtol=1e-5)
    assert not (result.gradcamo > result.gradcamo_max).any()
    if method != "finercam":
        theirs = gradcamo(**call, target=2, definition="pytorch_grad_cam")
        expected = library_score(METHODS[method], model, images, target, [model.act], [2, 2])
        np.testing.assert_allclose(theirs.gradcamo, expected, atol=1e-4)


def test_a_callable_target_reaches_the_library_too():
    model, images, target, _ = random_case(14, 2, 2, CROPS[2], head="mlp")
    by_class = gradcamo(model, images, target, "act", target=1, method="hirescam")
    called = gradcamo(model, images, target, "act", target=lambda out: out[:, 1], method="hirescam")
    np.testing.assert_allclose(called.gradcamo, by_class.gradcamo, rtol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam", "xgradcam", "scorecam", "finercam"])
def test_the_librarys_methods_explain_the_decision_of_a_single_logit(method):
    """The map of a negative decision is that of the negative logit."""
    model, images, target, _ = random_case(14, 2, 4, CROPS[2], head="mlp", classes=1)
    with torch.no_grad():
        model.fc.bias -= model(images).max() + 1
    negated = copy.deepcopy(model)
    negated.fc.weight.data, negated.fc.bias.data = -model.fc.weight.data, -model.fc.bias.data
    found, expected = (gradcamo(net, images, target, "act", method=method) for net in (model, negated))
    assert found.predicted_class.tolist() == [0] * 4 and expected.predicted_class.tolist() == [1] * 4
    assert not np.isnan(found.gradcamo).all()
    np.testing.assert_allclose(found.gradcamo, expected.gradcamo, rtol=1e-4)


@pytest.mark.parametrize("method", ["fullgrad", "refinecam", "sess"])
def test_methods_without_a_map_of_the_layer_are_refused_with_the_reason(method):
    model, images, target, _ = random_case(15, 2, 1, CROPS[2])
    with pytest.raises(ExplainError, match="choose one of gradcam"):
        gradcamo(model, images, target, "act", method=method)


def test_a_uniform_map_is_empty_once_its_minimum_is_subtracted():
    model, images, target, _ = random_case(16, 2, 1, CROPS[2])
    with torch.no_grad():
        model.second.weight.zero_()
        model.second.bias.fill_(1)
        model.fc.weight.fill_(1)
    linear = gradcamo(model, images, target, "act", target=0)
    theirs = gradcamo(model, images, target, "act", target=0, definition="pytorch_grad_cam")
    np.testing.assert_allclose(linear.gradcamo, linear.mask_fraction, rtol=1e-6)
    assert np.isnan(theirs.gradcamo[0]) and theirs.null_reason == ["empty map"]


def test_without_the_library_its_methods_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    model, images, target, _ = random_case(3, 2, 2, CROPS[2])
    assert gradcamo(model, images, target, model.act).gradcamo is not None
    with pytest.raises(ExplainError, match=r"gradcam\+\+.*pip install grad-cam"):
        gradcamo(model, images, target, model.act, method="gradcam++")
