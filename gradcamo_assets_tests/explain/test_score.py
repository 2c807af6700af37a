"""Test the score of random networks against brute force, its columns against each other, and side effects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain import COLUMNS, gradcamo
from gradcamo_assets.explain.maps import capture_activations, compute_gradient_maps, find_layer, find_pooled_head
from gradcamo_assets_tests.explain.nets import Net, brute_maps, brute_share, random_case

cases = st.integers(2, 3).flatmap(
    lambda axes: st.tuples(
        st.just(axes),
        st.lists(st.integers(3, 11), min_size=axes, max_size=axes).map(tuple),
        st.lists(st.integers(1, 4), min_size=axes, max_size=axes).map(tuple),
    )
)


def close(got: list, expected: list, relative: float) -> bool:
    """Return whether two columns agree: numbers nearly, everything else exactly."""
    return all(
        one == (pytest.approx(two, rel=relative, abs=relative) if isinstance(two, float) else two)
        for one, two in zip(got, expected, strict=True)
    )


@given(cases, st.sampled_from(["gap", "mlp", "max"]), st.integers(1, 3), st.integers(0, 999))
def test_any_network_scores_as_brute_force(case, head, batch, seed):
    axes, crop, stride = case
    model, images, target, neighbours = random_case(seed, axes, batch, crop, stride=stride, head=head)
    result = gradcamo(model, images, target, model.act, neighbours)
    maps = brute_maps(model, images, model.act)
    torch.testing.assert_close(result.cam, maps, rtol=1e-4, atol=1e-6)
    expected = brute_share(maps, target).numpy()
    there = ~np.isnan(result.gradcamo)
    # A map that is nothing but rounding has no share to compare.
    there &= maps.flatten(1).amax(1).numpy() > 1e-5
    np.testing.assert_allclose(result.gradcamo[there], expected[there], rtol=1e-5, atol=1e-6)
    logits = model(images).detach()
    torch.testing.assert_close(result.logits, logits)
    assert result.predicted_class.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(result.probability, logits.softmax(1).amax(1).numpy(), rtol=1e-5)
    gap = not np.isnan(result.evidence_target).any()
    assert gap or head != "gap"
    if head == "gap":
        total = result.evidence_target + result.evidence_neighbour + result.evidence_background
        np.testing.assert_allclose(total, result.logit - result.logit_bias, rtol=1e-4, atol=1e-5)


@given(cases, st.integers(1, 4), st.integers(0, 999))
def test_closed_form_and_truncated_backward_agree(case, batch, seed):
    axes, crop, stride = case
    model, images, target, neighbours = random_case(seed, axes, batch, crop, stride=stride)
    classes = torch.randint(0, 4, (batch,))
    result = gradcamo(model, images, target, "act", neighbours, target=classes)
    logits, outputs = capture_activations(model, images, {"act": model.act})
    activations = outputs["act"]
    assert find_pooled_head(model, activations, logits).linear is model.fc
    backward = compute_gradient_maps(logits.gather(1, classes[:, None])[:, 0], [activations])[0]
    torch.testing.assert_close(result.cam, backward, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(backward, brute_maps(model, images, model.act, classes), rtol=1e-4, atol=1e-6)
    # A callable target also needs the backward pass.
    called = gradcamo(model, images, target, "act", target=lambda out: out.gather(1, classes[:, None])[:, 0])
    torch.testing.assert_close(called.cam, backward, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.embedding, activations.detach().flatten(2).mean(2))


@pytest.mark.parametrize("axes", [2, 3])
def test_scaled_logits_and_permuted_batches_change_nothing_else(axes):
    model, images, target, neighbours = random_case(7, axes, 5, (9, 11, 8)[:axes])
    result = gradcamo(model, images, target, model.act, neighbours)
    order = [3, 0, 4, 1, 2]
    permuted = gradcamo(model, images[order], target[order], model.act, neighbours[order])
    for name, values in result.columns().items():
        assert close(permuted.columns()[name], [values[i] for i in order], 1e-5), name
    with torch.no_grad():
        model.fc.weight *= 8
        model.fc.bias *= 8
    scaled = gradcamo(model, images, target, model.act, neighbours)
    np.testing.assert_allclose(scaled.gradcamo, result.gradcamo, rtol=1e-6)
    assert scaled.looks_at == result.looks_at
    np.testing.assert_allclose(scaled.evidence_target, 8 * result.evidence_target, rtol=1e-5, atol=1e-6)


def test_targets_are_none_one_class_one_per_sample_or_a_callable():
    model, images, target, _ = random_case(1, 2, 3, (10, 12))
    predicted = gradcamo(model, images, target, model.act)
    explicit = gradcamo(model, images, target, model.act, target=predicted.predicted_class.tolist())
    np.testing.assert_array_equal(predicted.gradcamo, explicit.gradcamo)
    np.testing.assert_array_equal(
        gradcamo(model, images, target, model.act, target=2).gradcamo,
        gradcamo(model, images, target, model.act, target=np.array([2, 2, 2])).gradcamo,
    )
    called = gradcamo(model, images, target, model.act, target=lambda out: out[:, 2] - out[:, 1])
    assert called.columns()["target_class"] == [None] * 3 and called.columns()["logit_bias"] == [None] * 3
    np.testing.assert_allclose(called.logit, (called.logits[:, 2] - called.logits[:, 1]).numpy(), rtol=1e-6)
    assert tuple(called.columns()) == COLUMNS and len(called) == 3


def test_several_layers_are_scored_each_and_by_their_mean():
    model, images, target, neighbours = random_case(2, 3, 2, (5, 9, 8), head="mlp")
    result = gradcamo(model, images, target, [model.first, "act"], neighbours)
    assert list(result.layers) == ["first", "act"]
    expected = []
    for name, layer in (("first", model.first), ("act", model.act)):
        alone = gradcamo(model, images, target, layer, neighbours)
        np.testing.assert_allclose(result.layers[name].gradcamo, alone.gradcamo, rtol=1e-5)
        expected.append(brute_share(brute_maps(model, images, layer), target).numpy())
    np.testing.assert_allclose(result.gradcamo, np.mean(expected, axis=0), rtol=1e-5)
    assert (result.gradcamo <= result.gradcamo_max).all() and result.cam.shape == (2, 5, 9, 8)


class _InPlace(torch.nn.Module):
    """A network with an in-place activation after the captured convolution, which returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = (
            torch.nn.Conv2d(2, 4, 3, stride=2),
            torch.nn.ReLU(inplace=True),
            torch.nn.Linear(4, 3),
        )

    def forward(self, images):
        features = self.act(self.conv(images))
        return {"logits": self.fc(features.mean((2, 3))), "features": features}


