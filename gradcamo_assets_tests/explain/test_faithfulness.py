"""Test the audit against loops, against networks with known behaviour, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import auc
from torch import nn

from gradcamo_assets.errors import ExplainError
from gradcamo_assets.explain import faithfulness, gradcamo
from gradcamo_assets.explain.overlap import measure_overlap
from gradcamo_assets.explain.projection import project_regions
from gradcamo_assets_tests.explain.nets import random_case


class Bright(nn.Module):
    """Two classes; the second one's logit grows with the positive part of the first channel."""

    def __init__(self, axes: int = 3):
        super().__init__()
        self.conv = (nn.Conv2d if axes == 2 else nn.Conv3d)(2, 1, 1)
        self.act, self.fc = nn.ReLU(), nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0] = 1
            self.conv.bias.zero_()
            self.fc.weight.copy_(torch.tensor([[-20.0], [20.0]]))
            self.fc.bias.copy_(torch.tensor([0.5, 0.0]))

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(2).mean(2))


def scene(lit: str, axes: int = 3, cells: int = 5):
    """Make crops with a target and a neighbour. The region ``lit`` is bright; dim backgrounds differ between crops."""
    generator = torch.Generator().manual_seed(0)
    crop = (4, 18, 20)[3 - axes :]
    images = 0.01 * torch.rand(cells, 2, *crop, generator=generator)
    target, neighbours = torch.zeros(cells, *crop, dtype=torch.bool), torch.zeros(cells, *crop, dtype=torch.bool)
    for cell in range(cells):
        target[cell, ..., 6:12, 6 : 11 + cell % 3] = True
        neighbours[cell, ..., :4, cell : 6 + cell] = True
    where = {"target": target, "neighbour": neighbours, "background": ~(target | neighbours)}[lit]
    images[:, 0][where] = 1
    return images, target, neighbours


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("lit", ["target", "neighbour"])
def test_only_replacing_the_relevant_region_drops_the_logit(lit, axes):
    images, target, neighbours = scene(lit, axes)
    model = Bright(axes).eval()
    scored, columns = faithfulness.audit(model, images, target, "act", neighbours)
    assert scored.predicted_class.tolist() == [1] * 5
    for region in faithfulness.REGIONS:
        assert ((columns[f"logit_drop_{region}"] > 0.3) == (region == lit)).all(), region
    effect = columns["effect_target"]
    assert (effect > 0.95).all() if lit == "target" else (effect < 0.05).all()
    # The brightest voxels are deleted or inserted first, so few of them remove or restore the class.
    assert (columns["insertion_auc"] > columns["deletion_auc"]).all()


def test_logit_drops_and_embedding_moves_equal_a_loop():
    model, images, target, neighbours = random_case(3, 3, 4, (4, 13, 12))
    neighbours[2] = False
    scored, columns = faithfulness.audit(model, images, target, "act", neighbours, seed=5)
    blank = faithfulness.make_background_crops(images, target | neighbours, seed=5)

    def run(image):
        features = model.act(model.second(torch.tanh(model.first(image[None]))))[0]
        return model(image[None])[0], features.flatten(1).mean(1)

    for cell, label in enumerate(scored.predicted_class):
        logits, embedding = run(images[cell])
        for name, mask in (("target", target), ("neighbour", neighbours), ("background", ~(target | neighbours))):
            if not mask[cell].any():
                assert np.isnan(columns[f"logit_drop_{name}"][cell])
                continue
            changed = images[cell].clone()
            changed[:, mask[cell]] = blank[cell][:, mask[cell]]
            other, moved = run(changed)
            assert columns[f"logit_drop_{name}"][cell] == pytest.approx(float(logits[label] - other[label]), abs=1e-5)
            distance = 1 - float(embedding @ moved / embedding.norm() / moved.norm())
            assert columns[f"embedding_move_{name}"][cell] == pytest.approx(distance, abs=1e-5)


