"""Check which crops swap surroundings, and the labels afterwards."""

from __future__ import annotations

import pytest
import torch

from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.training.swap_surroundings import swap_surroundings


def batch(count: int = 8):
    """Crop i is i everywhere but on its target, 100 + i, and on its neighbours, 50 + i."""
    labels = torch.zeros(count, 2, 16, 18, dtype=torch.uint8)
    labels[:, :, 5:10, 5:10] = TARGET
    for crop in range(count):
        labels[crop, :, 12:, crop : crop + 5] = NEIGHBOUR
    number = torch.arange(float(count)).reshape(-1, 1, 1, 1, 1)
    seen = labels[:, None].expand(-1, 3, -1, -1, -1)
    return number + 100 * (seen == TARGET) + 50 * (seen == NEIGHBOUR), labels


def test_share_decides_how_many_crops_change_and_the_input_is_not_modified():
    images, labels = batch()
    before = images.clone(), labels.clone()
    torch.manual_seed(0)
    for share, expected in ((0.0, 0), (1.0, len(images))):
        swapped_images, swapped_labels = swap_surroundings(images, labels, share=share, soften=0)
        assert sum(not torch.equal(a, b) for a, b in zip(swapped_images, images, strict=True)) == expected
        assert torch.equal(swapped_labels == TARGET, labels == TARGET)
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    none = swap_surroundings(images, torch.where(labels == TARGET, 0, labels), share=1.0)
    assert torch.equal(none[0], images), "a crop without a target stays"
    many = torch.cat([images] * 100), torch.cat([labels] * 100)
    assert float((swap_surroundings(*many, share=0.3)[0] != many[0]).flatten(1).any(1).float().mean()) == pytest.approx(
        0.3, abs=0.06
    )


def test_surroundings_come_from_one_other_crop_with_its_labels():
    images, labels = batch()
    torch.manual_seed(1)
    swapped_images, swapped_labels = swap_surroundings(images, labels, share=1.0, soften=0)
    for crop in range(len(images)):
        target = labels[crop] == TARGET
        assert bool((swapped_images[crop][:, target] == 100 + crop).all())
        (donor,) = (swapped_images[crop][:, swapped_labels[crop] == 0] % 50).unique().tolist()
        assert donor != crop
        donor_neighbours = labels[int(donor)] == NEIGHBOUR
        assert torch.equal(swapped_labels[crop] == NEIGHBOUR, donor_neighbours & ~target)
        assert bool((swapped_images[crop][:, donor_neighbours & ~target] == 50 + donor).all())


def test_a_cell_that_is_alone_has_background_around_it_and_no_neighbours():
    images, labels = batch()
    torch.manual_seed(1)
    swapped_images, swapped_labels = swap_surroundings(images, labels, share=1.0, soften=0, alone=1.0)
    assert torch.equal(swapped_labels == TARGET, labels == TARGET)
    assert not bool((swapped_labels == NEIGHBOUR).any())
    around = swapped_images[:, 0][swapped_labels == 0]
    assert float(around.max()) < len(images), "background of the donors only"


def test_a_pool_gives_all_surroundings_and_a_single_crop_does_not_change():
    images, labels = batch()
    assert torch.equal(swap_surroundings(images[:1], labels[:1], share=1.0)[0], images[:1])
    pool = images[:3] + 1000, labels[:3]
    swapped_images, swapped_labels = swap_surroundings(images, labels, share=1.0, soften=0, pool=pool)
    assert set(swapped_images.permute(1, 0, 2, 3, 4)[0][swapped_labels == 0].tolist()) <= {1000.0, 1001.0, 1002.0}
    assert bool((swapped_images[0][:, labels[0] == TARGET] == 100).all())


def test_donors_are_equally_likely_and_seeds_repeat_them():
    images, labels = batch(3)
    torch.manual_seed(3)
    swapped = [swap_surroundings(images, labels, share=1.0, soften=0)[0] for _ in range(300)]
    corners = torch.stack([image[:, 0, 0, 0, 0] for image in swapped])
    for crop, drawn in enumerate(corners.long().T):
        expected = [0 if donor == crop else 150 for donor in range(3)]
        assert torch.bincount(drawn, minlength=3).tolist() == pytest.approx(expected, abs=40)
    swapped = [swap_surroundings(images[:1], labels[:1], share=1.0, pool=(images, labels))[0] for _ in range(300)]
    counts = torch.bincount(torch.stack([image[0, 0, 0, 0, 0] for image in swapped]).long())
    assert counts.tolist() == pytest.approx([100] * 3, abs=40)
    twice = []
    for _ in range(2):
        torch.manual_seed(7)
        twice.append(swap_surroundings(images, labels, share=0.5)[0])
    assert torch.equal(*twice)