def test_a_later_in_place_activation_does_not_change_what_was_captured():
    torch.manual_seed(0)
    model = _InPlace().eval()
    images, target = torch.randn(2, 2, 13, 11), torch.ones(2, 13, 11, dtype=torch.bool)
    target[:, 4:] = False
    result = gradcamo(model, images, target, model.conv)
    values = model.conv(images)
    weight = model.fc.weight[result.predicted_class]
    alpha = ((values > 0) * weight[:, :, None, None]).mean((2, 3))
    expected = (alpha[:, :, None, None] * values).sum(1).clamp_min(0) / values[0, 0].numel()
    torch.testing.assert_close(result.cam, expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("definition", ["linear", "pytorch_grad_cam"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "shapleycam", "eigencam"])
def test_the_model_is_left_as_it_was(definition, method):
    model, images, target, _ = random_case(3, 2, 2, (8, 9), head="max")
    model.first.weight.requires_grad_(False)
    model.fc.bias.grad = torch.full_like(model.fc.bias, 5)
    before = {name: (p.requires_grad, p.grad, p.clone()) for name, p in model.named_parameters()}
    with torch.inference_mode():
        gradcamo(model, images, target, ["act", "second"], definition=definition, method=method)
    for name, parameter in model.named_parameters():
        asked, gradient, values = before[name]
        assert parameter.requires_grad == asked and parameter.grad is gradient and torch.equal(parameter, values)
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not model.training and (model.fc.bias.grad == 5).all()


def test_hooks_and_gradients_are_restored_after_a_failure():
    model, images, target, _ = random_case(3, 2, 2, (8, 9))

    def fails(_output):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        gradcamo(model, images, target, "act", target=fails)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_resnet18_of_torchvision_by_module_and_by_name():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(weights=None, num_classes=5).eval()
    images, target = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.uint8)
    target[:, 10:40, 20:60] = 1
    by_module = gradcamo(model, images, target, layer=model.layer4)
    by_name = gradcamo(model, images, target, layer="layer4")
    assert by_module.columns() == by_name.columns() and by_module.embedding.shape == (2, 512)
    expected = brute_share(brute_maps(model, images, model.layer4), target)
    np.testing.assert_allclose(by_module.gradcamo, expected.numpy(), rtol=1e-5)
    inner = gradcamo(model, images, target, layer="layer3.0.bn2")
    np.testing.assert_allclose(
        inner.gradcamo, brute_share(_inner_maps(model, images, inner.predicted_class), target).numpy(), rtol=1e-4
    )
    assert inner.columns()["evidence_target"] == [None, None]


