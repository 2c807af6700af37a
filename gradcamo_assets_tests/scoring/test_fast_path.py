"""Test that folded networks and networks in bfloat16 agree with the original, or are not returned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.encoders import build_encoder, encoder_names
from gradcamo_assets.scoring.fast_path import convert_to_bfloat16, convert_to_bfloat16_if_native, fold_batchnorm


def with_trained_batchnorm(model: nn.Module) -> nn.Module:
    """Set statistics and weights of BatchNorm to values other than 0 and 1, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def count_batchnorms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in model.modules())


def _third_party_network() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=3)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=[pytest.mark.slow] * name.startswith("monai")) for name in encoder_names()),
        "torchvision-resnet",
    ],
)
def test_a_folded_network_has_the_same_logits_and_maps(name):
    model, layer = (_third_party_network(), "layer4") if name.startswith("torchvision") else build_encoder(name, 3, 4)
    crop = (48, 40) if name.startswith("torchvision") else (7, 40, 36)
    with_trained_batchnorm(model)
    images = torch.randn(3, 3, *crop)
    before = [value.clone() for value in model.state_dict().values()]
    folded = fold_batchnorm(model, images, keep=[layer])
    assert count_batchnorms(model) > 0 and count_batchnorms(folded) == 0
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-4)
    target = torch.zeros(3, *crop, dtype=torch.bool)
    target[..., 10:30, 10:30] = True
    ours, theirs = (gradcamo(net, images, target, layer, target=1) for net in (folded, model))
    torch.testing.assert_close(ours.cam, theirs.cam, rtol=1e-3, atol=1e-4 * float(theirs.cam.max()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_an_explained_convolution_is_not_folded():
    model, _ = build_encoder("efficientnet3d-small", 3, 4)
    folded = fold_batchnorm(with_trained_batchnorm(model), torch.randn(1, 3, 4, 24, 24), keep=["project"])
    assert count_batchnorms(folded) == 1 and isinstance(folded.norm, nn.BatchNorm3d)


class Forked(nn.Module):
    """The convolution's output is used beside the normalised one, so the two cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        raw = self.conv(x)
        return self.fc((raw.abs() + self.norm(raw)).mean((2, 3)))


class Twice(nn.Module):
    """One convolution before two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("kind", [Forked, Twice])
def test_networks_that_cannot_be_folded_are_returned_unchanged(kind):
    model, images = with_trained_batchnorm(kind()), torch.randn(2, 2, 9, 9)
    folded = fold_batchnorm(model, images)
    assert folded is not model and count_batchnorms(folded) == count_batchnorms(model)
    torch.testing.assert_close(folded(images), model(images))


class UnderTwoNames(nn.Module):
    """One convolution under two names, before a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.explained = self.conv

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_an_explained_convolution_is_kept_under_its_second_name():
    model, images = with_trained_batchnorm(UnderTwoNames()), torch.randn(2, 2, 9, 9)
    folded = fold_batchnorm(model, images, keep=["explained"])
    torch.testing.assert_close(folded.explained(images), model.explained(images))


class Cancelling(nn.Module):
    """Small differences of large numbers, which bfloat16 cannot represent."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, x):
        return (x.mean((1, 2, 3))[:, None] + 1000.3) - 1000


def test_bfloat16_is_used_if_it_is_native_and_the_logits_agree(monkeypatch):
    model, _ = build_encoder("efficientnet3d-small", 3, 4)
    images = torch.randn(2, 3, 4, 24, 24)
    half = convert_to_bfloat16(with_trained_batchnorm(model), images)
    assert half is not None and next(half.parameters()).dtype == torch.bfloat16
    assert next(model.parameters()).dtype == torch.float32
    assert convert_to_bfloat16(Cancelling().eval(), images) is None
    for is_native in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda value=is_native: {"avx512_bf16": value})
        assert (convert_to_bfloat16_if_native(model, images) is not None) == is_native


class Named(nn.Module):
    """A network that returns a mapping with the key ``logits``, as ``gradcamo`` allows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))}


def test_a_network_that_returns_a_mapping_is_folded():
    model, images = with_trained_batchnorm(Named()), torch.randn(2, 2, 9, 9)
    folded = fold_batchnorm(model, images)
    assert count_batchnorms(folded) == 0
    torch.testing.assert_close(folded(images)["logits"], model(images)["logits"], rtol=1e-3, atol=1e-4)
