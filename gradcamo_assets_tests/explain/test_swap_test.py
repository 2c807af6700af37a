"""Test the swap test on networks with known behaviour, and against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradcamo_assets.explain import faithfulness, swap_test
from gradcamo_assets.explain.surroundings import transplant_cells
from gradcamo_assets_tests.explain.nets import Reads, scene


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("where", [0, 1])
def test_a_network_that_reads_the_cell_survives_and_one_that_reads_its_surroundings_does_not(where, axes):
    images, target, neighbours, classes = scene(axes)
    model = Reads(where, axes).eval()
    scored, columns = faithfulness.audit(model, images, target, "act", neighbours, treatments=classes.tolist())
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


def test_a_network_with_a_constant_prediction_survives_no_swap():
    images, target, neighbours, classes = scene(2)
    model = Reads(0, 2).eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias[1] = 3
    _, columns = faithfulness.audit(model, images, target, "act", neighbours, treatments=classes.tolist())
    assert not columns["survives_swap"].any()


def test_columns_equal_a_loop(monkeypatch):
    images, target, neighbours, classes = scene(3)
    images = images + 0.3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(2))
    model = Reads(0, 3).eval()
    drawn = []
    draw_partners = swap_test.draw_partners

    def record_partners(treatments, rng):
        drawn.append(draw_partners(treatments, rng))
        return drawn[-1]

    monkeypatch.setattr(swap_test, "draw_partners", record_partners)
    monkeypatch.setattr(swap_test, "transplant_cells", lambda *cells, generator: transplant_cells(*cells, soften=0))
    intact = swap_test.run_network(model, images, "act")
    columns = swap_test.compute_swap_columns(model, images, target, neighbours, "act", intact, classes.tolist())
    logits, label = model(images), intact.logits.argmax(1)
    for cell in range(len(images)):
        drops, elsewhere, replaced = [], [], []
        for partner in (int(others[cell]) for others in drawn):
            assert classes[partner] != classes[cell]
            # All targets have the same outline, so a swap selects one of two images per voxel.
            swapped = torch.where(target[cell][None], images[cell], images[partner])[None]
            other = model(swapped)
            elsewhere.append(other[0].softmax(0))
            host = torch.where(target[cell][None], images[partner], images[cell])[None]
            replaced.append(model(host)[0].softmax(0)[label[cell]])
            drops.append(float(logits[cell, label[cell]] - other[0, label[cell]]))
        assert columns["logit_drop_swapped_surroundings"][cell] == pytest.approx(np.mean(drops), abs=1e-4)
        probabilities = torch.stack(elsewhere).mean(0).tolist()
        assert columns["swapped_class"][cell] == np.argmax(probabilities)
        predicted = probabilities.pop(int(label[cell]))
        margin = predicted - max(*probabilities, float(torch.stack(replaced).mean()))
        assert columns["swap_margin"][cell] == pytest.approx(margin, abs=1e-4)
        assert columns["survives_swap"][cell] == (margin > 0)


def test_partners_have_another_treatment_and_a_single_treatment_has_none():
    rng = np.random.default_rng(0)
    treatments = [None, "a", "b", "a", "a", "b"]
    for _ in range(20):
        drawn = swap_test.draw_partners(treatments, rng)
        assert all(treatments[i] != treatments[k] for i, k in enumerate(drawn))
    assert (swap_test.draw_partners(["a"] * 3, rng) == -1).all()
    images, target, neighbours, _ = scene(2, cells=3)
    intact = swap_test.run_network(model := Reads(1, 2).eval(), images, "act")
    alone = swap_test.compute_swap_columns(model, images, target, neighbours, "act", intact, ["a"] * 3)
    assert all(np.isnan(values).all() for values in alone.values())