def _inner_maps(model, images, classes):
    """Compute Grad-CAM at layer3.0.bn2, whose output is modified in place: an added zero has the same gradient."""
    kept = {}

    def add_zero(_module, _inputs, output):
        kept["value"], kept["zero"] = output.detach().clone(), torch.zeros_like(output, requires_grad=True)
        return output + kept["zero"]

    handle = model.layer3[0].bn2.register_forward_hook(add_zero)
    logits = model(images)
    handle.remove()
    gradient = torch.autograd.grad(logits[range(len(images)), classes].sum(), kept["zero"])[0]
    return (gradient.mean((2, 3), keepdim=True) * kept["value"]).sum(1).clamp_min(0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_network_in_bfloat16_has_evidence_that_adds_up(bias):
    model, images, target, neighbours = random_case(5, 3, 3, (6, 9, 10))
    if not bias:
        model.fc.bias = None
    result = gradcamo(model.bfloat16(), images, target, "act", neighbours, target=1)
    total = result.evidence_target + result.evidence_neighbour + result.evidence_background
    np.testing.assert_allclose(total, result.logit - result.logit_bias, atol=2e-2)
    assert bias or (result.logit_bias == 0).all()


def test_a_linear_layer_that_does_not_follow_the_pooling_is_no_head():
    model, images, _, _ = random_case(5, 2, 3, (9, 10), head="mlp")
    logits, outputs = capture_activations(model, images, {"act": model.act})
    assert find_pooled_head(model, outputs["act"], logits) is None


def test_layers_are_found_by_name_or_module():
    model = Net(2)
    assert find_layer(model, "second") == ("second", model.second)
    assert find_layer(model, model.act) == ("act", model.act)


def _call_with(**changes):
    model, images, target, _ = random_case(0, 2, 2, (9, 10))
    arguments = {"model": model, "images": images, "target_masks": target, "layer": "act"} | changes
    return lambda: gradcamo(**arguments)


NAN = torch.zeros(2, 2, 9, 10)
NAN[1, 0, 3, 3] = torch.nan


def _with_dropout() -> Net:
    model = Net(2).eval()
    model.act.forward = lambda x: torch.nn.functional.dropout(x.relu())
    return model


def _normalised_by_batch() -> Net:
    model = Net(2)
    model.second = torch.nn.Sequential(model.second, torch.nn.BatchNorm2d(6, track_running_stats=False))
    return model.eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_call_with(target_masks=torch.zeros(2, 9, 9)), r"\(2, 9, 10\)"),
        (_call_with(target_masks=torch.zeros(2, 1, 9, 10)), "channel axis"),
        (_call_with(neighbour_masks=torch.zeros(1, 9, 10)), "neighbour_masks"),
        (_call_with(target_masks=torch.full((2, 9, 10), 7)), "labels == label"),
        (_call_with(layer="layer9"), "named_modules"),
        (_call_with(layer=torch.nn.ReLU()), "not part of the model"),
        (_call_with(layer=[]), "no layer"),
        (_call_with(layer="fc"), "convolutional"),
        (_call_with(model=Net(2)), r"model\.eval\(\)"),
        (_call_with(model=_normalised_by_batch()), r"second\.1 \(BatchNorm2d\) has no running statistics"),
        (_call_with(model=_with_dropout(), layer="first"), "same images give different logits"),
        (_call_with(images=NAN), "index 1"),
        (_call_with(images=torch.zeros(0, 2, 9, 10), target_masks=torch.zeros(0, 9, 10)), "at least one image"),
        (_call_with(images=torch.zeros(2, 9, 10)), r"\(B, C, Y, X\)"),
        (_call_with(target=9), "class"),
        (_call_with(target=torch.tensor([0, 9])), "outside 0 to 3"),
        (_call_with(target=[0, 1, 2]), "one integer class per sample"),
        (_call_with(target=lambda out: out), "one scalar per sample"),
        (_call_with(target=lambda out: out[:, 0].detach()), "does not depend"),
        (_call_with(definition="cubic"), "linear"),
        (_call_with(method="saliency"), "choose one of"),
    ],
)
def test_invalid_arguments_are_refused_with_a_remedy(call, message):
    with pytest.raises(ExplainError, match=message):
        call()


