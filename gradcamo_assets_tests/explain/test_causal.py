"""The swap test on networks whose reasons are known, and against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradcamo_assets.explain import faithfulness as a
from gradcamo_assets.explain import swap_test as causal
from gradcamo_assets.explain.surroundings import moved_to
from gradcamo_assets_tests.explain.nets import Reads, scene


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("where", [0, 1])
def test_who_reads_the_cell_survives_and_who_reads_its_surroundings_does_not(where, axes):
    images, target, neighbours, classes = scene(axes)
    model = Reads(where, axes).eval()
    scored, columns = a.audit(model, images, target, "act", neighbours, treatments=classes.tolist())
    assert scored.predicted_class.tolist() == classes.tolist()
    assert (columns["survives_swap"] == (where == 0)).all()
    names = ["swapped_target", "swapped_surroundings"]
    moved, stayed = names if where == 0 else names[::-1]
    assert (columns[f"probability_drop_{moved}"] > 0.4).all()
    assert (np.abs(columns[f"probability_drop_{stayed}"]) < 0.2).all()
    assert (columns[f"embedding_move_{moved}"] > columns[f"embedding_move_{stayed}"]).all()
    if where == 0:
        assert (columns["probability_drop_background_only"] > 0.3).all()
    else:
        assert np.abs(columns["logit_drop_background_only"]).max() < columns["logit_drop_swapped_surroundings"].min()


def test_a_network_that_answers_always_the_same_survives_nothing():
    images, target, neighbours, classes = scene(2)
    model = Reads(0, 2).eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias[1] = 3
    _, columns = a.audit(model, images, target, "act", neighbours, treatments=classes.tolist())
    assert not columns["survives_swap"].any()


def test_columns_equal_a_loop(monkeypatch):
    images, target, neighbours, classes = scene(3)
    images = images + 0.3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(2))
    model = Reads(0, 3).eval()
    drawn = []
    honest = causal.partners

    def noted(treatments, rng):
        drawn.append(honest(treatments, rng))
        return drawn[-1]

    monkeypatch.setattr(causal, "partners", noted)
    monkeypatch.setattr(causal, "moved_to", lambda *cells, generator: moved_to(*cells, soften=0))
    intact = causal.respond(model, images, "act")
    found = causal.swap_test(model, images, target, neighbours, "act", intact, classes.tolist())
    logits, label = model(images), intact.logits.argmax(1)
    for cell in range(len(images)):
        drops, here, there = [], [], []
        for partner in (int(others[cell]) for others in drawn):
            assert classes[partner] != classes[cell]
            # All targets have one outline here, so that a swap is one choice a voxel.
            swapped = torch.where(target[cell][None], images[cell], images[partner])[None]
            other = model(swapped)
            here.append(other[0].softmax(0))
            host = torch.where(target[cell][None], images[partner], images[cell])[None]
            there.append(model(host)[0].softmax(0)[label[cell]])
            drops.append(float(logits[cell, label[cell]] - other[0, label[cell]]))
        assert found["logit_drop_swapped_surroundings"][cell] == pytest.approx(np.mean(drops), abs=1e-4)
        stays = torch.stack(here).mean(0).tolist()
        assert found["swapped_class"][cell] == np.argmax(stays)
        own = stays.pop(int(label[cell]))
        margin = own - max(*stays, float(torch.stack(there).mean()))
        assert found["swap_margin"][cell] == pytest.approx(margin, abs=1e-4)
        assert found["survives_swap"][cell] == (margin > 0)


def test_partners_are_of_another_treatment_and_one_treatment_has_none():
    rng = np.random.default_rng(0)
    treatments = [None, "a", "b", "a", "a", "b"]
    for _ in range(20):
        drawn = causal.partners(treatments, rng)
        assert all(treatments[i] != treatments[k] for i, k in enumerate(drawn))
    assert (causal.partners(["a"] * 3, rng) == -1).all()
    images, target, neighbours, _ = scene(2, cells=3)
    intact = causal.respond(model := Reads(1, 2).eval(), images, "act")
    alone = causal.swap_test(model, images, target, neighbours, "act", intact, ["a"] * 3)
    assert all(np.isnan(values).all() for values in alone.values())
