from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gradcamo_assets.cells import match_labels
from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.segmentation import Segmenter, SegmenterConfig
from gradcamo_assets.segmentation.compact_network import INPUTS, CompactNetwork, load_network
from gradcamo_assets.segmentation.engines import SHIPPED
from segmentation_training.train import REQUIRED


@pytest.mark.parametrize("which", sorted(INPUTS))
def test_shipped_weights_load_and_give_what_cellpose_expects(which):
    network = load_network(which, SHIPPED / f"{which}.safetensors")
    with torch.inference_mode():
        output, style = network(torch.rand(2, 3, 64, 48))
    assert output.shape == (2, 3, 64, 48)
    assert style.shape == (2, 256)
    assert torch.isfinite(output).all()


def test_the_shipped_weights_are_small():
    assert sum((SHIPPED / f"{which}.safetensors").stat().st_size for which in INPUTS) < 2_000_000


def test_folding_the_normalisation_changes_nothing():
    torch.manual_seed(0)
    network = CompactNetwork(2).train()
    with torch.no_grad():
        network(torch.rand(4, 2, 32, 32))
        x = torch.rand(2, 2, 32, 32)
        want = network.eval()(x)[0]
        torch.testing.assert_close(network.fused()(x)[0], want, atol=1e-4, rtol=1e-4)


def test_weights_that_are_absent_damaged_or_of_another_network_are_refused(tmp_path):
    (tmp_path / "cells.safetensors").write_bytes(b"no weights")
    for path in (tmp_path / "cells.safetensors", tmp_path / "absent.safetensors", SHIPPED / "nuclei.safetensors"):
        with pytest.raises(SegmentationError, match="do not load"):
            load_network("cells", path)


@pytest.mark.parametrize("which", sorted(INPUTS))
def test_the_shipped_weights_reached_what_training_demands(which):
    report = json.loads((SHIPPED / f"{which}.json").read_text())
    assert report["ap50"]["all"] >= REQUIRED[which]
    assert report["loss_every_100_steps"][-1] < report["loss_every_100_steps"][0]


@pytest.fixture(scope="module")
def slices():
    """Three slices of a synthetic field, with the names of its channels."""
    from gradcamo_assets.synthetic import SyntheticPlate, render_field

    field = render_field(SyntheticPlate(seed=11), 0, 1)
    return field.image[:, 5:8], ["DNA", "ER", "RNA", "AGP", "Mito"], field.nuclei[5:8]


def test_the_order_of_channels_does_not_matter(slices):
    image, channels, _ = slices
    want = Segmenter().segment(image, channels)
    order = [3, 1, 4, 0, 2]
    made = Segmenter().segment(image[order], [channels[k] for k in order])
    np.testing.assert_array_equal(made.cells, want.cells)
    np.testing.assert_array_equal(made.nuclei, want.nuclei)


def test_with_the_nucleus_stain_alone_a_cell_is_its_nucleus(slices):
    image, _, truth = slices
    masks = Segmenter(SegmenterConfig(cytoplasm=("DNA",))).segment(image[:1], ["DNA"])
    for made in (masks.nuclei, masks.cells):
        assert (match_labels(truth, made)["iou"] > 0.5).mean() > 0.85