def test_a_layer_that_never_runs_is_an_error():
    model, images, target, _ = random_case(0, 2, 2, (9, 10))
    model.idle = torch.nn.Conv2d(2, 2, 1).eval()
    with pytest.raises(ExplainError, match="did not run"):
        gradcamo(model, images, target, "idle")


def _one_logit(head: str = "gap") -> tuple[Net, Net, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make a network with a single logit z, its twin with the logits -z/2 and z/2, images and masks."""
    one, images, target, neighbours = random_case(5, 2, 12, (9, 10), head=head, classes=1)
    two, *_ = random_case(5, 2, 12, (9, 10), head=head, classes=2)
    with torch.no_grad():
        one.fc.bias -= one(images).quantile(0.5)
        for name in ("first", "second", "between"):
            getattr(two, name).load_state_dict(getattr(one, name).state_dict())
        two.fc.weight.copy_(torch.cat([-one.fc.weight, one.fc.weight]) / 2)
        two.fc.bias.copy_(torch.cat([-one.fc.bias, one.fc.bias]) / 2)
    return one, two, images, target, neighbours


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("head", ["gap", "max"])
def test_the_decision_of_a_single_logit_is_explained_on_both_sides_of_zero(head, squeezed):
    one, two, images, target, neighbours = _one_logit(head)
    if squeezed:
        one.register_forward_hook(lambda _module, _inputs, output: output[:, 0])
    expected = gradcamo(two, images, target, "act", neighbours).columns()
    assert {*expected["predicted_class"]} == {0, 1}
    for chosen in (None, expected["predicted_class"]):
        found = gradcamo(one, images, target, "act", neighbours, target=chosen).columns()
        for name in COLUMNS:
            scale = 2 if name.startswith(("logit", "evidence")) else 1
            twice = [value * scale if scale == 2 and value is not None else value for value in expected[name]]
            assert close(found[name], twice, 1e-4), name
    other = gradcamo(one, images, target, "act", target=[1 - label for label in expected["predicted_class"]])
    np.testing.assert_allclose(other.logit, [-2 * value for value in expected["logit"]], rtol=1e-4)
    with pytest.raises(ExplainError, match="outside 0 to 1"):
        gradcamo(one, images, target, "act", target=2)


def test_strong_evidence_against_the_positive_class_is_where_a_negative_cell_is_explained():
    """Channel 0 speaks for the class and is bright on the left, channel 1 against it and is bright on the right."""
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.append(torch.nn.Linear(2, 1, bias=False)).eval()
    model[3].weight.data = torch.tensor([[1.0, -1.0]])
    images, target = torch.zeros(2, 2, 16, 16), torch.zeros(2, 16, 16)
    images[:, 0, :, 2:5], images[0, 1, :, 10:14], target[:, :, 8:] = 1, 5, 1
    result = gradcamo(model, images, target, "0")
    assert result.predicted_class.tolist() == [0, 1]
    np.testing.assert_allclose(result.gradcamo, [1, 0])
    np.testing.assert_allclose(result.logit, [17 / 16, 3 / 16])


def test_a_callable_target_without_logits_has_no_predicted_class():
    model, images, target, _ = random_case(1, 2, 3, (10, 12))
    model.register_forward_hook(lambda _module, _inputs, output: {"embedding": output})
    result = gradcamo(model, images, target, "act", target=lambda output: output["embedding"][:, 1])
    assert result.columns()["predicted_class"] == [None] * 3 and result.logits.shape == (3, 0)
    assert result.columns()["probability"] == [None] * 3 and not np.isnan(result.logit).any()
