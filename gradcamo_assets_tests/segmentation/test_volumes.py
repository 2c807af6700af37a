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
        _, flows, logits = segment_volume(network, stack, stack.shape[1:], 1, -100.0)
    length = np.maximum(np.sqrt((want[..., :3] ** 2).sum(-1)), 5)
    want_flows = (want[..., :3] / length[..., None]).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(flows[inside], want_flows[inside], atol=1e-5)
    np.testing.assert_allclose(logits[inside[1:]], want[inside[1:]][..., 3] / 3, atol=1e-5)


class UphillNetwork(nn.Module):
    """Flows lead to brighter pixels, and whatever is bright is inside; counts the pixels that it sees."""

    def __init__(self):
        super().__init__()
        self.seen, self.anchor = 0, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.seen += x.numel()
        slopes = torch.stack(torch.gradient(x[:, 0], dim=(1, 2)), 1)
        flows = 5 * slopes / slopes.norm(dim=1, keepdim=True).clamp_min(1e-3)
        return torch.cat([flows, 20 * (x - 0.3)], 1), x.new_zeros(len(x), 256)


def test_leaving_out_empty_parts_keeps_the_masks(monkeypatch):
    z, y, x = np.ogrid[:24, :100, :300]
    balls = [
        np.exp(-((z - 12) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) / 80) for cy, cx in ((20, 20), (25, 50), (80, 290))
    ]
    stack = np.sum(balls, axis=0, dtype=np.float32)[None]
    results = []
    for least_saving in (0.2, 1.0):
        monkeypatch.setattr("gradcamo_assets.segmentation.volumes._LEAST_SAVING", least_saving)
        network = UphillNetwork()
        results.append((segment_volume(network, stack, stack.shape[1:], 20, 0.0), network.seen))
    (parts, parts_seen), (whole, whole_seen) = results
    assert parts_seen < 0.7 * whole_seen
    assert parts[0].max() == 3
    np.testing.assert_array_equal(parts[0], whole[0])
    for part, same in zip(parts[1:], whole[1:], strict=True):
        np.testing.assert_allclose(part[..., parts[0] > 0], same[..., parts[0] > 0], atol=1e-5)


def test_an_empty_stack_has_no_masks():
    labels, flows, logits = segment_volume(
        UphillNetwork(), np.zeros((1, 8, 40, 200), np.float32), (8, 40, 200), 20, 0.0
    )
    assert not labels.any()
    assert not flows.any()
    assert (logits < 0).all()


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
