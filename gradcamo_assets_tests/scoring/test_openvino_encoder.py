"""Test that an encoder in OpenVINO has the scores that torch gives it, or is refused with the reason."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from gradcamo_assets.errors import BundleError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.explain.result import COLUMNS
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.openvino_runtime import CompiledNetwork
from gradcamo_assets.scoring.openvino_encoder import compile_encoder
from gradcamo_assets_tests.scoring.test_fast_path import with_trained_batchnorm


def _encoder(name: str) -> tuple[nn.Module, str]:
    if name != "torchvision-resnet":
        return build_encoder(name, 3, 4)
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=4), "layer4"


def _masks(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    target, neighbour = torch.rand(len(images), *images.shape[2:]) > 0.6, torch.zeros(len(images), *images.shape[2:])
    neighbour[..., :5] = 1
    return target, (neighbour > 0) & ~target


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "crop"),
    [("efficientnet3d-small", (7, 40, 36)), ("efficientnet3d-small", (1, 40, 36)), ("torchvision-resnet", (64, 48))],
)
def test_scores_equal_those_of_torch_for_any_number_of_crops(name, crop, precision):
    model, layer = _encoder(name)
    with_trained_batchnorm(model)
    try:
        compiled = compile_encoder(model, layer, torch.randn(2, 3, *crop), precision)
    except BundleError as error:
        if "this CPU computes in f32" in str(error):
            pytest.skip("this CPU does not compute in bfloat16")
        raise
    tolerance = 1e-5 if precision == "float32" else 0.05
    for crops in (1, 5, 2):
        images = torch.randn(crops, 3, *crop)
        target, neighbour = _masks(images)
        ours = gradcamo(compiled, images, target, compiled.layer, neighbour, target=1)
        theirs = gradcamo(model, images, target, layer, neighbour, target=1)
        for tensor in ("logits", "embedding"):
            expected = getattr(theirs, tensor)
            assert float((getattr(ours, tensor) - expected).abs().max()) <= tolerance * float(expected.abs().max())
        if precision == "float32":
            for column in COLUMNS:
                found, expected = getattr(ours, column), getattr(theirs, column)
                if isinstance(expected, list):
                    assert found == expected
                else:
                    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=column)


class Pooled(nn.Module):
    """A small network whose images are changed first."""

    def __init__(self, change):
        super().__init__()
        self.change, self.conv, self.head = change, nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.conv(self.change(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (torch.special.bessel_j0, "cannot run the encoder"),
        (lambda x: x + 1 if torch.jit.is_tracing() else x, "differ from those in torch"),
    ],
)
def test_networks_that_cannot_be_converted_are_refused(change, problem):
    images = torch.randn(2, 3, 24, 20)
    with pytest.raises(BundleError, match=problem):
        compile_encoder(Pooled(change).eval(), "conv", images)
    compile_encoder(Pooled(torch.relu).eval(), "conv", images)


def test_layers_without_a_pooled_head_are_refused():
    model, _ = _encoder("torchvision-resnet")
    with pytest.raises(BundleError, match="backward pass"):
        compile_encoder(model.eval(), "layer3", torch.randn(2, 3, 64, 64))


def test_a_missing_openvino_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match=r"not installed.*gradcamo-assets\[fast\]"):
        compile_encoder(Pooled(torch.relu).eval(), "conv", torch.randn(2, 3, 24, 20))


def test_openvino_reports_to_nobody():
    CompiledNetwork(nn.Conv2d(3, 2, 3).eval(), torch.randn(1, 3, 8, 8))
    import openvino.tools.ovc.telemetry_utils as telemetry

    assert telemetry.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert "openvino_telemetry.main" not in sys.modules


def test_images_of_other_shapes_run_where_allowed():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)).eval()
    compiled = CompiledNetwork(network, torch.randn(1, 3, 16, 16), any_shape=True)
    for shape in ((1, 3, 16, 16), (5, 3, 24, 40), (2, 3, 8, 9)):
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), network(images))
