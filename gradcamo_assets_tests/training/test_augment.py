"""Check augmentation against torch.rot90, slicing, and all possible mirror images of a small crop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.training.augment import augment, rotate_in_plane, shift_slices

OFF = dict.fromkeys(("flip", "rotate", "shift_z", "gain", "offset", "noise", "crosstalk"), 0.0)


def _crops(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_zero_strengths_change_nothing_and_the_input_is_not_modified() -> None:
    images = _crops(3, 2, 4, 6, 5)
    before = images.clone()
    assert torch.equal(augment(images, **OFF), before)
    augment(images, **dict.fromkeys(OFF, 0.5))
    assert torch.equal(images, before)


@pytest.mark.parametrize(("height", "width", "turns"), [(8, 8, 1), (7, 7, 3), (8, 8, 2), (6, 10, 2)])
def test_rotation_by_quarter_turns_equals_rot90(height: int, width: int, turns: int) -> None:
    images = _crops(2, 3, 4, height, width)
    turned = rotate_in_plane(images, torch.full((2,), turns * math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(images, turns, (-2, -1)), atol=1e-4, rtol=0)


@given(st.floats(-7, 7), st.sampled_from([(41, 41), (41, 61), (60, 40)]))
def test_any_rotation_turns_a_blob_and_fills_with_background(angle: float, size: tuple[int, int]) -> None:
    """The blob keeps its mass, and its centre of mass rotates by the angle, in every slice and stain."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in size)
    blob = torch.exp(-((y[:, None] - 6) ** 2 + (x - 9) ** 2) / 8)
    images = blob.expand(1, 2, 3, *size) * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1)
    turned = rotate_in_plane(images, torch.tensor([angle]))
    assert float(turned[0, 0, 0].sum()) == pytest.approx(float(blob.sum()), rel=0.01)
    torch.testing.assert_close(turned[:, 1], 2 * turned[:, 0])
    assert torch.equal(turned[0, 0, 0], turned[0, 0, 2])
    plane = turned[0, 0, 0] / turned[0, 0, 0].sum()
    found = float((plane.sum(1) * y).sum()), float((plane.sum(0) * x).sum())
    # rot90 sends the axis y (down) to x (right): the angle grows from down to right.
    start, radius = math.atan2(9, 6), math.hypot(6, 9)
    expected = radius * math.cos(start + angle), radius * math.sin(start + angle)
    assert found == pytest.approx(expected, abs=0.05)
    corner = rotate_in_plane(torch.ones(1, 1, 1, 20, 20), torch.tensor([math.pi / 4]))[0, 0, 0]
    assert corner[0, 0] == 0 and corner[10, 10] == 1


def test_a_shift_equals_slicing_with_the_end_slice_repeated() -> None:
    images = _crops(2, 3, 5, 4, 4)
    assert torch.equal(shift_slices(images, 1), torch.cat([images[:, :, 1:], images[:, :, -1:]], 2))
    assert torch.equal(shift_slices(images, -1), torch.cat([images[:, :, :1], images[:, :, :-1]], 2))
    flat = _crops(2, 3, 1, 4, 4)
    assert torch.equal(shift_slices(flat, 1), flat)


def test_flips_give_all_sixteen_mirror_images_and_no_other() -> None:
    """Eight images in plane, each with its reverse in z; stains keep their order, and z never mixes with y or x."""
    crop = _crops(2, 3, 3, 3)
    plane = [torch.rot90(crop, k, (-2, -1)) for k in range(4)]
    plane += [image.transpose(-1, -2) for image in plane]
    expected = plane + [image.flip(-3) for image in plane]
    torch.manual_seed(0)
    found = augment(crop.expand(400, *crop.shape), **{**OFF, "flip": 0.5})
    kinds = [[index for index, image in enumerate(expected) if torch.equal(image, crop)] for crop in found]
    assert all(len(kind) == 1 for kind in kinds)
    assert len({kind[0] for kind in kinds}) == 16
    oblong = augment(_crops(50, 1, 2, 3, 4), **{**OFF, "flip": 1.0, "shift_z": 1.0, "rotate": 1.0})
    assert oblong.shape == (50, 1, 2, 3, 4)


def test_intensities_differ_by_crop_and_stain_and_noise_by_voxel() -> None:
    torch.manual_seed(0)
    ones = torch.ones(200, 3, 2, 4, 4)
    lit = augment(ones, **{**OFF, "gain": 0.1, "offset": 0.2})
    per_stain = lit[:, :, 0, 0, 0]
    assert torch.equal(lit, per_stain[:, :, None, None, None].expand_as(lit))
    assert float(per_stain.std()) == pytest.approx(math.hypot(0.1, 0.2), rel=0.1)
    assert abs(float(torch.corrcoef(per_stain.T)[0, 1])) < 0.2
    noisy = augment(ones, **{**OFF, "noise": 0.3})
    assert float((noisy - ones).std()) == pytest.approx(0.3, rel=0.05)


def test_crosstalk_adds_other_stains_and_leaves_masks_alone() -> None:
    """Every stain is 1 in a slice of its own, so that the mixed image shows the shares."""
    images = torch.zeros(400, 4, 3, 2, 2)
    for stain in range(3):
        images[:, stain, stain] = 1
    images[:, 3] = 1
    torch.manual_seed(0)
    mixed = augment(images, **{**OFF, "crosstalk": 0.2}, mask_channels=1)
    shares = mixed[:, :3, :, 0, 0]
    assert torch.equal(mixed[:, 3], images[:, 3])
    assert torch.equal(mixed, mixed[..., :1, :1].expand_as(mixed)), "the same share in every voxel"
    assert torch.equal(torch.diagonal(shares, dim1=1, dim2=2), torch.ones(400, 3))
    others = shares[:, ~torch.eye(3, dtype=torch.bool)]
    assert float(others.std()) == pytest.approx(0.2, rel=0.1) and abs(float(others.mean())) < 0.02


def test_the_seed_repeats_the_draws() -> None:
    images = _crops(4, 2, 3, 6, 6)
    strengths = dict.fromkeys(OFF, 0.5)
    torch.manual_seed(3)
    first = augment(images, **strengths)
    torch.manual_seed(3)
    assert torch.equal(augment(images, **strengths), first)
