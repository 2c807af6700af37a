from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from gradcamo_assets.cells import match_labels
from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.segmentation import Segmenter, SegmenterConfig, compact_network
from gradcamo_assets.segmentation.compact_network import INPUTS, CompactNetwork, load_network, use_openvino
from gradcamo_assets.segmentation.engines import SHIPPED_WEIGHTS
from segmentation_training.train import REQUIRED


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_shipped_weights_load_and_give_outputs_for_cellpose(kind):
    network = load_network(kind, SHIPPED_WEIGHTS / f"{kind}.safetensors")
    with torch.inference_mode():
        output, style = network(torch.rand(2, 3, 64, 48))
    assert output.shape == (2, 3, 64, 48)
    assert style.shape == (2, 256)
    assert torch.isfinite(output).all()


def test_the_shipped_weights_are_small():
    assert sum((SHIPPED_WEIGHTS / f"{kind}.safetensors").stat().st_size for kind in INPUTS) < 2_000_000


def test_folding_batch_norm_keeps_the_outputs():
    torch.manual_seed(0)
    network = CompactNetwork(2).train()
    with torch.no_grad():
        network(torch.rand(4, 2, 32, 32))
        x = torch.rand(2, 2, 32, 32)
        want = network.eval()(x)[0]
        torch.testing.assert_close(network.fold_batch_norm()(x)[0], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_bfloat16_gives_the_outputs_of_float32_or_is_not_used(kind, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    exact = load_network(kind, SHIPPED_WEIGHTS / f"{kind}.safetensors")
    half = compact_network._use_bfloat16(exact)
    assert {value.dtype for value in exact.parameters()} == {torch.float32}
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(half(image)[0], exact(image)[0], atol=0.3, rtol=0)  # Flows have the length 5.
    monkeypatch.setattr(compact_network, "_BFLOAT16_TOLERANCE", 0.0)
    assert compact_network._use_bfloat16(exact) is exact


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": True}])
@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_openvino_gives_the_outputs_of_torch_at_any_size(kind, capabilities, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    network = load_network(kind, SHIPPED_WEIGHTS / f"{kind}.safetensors")
    use_openvino(network)
    if capabilities and network.compiled is None:
        pytest.skip("this CPU does not compute in bfloat16")
    # The precisions differ more from each other than two libraries that compute in one of them.
    tolerance = 0.3 if capabilities else 1e-4
    for shape in ((1, 3, 96, 64), (3, 3, 48, 128), (2, 3, 96, 64)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = network.predict(images[:, : network.inputs])
            torch.testing.assert_close(network(images)[0], expected, atol=tolerance, rtol=0)


def test_without_openvino_the_network_runs_with_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    segmenter = Segmenter(SegmenterConfig())
    assert segmenter.runtime == "torch"
    monkeypatch.undo()
    assert Segmenter(SegmenterConfig()).runtime == "openvino"


def test_missing_damaged_and_mismatched_weights_are_rejected(tmp_path):
    (tmp_path / "cells.safetensors").write_bytes(b"no weights")
    for path in (
        tmp_path / "cells.safetensors",
        tmp_path / "absent.safetensors",
        SHIPPED_WEIGHTS / "nuclei.safetensors",
    ):
        with pytest.raises(SegmentationError, match="cannot be loaded"):
            load_network("cells", path)


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_the_shipped_weights_reached_the_required_precision(kind):
    report = json.loads((SHIPPED_WEIGHTS / f"{kind}.json").read_text())
    assert report["ap50"]["all"] >= REQUIRED[kind]
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
    reordered = Segmenter().segment(image[order], [channels[k] for k in order])
    np.testing.assert_array_equal(reordered.cells, want.cells)
    np.testing.assert_array_equal(reordered.nuclei, want.nuclei)


def test_with_the_nucleus_stain_alone_a_cell_is_its_nucleus(slices):
    image, _, truth = slices
    masks = Segmenter(SegmenterConfig(cytoplasm=("DNA",))).segment(image[:1], ["DNA"])
    for labels in (masks.nuclei, masks.cells):
        assert (match_labels(truth, labels)["iou"] > 0.5).mean() > 0.85
