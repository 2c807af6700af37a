"""Test swapped surroundings against loops over voxels, on crops whose regions differ in value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.explain.surroundings import fill_with_background, soften_edges, transplant_cells


def scene(seed: int, axes: int = 3, cells: int = 4, size: int = 24):
    """Make crops with background 10 + slice, target 1000 + crop and neighbours 500 + crop."""
    generator = torch.Generator().manual_seed(seed)
    crop = (3, size, size + 2)[3 - axes :]
    target, neighbours = (torch.zeros(cells, *crop, dtype=torch.bool) for _ in range(2))
    images = torch.full((cells, 2, *crop), 10.0)
    if axes == 3:
        images += torch.arange(3.0)[:, None, None]
    for cell in range(cells):
        y, x, far = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((7, 10), (7, 10), (0, 4)))
        target[cell, ..., y : y + 8, x : x + 7 + cell % 3] = True
        neighbours[cell, ..., far : far + 3, cell : cell + 9] = True
    for number, (region, value) in enumerate(((neighbours, 500.0), (target, 1000.0))):
        own = (value + torch.arange(float(cells))).reshape(-1, *(1,) * (images.ndim - 1)).expand_as(images)
        images = torch.where(region[:, None], own, images)
        neighbours &= ~target if number == 0 else neighbours
    return images, target, neighbours


@given(st.integers(0, 99), st.sampled_from([2, 3]), st.integers(0, 3))
def test_a_transplanted_cell_is_surrounded_by_its_hosts_neighbours_and_background(seed, axes, soften):
    images, target, neighbours = scene(seed, axes)
    hosts = [1, 2, 3, 0]
    moved = transplant_cells(images, target, images[hosts], target[hosts], neighbours[hosts], soften)
    inside = soften_edges(target, soften)[:, None].expand_as(images)
    assert torch.equal(moved[inside == 1], images[inside == 1])
    assert bool((inside == 1).flatten(1).any(1).all())
    for cell, host in enumerate(hosts):
        outside = ~target[cell]
        host_neighbours = neighbours[host] & outside
        assert torch.equal(moved[cell][:, host_neighbours], images[host][:, host_neighbours])
        # The rest is the host's background of the same slice, without remains of the old one or of the host's target.
        background = outside & ~neighbours[host]
        expected = torch.full_like(images[cell], 10.0)
        if axes == 3:
            expected += torch.arange(3.0)[:, None, None]
        torch.testing.assert_close(moved[cell][:, background], expected[:, background])
    assert torch.equal(images, scene(seed, axes)[0])


@given(st.integers(0, 1000), st.integers(1, 3))
def test_the_soft_edge_is_a_ramp_inside_the_mask(seed, width):
    mask = torch.rand(2, 3, 14, 15, generator=torch.Generator().manual_seed(seed)) < 0.7
    weight = soften_edges(mask, width)
    assert bool((weight[~mask] == 0).all()) and float(weight.max()) <= 1
    for cell, z, y, x in mask.nonzero().tolist():
        window = mask[cell, z, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1].float()
        assert float(weight[cell, z, y, x]) == pytest.approx(max(0.0, 2 * float(window.mean()) - 1), abs=1e-5)
    square = torch.zeros(1, 20, 20, dtype=torch.bool)
    square[0, 4:16, 4:16] = True
    line = soften_edges(square, width)[0, 10, 4:10]
    assert bool((line[1:] >= line[:-1]).all()) and line[width] == 1 and 0 < line[0] < 1


def test_a_hole_that_no_shift_covers_gets_the_mean_background_or_zero():
    images = torch.arange(2.0 * 16).reshape(2, 1, 4, 4)
    occupied = torch.ones(2, 4, 4, dtype=torch.bool)
    occupied[0, 0, :2] = False
    filled = fill_with_background(images, occupied, occupied)
    free = images[0, 0, 0, :2]
    assert set(filled[0].flatten().tolist()) <= {*free.tolist(), float(free.mean())}
    assert bool((filled[1] == 0).all())