def test_the_audit_of_a_single_logit_equals_that_of_two_logits():
    """A sigmoid of z is the softmax of -z/2 and z/2; drops of the logit are twice as large."""
    images, target, neighbours = scene("target", cells=6)
    images[::2, 0] -= 1
    two, one = Bright().eval(), Bright().eval()
    one.fc = nn.Linear(1, 1).eval()
    with torch.no_grad():
        two.fc.weight.copy_(torch.tensor([[-20.0], [20.0]]))
        two.fc.bias.copy_(torch.tensor([0.2, -0.2]))
        one.fc.weight.fill_(40)
        one.fc.bias.fill_(-0.4)
    (scored, found), (_, expected) = (
        faithfulness.audit(net, images, target, "act", neighbours, treatments=[0, 1] * 3) for net in (one, two)
    )
    assert scored.predicted_class.tolist() == [0, 1] * 3
    for name, values in expected.items():
        if not name.startswith("randomised"):
            scale = 2 if name.startswith("logit") else 1
            np.testing.assert_allclose(found[name], scale * values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_blank_crop_holds_other_crops_background_of_the_same_slice(axes):
    crop = (3, 16, 15)[3 - axes :]
    images = torch.zeros(6, 1, *crop)
    for index in range(6):
        images[index] = 100 * (index + 1)
    if axes == 3:
        images += torch.arange(3.0)[None, None, :, None, None]
    occupied = torch.zeros(6, *crop, dtype=torch.bool)
    occupied[..., 4:12, 4:11] = True
    images[occupied[:, None].expand_as(images)] = -1
    blank = faithfulness.make_background_crops(images, occupied)
    assert float(blank.min()) >= 100  # No voxel of a cell remains.
    if axes == 3:
        assert bool((blank.remainder(100).remainder(50) == torch.arange(3.0)[:, None, None]).all())
    source_crop = (blank / 100).floor()
    own_crop = torch.arange(1.0, 7).reshape(6, *(1,) * (images.ndim - 1))
    assert float((source_crop == own_crop).float().mean()) < 0.02  # Medians may fall into the range of the own crop.


@pytest.mark.parametrize("axes", [2, 3])
def test_a_blank_crop_is_made_of_shifted_copies_that_fill_each_others_gaps(axes):
    crop = (2, 9, 8)[3 - axes :]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(5, 3, *crop, generator=generator)
    occupied = torch.rand(5, *crop, generator=generator) < 0.8
    blank = faithfulness.make_background_crops(images, occupied, seed=3).numpy()
    expected, rng = np.full(images.shape, np.nan, np.float32), np.random.default_rng(3)
    for number in range(24):
        shift = (number % 4 + 1, *(int(rng.integers(size)) for size in crop[-2:]))
        copies, free = (np.roll(array.numpy(), shift, (0, -2, -1)) for array in (images, ~occupied))
        expected = np.where(np.isnan(expected) & free[:, None], copies, expected)
    is_covered = ~np.isnan(expected)
    assert is_covered.mean() > 0.9
    np.testing.assert_array_equal(blank[is_covered], expected[is_covered])


def test_uncovered_voxels_get_the_median_and_missing_background_is_refused():
    images = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).clone()
    occupied = torch.ones(2, 4, 4, dtype=torch.bool)
    occupied[0, 0, 0] = False
    assert torch.isfinite(faithfulness.make_background_crops(images, occupied)).all()
    for arguments, message in (
        ((images[:1], occupied[:1]), "two crops"),
        ((images, torch.ones_like(occupied)), "larger"),
    ):
        with pytest.raises(ExplainError, match=message):
            faithfulness.make_background_crops(*arguments)


@pytest.mark.parametrize("axes", [2, 3])
def test_curves_equal_a_loop_over_voxels_and_areas_equal_scikit_learn(axes):
    model, images, target, _ = random_case(8, axes, 3, (4, 9, 10)[3 - axes :])
    scored = gradcamo(model, images, target, "act")
    classes = torch.as_tensor(scored.predicted_class)
    maps = torch.rand(scored.cam.shape)  # Without ties the order is unique.
    blank = torch.randn_like(images)
    curves = faithfulness.compute_deletion_insertion(model, images, blank, maps, "act", classes, steps=4)
    mode = "bilinear" if axes == 2 else "trilinear"
    fine = nn.functional.interpolate(maps[:, None], size=images.shape[2:], mode=mode)[:, 0]
    for cell in range(3):
        voxels = np.argsort(-fine[cell].flatten().numpy(), kind="stable")
        for step, part in enumerate(curves.fraction):
            deleted, inserted = images[cell].clone().flatten(1), blank[cell].clone().flatten(1)
            chosen = voxels[: int(np.ceil(part * len(voxels)))]
            deleted[:, chosen], inserted[:, chosen] = (source[cell].flatten(1)[:, chosen] for source in (blank, images))
            for curve, changed in ((curves.deletion, deleted), (curves.insertion, inserted)):
                with torch.no_grad():
                    probability = model(changed.reshape(images[cell].shape)[None]).softmax(1)[0, classes[cell]]
                assert curve[step, cell] == pytest.approx(float(probability), abs=1e-5)
        assert curves.deletion_auc[cell] == pytest.approx(auc(curves.fraction, curves.deletion[:, cell]))
        assert curves.insertion_auc[cell] == pytest.approx(auc(curves.fraction, curves.insertion[:, cell]))
    np.testing.assert_allclose(curves.deletion[0], curves.insertion[-1], atol=1e-6)
    np.testing.assert_allclose(curves.deletion[-1], curves.insertion[0], atol=1e-6)


def test_weights_are_shuffled_from_the_head_downwards():
    model, *_ = random_case(1, 2, 1, (8, 8), head="mlp")
    names = [name for name, _ in model.named_parameters()]
    for share, untouched in ((0.25, names[:6]), (0.5, names[:4]), (1.0, [])):
        shuffled = dict(faithfulness.randomise_weights(model, share).named_parameters())
        for name, before in model.named_parameters():
            after = shuffled[name]
            torch.testing.assert_close(after.flatten().sort().values, before.flatten().sort().values, rtol=0, atol=0)
            assert torch.equal(after, before) == (name in untouched), (share, name)


def test_the_chance_level_is_the_score_under_other_cells_masks():
    generator = torch.Generator().manual_seed(4)
    maps = torch.rand(4, 3, 3, generator=generator)
    masks = torch.rand(4, 9, 9, generator=generator) < 0.3
    expected = [
        np.mean([
            measure_overlap(maps[cell][None], project_regions(masks[other][None], None, (3, 3))).gradcamo_adjusted
            for other in range(4) if other != cell
        ])
        for cell in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(faithfulness.compute_chance_level(maps, masks), expected, rtol=1e-10)
    assert np.isnan(faithfulness.compute_chance_level(maps[:1], masks[:1])).all()


def test_the_rank_correlation_ignores_nan():
    score = [0.1, 0.5, np.nan, 0.9, 0.7]
    assert faithfulness.rank_correlation(score, [1, 2, 3, 9, 4]) == pytest.approx(1)
    assert np.isnan(faithfulness.rank_correlation(score, [1, np.nan, 3, np.nan, 4]))
    assert np.isnan(faithfulness.rank_correlation([1, 2, 3], [5, 5, 5]))
