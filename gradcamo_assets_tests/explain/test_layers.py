"""Test which output of a layer is explained: channels first or last, compiled networks, names, and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradcamo_assets.explain import COLUMNS, METHODS, faithfulness, gradcamo
from gradcamo_assets.explain.maps import capture_activations
from gradcamo_assets_tests.explain.nets import ChannelsLast, random_case

CROPS = {2: (32, 32), 3: (8, 32, 32)}


def _case(axes: int, width: int = 8, head: str = "gap") -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Make crops for which the layout cannot be read from the shape: the grid is (2,) 8 x 8, as long as the width."""
    torch.manual_seed(0)
    images, target = torch.randn(4, 2, *CROPS[axes]), torch.zeros(4, *CROPS[axes])
    target[..., 8:24, 5:24] = 1
    return ChannelsLast(axes, width, head).eval(), images, target, torch.rand(target.shape) * (1 - target) > 0.5


def _assert_same_scores(found, expected) -> None:
    for name in COLUMNS:
        one, two = getattr(found, name), getattr(expected, name)
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            assert one == two, name
    torch.testing.assert_close(found.cam, expected.cam, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("width", [5, 8])
@pytest.mark.parametrize("head", ["gap", "max"])
def test_a_layer_with_channels_last_scores_as_with_channels_first(axes, width, head):
    model, images, target, neighbours = _case(axes, width, head)
    last, first = (gradcamo(model, images, target, layer, neighbours) for layer in ("block", "first"))
    assert first.embedding.shape == (4, width) and not np.isnan(first.gradcamo).all()
    _assert_same_scores(last, first)
    several = gradcamo(model, images, target, ["block", "first"], neighbours)
    _assert_same_scores(several.layers["block"], several.layers["first"])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "randomcam"])
def test_the_librarys_methods_read_channels_last(method):
    model, images, target, neighbours = _case(2, head="max")
    last, first = (gradcamo(model, images, target, layer, neighbours, method=method) for layer in ("block", "first"))
    np.testing.assert_allclose(last.gradcamo, first.gradcamo, rtol=1e-3)


def test_the_audit_reads_channels_last():
    model, images, target, neighbours = _case(2)
    one, two = (faithfulness.audit(model, images, target, layer, neighbours)[1] for layer in ("block", "first"))
    for name, values in one.items():
        np.testing.assert_allclose(values, two[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_swin_network_scores_alike_before_and_after_its_channels_move():
    from torchvision.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    images, target = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64)
    target[:, 20:40, 10:40] = 1
    last, first = (gradcamo(model, images, target, layer) for layer in ("norm", "permute"))
    assert first.cam.shape == (2, 8, 8)
    _assert_same_scores(last, first)


def test_finding_the_layout_changes_no_statistics_of_a_network_in_training():
    model, images, _, _ = _case(2)
    model.embed = nn.Sequential(model.embed, nn.BatchNorm2d(8))
    model.train()
    model.embed[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, activations = capture_activations(model, images, {"block": model.block})
    assert activations["block"].shape == (4, 8, 8, 8)
    torch.testing.assert_close(activations["block"], model.block(model.embed(images).movedim(1, -1)).movedim(-1, 1))
    torch.testing.assert_close(model.state_dict(), before)
    assert model.training and model.block.training and not model.embed[1].training


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["second", "act"])
def test_a_compiled_network_that_has_run_scores_as_the_original(name, in_place):
    torch._dynamo.reset()
    model, images, target, neighbours = random_case(4, 2, 3, (9, 10))
    expected = gradcamo(model, images, target, name, neighbours)
    compiled = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
    with torch.no_grad():
        compiled(images)
    for layer in (name, getattr(model, name)):
        _assert_same_scores(gradcamo(compiled, images, target, layer, neighbours), expected)
    by_library = gradcamo(compiled, images, target, name, neighbours, method="layercam")
    assert not np.isnan(by_library.gradcamo).all()
    _, columns = faithfulness.audit(compiled, images, target, name, neighbours)
    assert not np.isnan(columns["effect_target"]).any()
