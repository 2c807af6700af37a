"""Check the penalty against a brute-force definition, and its gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from torch import nn
from torch.func import functional_call

from gradcamo_assets.explain import maps as cam
from gradcamo_assets.training.penalty import class_maps, dilate_masks, logits_and_penalty
from gradcamo_assets_tests.explain.nets import MODES, brute_maps, random_case

CLASSES = torch.tensor([1, 0, 3])


def upsampled(maps: torch.Tensor, crop: tuple[int, ...]) -> torch.Tensor:
    return nn.functional.interpolate(maps[:, None].double(), size=crop, mode=MODES[len(crop)])[:, 0]


def brute_penalty(maps: torch.Tensor, masks: torch.Tensor, tau: float) -> float:
    """Use upsampled maps, a mask dilated by scipy, and the best of all maps with one voxel."""
    crop, grid = masks.shape[1:], maps.shape[1:]
    box = np.ones([2 * round(n / m / 2) + 1 for n, m in zip(crop, grid, strict=True)])
    units = upsampled(torch.eye(grid.numel()).view(-1, *grid), crop)
    penalties = []
    for upsampled_map, mask in zip(upsampled(maps, crop), masks, strict=True):
        grown = torch.from_numpy(binary_dilation(mask.numpy(), box)).double()
        if not float(upsampled_map.sum()) or not 0 < float(grown.mean()) < 1:
            continue
        share, fraction = float((upsampled_map * grown).sum() / upsampled_map.sum()), float(grown.mean())
        ceiling = float(((units * grown).flatten(1).sum(1) / units.flatten(1).sum(1)).max())
        penalties.append(max(0.0, tau - (share - fraction) / (ceiling - fraction)))
    return float(np.mean(penalties)) if penalties else 0.0


@pytest.mark.parametrize("head", ["gap", "mlp", "max"])
@pytest.mark.parametrize(("axes", "stride"), [(2, 3), (3, (1, 2, 4))])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_the_penalty_equals_its_definition(head, axes, stride, tau):
    model, images, target, _ = random_case(2, axes, 3, (4, 13, 12)[3 - axes :], head=head, stride=stride)
    target = target & (torch.rand(target.shape) < 0.15)  # Small masks, which do not fill the crop after dilation.
    target.view(3, -1)[:, 5] = True
    logits, penalty = logits_and_penalty(model, "act", images, target, CLASSES, tau)
    torch.testing.assert_close(logits, model(images))
    maps = brute_maps(model, images, model.act, CLASSES)
    expected = brute_penalty(maps, target, tau)
    assert float(penalty) == pytest.approx(expected, abs=1e-5)


class Penalty(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images, target):
        return logits_and_penalty(self.model, "act", images, target, CLASSES)[1]


@pytest.mark.parametrize("head", ["gap", "mlp"])
def test_gradients_of_all_weights_equal_finite_differences(head):
    model, images, target, _ = random_case(5, 2, 3, (8, 9), head=head, width=3)
    module = Penalty(model.double())
    names = [name for name, _ in module.named_parameters()]

    def penalty(*weights):
        return functional_call(module, dict(zip(names, weights, strict=True)), (images.double(), target))

    weights = tuple(weight.detach().requires_grad_() for weight in module.parameters())
    assert torch.autograd.gradcheck(penalty, weights, fast_mode=True)


def test_closed_form_and_double_backward_give_equal_gradients(monkeypatch):
    gradients = []
    for closed in (True, False):
        model, images, target, _ = random_case(4, 3, 3, (4, 12, 12))
        if not closed:
            monkeypatch.setattr(cam, "find_pooled_head", lambda *_: None)
        logits_and_penalty(model, "act", images, target, CLASSES)[1].backward()
        # The penalty does not depend on the head's bias.
        gradients.append([p.grad for name, p in model.named_parameters() if name != "fc.bias"])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
        assert float(one.abs().max()) > 0


def test_the_map_equals_that_of_pytorch_grad_cam():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, *_ = random_case(3, 2, 3, (12, 12), head="mlp")
    output, activations = cam.capture_activations(model, images, {"act": model.act})
    ours = class_maps(model, activations["act"], output, CLASSES).detach().numpy()
    with GradCAM(model, [model.act]) as library:
        library(images, targets := [ClassifierOutputTarget(k) for k in CLASSES.tolist()])
        kept = library.activations_and_grads
        theirs = library.get_cam_image(
            images, model.act, targets, kept.activations[0].numpy(), kept.gradients[0].numpy(), eigen_smooth=False
        )
    np.testing.assert_allclose(ours, np.maximum(theirs, 0), atol=1e-6)


def test_empty_maps_empty_masks_and_full_masks_are_left_out():
    model, images, target, _ = random_case(6, 2, 3, (12, 12))
    target = torch.zeros_like(target)
    target[:, 5:8, 4:7] = True
    alone = logits_and_penalty(model, "act", images[:1], target[:1], CLASSES[:1])[1]
    masks = torch.stack([target[0], torch.zeros_like(target[1]), torch.ones_like(target[2])])
    assert float(logits_and_penalty(model, "act", images, masks, CLASSES)[1]) == pytest.approx(float(alone))
    with torch.no_grad():
        model.fc.weight.copy_(-model.fc.weight.abs())
    logits, penalty = logits_and_penalty(model, "act", images, target, CLASSES)
    assert float(penalty) == 0
    (penalty + logits.sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("crop", "grid"), [((12, 13), (4, 5)), ((6, 16, 16), (3, 2, 16))])
def test_masks_grow_by_half_a_map_cell(crop, grid):
    masks = torch.rand(2, *crop) < 0.02
    box = np.ones([2 * round(n / m / 2) + 1 for n, m in zip(crop, grid, strict=True)])
    for mask, grown in zip(masks, dilate_masks(masks, grid), strict=True):
        np.testing.assert_array_equal(grown.bool().numpy(), binary_dilation(mask.numpy(), box))


@pytest.mark.parametrize("head", ["gap", "mlp"])
def test_gradient_descent_lowers_the_penalty(head):
    model, images, target, _ = random_case(9, 3, 3, (4, 16, 16), head=head)
    target = torch.zeros_like(target)
    target[:, :, 5:11, 4:10] = True
    optimiser, values = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(15):
        optimiser.zero_grad()
        penalty = logits_and_penalty(model, "act", images, target, CLASSES)[1]
        penalty.backward()
        optimiser.step()
        values.append(float(penalty))
    assert values[-1] < 0.9 * values[0]
