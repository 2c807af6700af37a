from __future__ import annotations

import pytest
import torch

from gradcamo_assets.common.errors import SegmentationError
from gradcamo_assets.segmentation.compact import INPUTS, CompactNetwork, load_network
from gradcamo_assets.segmentation.segment import SHIPPED


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
