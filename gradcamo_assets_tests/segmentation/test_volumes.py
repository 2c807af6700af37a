"""Volumes compared with Cellpose's run_3D, and resized labels compared with scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi
from torch import nn

from gradcamo_assets.segmentation.volumes import resize_labels, segment_volume


class PixelwiseNetwork(nn.Module):
    """Computes each pixel from itself alone, so that tiles and margins do not matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(3, 3, 1)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, x):
        return self.mix(x), x.new_zeros(len(x), 256)


@pytest.mark.parametrize("step", [1, 2])
def test_predictions_in_three_planes_are_summed_as_by_cellpose(step, monkeypatch):
    """Planes in between are interpolated, which is exact inside a stack that is linear along each axis."""
    from cellpose.core import run_3D

    monkeypatch.setattr("gradcamo_assets.segmentation.volumes._PLANE_STEP", step)
    rng = np.random.default_rng(0)
    stack = rng.random((3, 7, 30, 41), np.float32)
    inside = np.s_[:, :, :, :]
    if step > 1:
        z, y, x = np.ogrid[:7, :30, :41]
        stack = np.stack([z * a + y * b + x * c for a, b, c in rng.normal(0, 0.1, (3, 3))]).astype(np.float32)
        inside = np.s_[:, 1:-1, 1:-1, 1:-1]
    network = PixelwiseNetwork()
    want, _ = run_3D(network, np.ascontiguousarray(stack.transpose(1, 2, 3, 0)), bsize=64, batch_size=4)
    with torch.inference_mode():
        _, flows, logits = segment_volume(network, stack, stack.shape[1:], 1, 100.0)
    length = np.maximum(np.sqrt((want[..., :3] ** 2).sum(-1)), 5)
    want_flows = (want[..., :3] / length[..., None]).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(flows[inside], want_flows[inside], atol=1e-5)
    np.testing.assert_allclose(logits[inside[1:]], want[inside[1:]][..., 3] / 3, atol=1e-5)


def test_resized_labels_are_those_of_the_nearest_voxel():
    labels = np.random.default_rng(1).integers(0, 9, (5, 8, 6))
    for size in ((5, 8, 6), (10, 16, 18), (3, 4, 5), (1, 1, 1)):
        resized = resize_labels(labels, size)
        assert resized.shape == size
        grid = np.meshgrid(
            *[((np.arange(n) + 0.5) * old / n - 0.5) for n, old in zip(size, labels.shape, strict=True)], indexing="ij"
        )
        # A tiny shift, so that ties are resolved equally.
        want = ndi.map_coordinates(labels, [part + 1e-6 for part in grid], order=0, mode="nearest")
        np.testing.assert_array_equal(resized, want)
