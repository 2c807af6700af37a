"""Test raw maps against torch-cam and captum on new random networks in every run, and on third-party networks."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torchcam.methods import GradCAM

from gradcamo_assets.explain import gradcamo, similarity_to
from gradcamo_assets_tests.explain.nets import brute_maps, brute_share, random_case

CROPS = {2: (21, 34), 3: (7, 21, 18)}


def fresh_seed() -> int:
    seed = int.from_bytes(os.urandom(2), "big")
    print("seed", seed)
    return seed


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("head", ["gap", "mlp", "max"])
def test_raw_maps_are_those_of_torch_cam_and_captum(axes, head):
    model, images, target, _ = random_case(fresh_seed(), axes, 3, CROPS[axes], head=head)
    classes = [2, 0, 1]
    ours = gradcamo(model, images, target, "act", target=classes).cam
    with GradCAM(model, target_layer="act", input_shape=(2, *CROPS[axes])) as extractor:
        theirs = extractor(classes, model(images), normalized=False)[0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)
    captum = LayerGradCam(model, model.act).attribute(images, torch.tensor(classes), relu_attributions=True)
    torch.testing.assert_close(ours, captum[:, 0].detach(), rtol=1e-5, atol=1e-7)


class TimmLike(nn.Module):
    """A network with ``forward_features`` as in timm, and pooling by a method instead of a module."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 12, 3, 2, 1))
        self.norm, self.act = nn.BatchNorm2d(12), nn.SiLU(inplace=True)
        self.classifier = nn.Linear(12, 6)

    def forward_features(self, x):
        return self.act(self.norm(self.stages(x)))

    def forward(self, x):
        return self.classifier(self.forward_features(x).mean((2, 3)))


def _third_party_network(name: str):
    if name == "timm-like":
        return TimmLike(), (3, 33, 40), "act"
    if name == "torchvision-efficientnet":
        from torchvision.models import efficientnet_b0

        return efficientnet_b0(weights=None, num_classes=6), (3, 64, 48), "features"
    if name == "torchvision-resnet":
        from torchvision.models import resnet18

        return resnet18(weights=None, num_classes=6), (3, 64, 48), "layer4"
    if name == "monai-densenet":
        from monai.networks.nets import DenseNet121

        return DenseNet121(3, 2, 6), (2, 32, 48, 40), "class_layers.relu"
    from monai.networks.nets import resnet18 as monai_resnet18

    return monai_resnet18(spatial_dims=3, n_input_channels=2, num_classes=6), (2, 21, 48, 40), "layer3"


THIRD_PARTY = ["timm-like", "torchvision-efficientnet", "torchvision-resnet", "monai-densenet", "monai-resnet"]


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_third_party_networks_are_scored_as_by_brute_force(name):
    torch.manual_seed(fresh_seed())
    model, shape, layer = _third_party_network(name)
    model.eval()
    images = torch.randn(2, *shape)
    target = torch.zeros(2, *shape[1:], dtype=torch.bool)
    target[..., 8:30, 10:31] = True
    result = gradcamo(model, images, target, layer, target=3)
    with GradCAM(model, target_layer=layer, input_shape=shape) as extractor:
        maps = extractor(3, model(images), normalized=False)[0].detach()
    has_mass = maps.flatten(1).sum(1).numpy() > 0
    np.testing.assert_allclose(result.gradcamo[has_mass], brute_share(maps, target).numpy()[has_mass], rtol=1e-4)
    assert np.isnan(result.gradcamo[~has_mass]).all()
    pooled = name in ("timm-like", "torchvision-efficientnet", "torchvision-resnet", "monai-densenet")
    assert np.isnan(result.evidence_target).all() != pooled


@pytest.mark.parametrize("axes", [2, 3])
def test_embeddings_are_explained_by_their_similarity_to_a_reference(axes):
    """An encoder without classes is explained by a direction, such as the difference of two centroids."""
    model, images, target, _ = random_case(fresh_seed(), axes, 3, CROPS[axes], classes=7)
    reference = torch.randn(7)
    result = gradcamo(model, images, target, "act", target=similarity_to(reference.numpy()))
    head = nn.Module()
    head.forward = lambda x: nn.functional.cosine_similarity(model(x), reference[None])[:, None]  # type: ignore[method-assign]
    expected = brute_maps(head, images, model.act, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(result.cam, expected, rtol=1e-4, atol=1e-7)
    assert result.columns()["target_class"] == [None] * 3


def test_a_pooled_head_needs_one_forward_pass_and_other_layers_try_the_closed_form_once():
    model, images, target, _ = random_case(1, 2, 2, CROPS[2])
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    gradcamo(model, images, target, "act")
    assert len(runs) == 1
    gradcamo(model, images, target, "second")
    gradcamo(model, images, target, "second")
    assert len(runs) == 4  # The first call also tried the closed form.


def test_maps_are_made_without_a_gradient_of_any_weight():
    model, images, target, _ = random_case(2, 3, 2, CROPS[3], head="mlp")
    gradcamo(model, images, target, "act")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_in_bfloat16_explains_with_logits_of_its_own_activations():
    """Logits in bfloat16 have three digits; logits recomputed from the activations in float32 add up to five."""
    model, images, target, neighbours = random_case(3, 3, 4, CROPS[3])
    result = gradcamo(model.bfloat16(), images, target, "act", neighbours)
    assert result.logits.dtype == torch.float32
    total = result.evidence_target + result.evidence_neighbour + result.evidence_background
    np.testing.assert_allclose(total, result.logit - result.logit_bias, rtol=1e-4, atol=1e-5)
