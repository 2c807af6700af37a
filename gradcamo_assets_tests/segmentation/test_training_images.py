from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from segmentation_training.images import training_image
from segmentation_training.train import _augmented, _sample, loss

pytestmark = pytest.mark.slow


def test_equal_seeds_give_equal_images_and_others_do_not():
    first, second, other = training_image(3), training_image(3), training_image(4)
    for stain, again in zip(first.cytoplasm, second.cytoplasm, strict=True):
        np.testing.assert_array_equal(stain, again)
    np.testing.assert_array_equal(first.nucleus, second.nucleus)
    np.testing.assert_array_equal(first.nuclei, second.nuclei)
    assert not np.array_equal(first.nucleus, other.nucleus)


def test_objects_are_connected_and_every_nucleus_lies_in_one_cell():
    for seed in range(8):
        image = training_image(seed, size=128)
        for labels in (image.cells, image.nuclei):
            for label in np.unique(labels[labels > 0]):
                assert ndi.label(labels == label)[1] == 1
        for label in np.unique(image.nuclei[image.nuclei > 0]):
            owners = np.unique(image.cells[image.nuclei == label])
            assert len(owners) == 1
            assert owners[0] > 0
        assert all(np.isfinite(stain).all() for stain in (*image.cytoplasm, image.nucleus))


def test_images_differ_in_size_kind_and_number_of_stains():
    images = [training_image(seed) for seed in range(30)]
    assert {image.kind for image in images} >= {"sparse", "crowded", "confluent", "layered"}
    assert {len(image.cytoplasm) for image in images} == {1, 2, 3, 4}
    widths = np.concatenate([2 * np.sqrt(np.bincount(image.cells.ravel())[1:] / np.pi) for image in images])
    assert np.percentile(widths[widths > 0], 5) < 16
    assert np.percentile(widths, 99) > 45


def test_without_a_cytoplasm_stain_a_cell_is_its_nucleus():
    drawn = [seed for seed in range(99) if np.random.default_rng([seed, 1]).random() < 0.05]
    samples = [_sample(seed) for seed in drawn[:3]]
    alone = [s for s in samples if np.array_equal(s.inputs["cells"][0], s.inputs["cells"][1])]
    assert len(alone) == 3
    for sample in alone:
        np.testing.assert_array_equal(sample.labels["cells"], sample.labels["nuclei"])
    for sample in samples:
        for which, labels in sample.labels.items():
            np.testing.assert_array_equal(sample.targets[which][2] > 0, labels > 0)


def test_the_loss_equals_that_of_cellpose():
    from cellpose.train import _loss_fn_seg

    torch.manual_seed(0)
    output, flows = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8)
    inside = (torch.rand(2, 1, 8, 8) > 0.5).float()
    theirs = _loss_fn_seg(torch.cat([inside, flows], 1), output, torch.device("cpu"))
    torch.testing.assert_close(loss(output, torch.cat([flows, inside], 1)), theirs)


def test_augmented_flows_and_masks_stay_together():
    """Flows point inward after rotation and scaling: following them for a few pixels stays inside."""
    y, x = np.mgrid[:192, :192].astype(np.float32)
    length = np.hypot(70 - y, 110 - x) + 1e-6
    inside = length < 50
    target = np.stack([(70 - y) / length * inside, (110 - x) / length * inside, inside]).astype(np.float32)
    rng = np.random.default_rng(0)
    for side in (144, 192, 256) * 4:
        inputs, turned = _augmented(rng, inside[None].astype(np.float16), target, side)
        assert inputs.shape == (1, side, side)
        assert not inputs[:, :8].any()
        flow_y, flow_x, body = turned.numpy()
        at = np.argwhere(body > 0)
        assert len(at) == pytest.approx(np.pi * (50 * (side - 16) / 192) ** 2, rel=0.05)
        to = np.rint(at + 6 * np.stack([flow_y, flow_x], -1)[tuple(at.T)]).astype(int)
        assert body[tuple(to.T)].mean() > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_the_benchmarks_average_precision_equals_that_of_cellpose(seed):
    from cellpose.metrics import average_precision as theirs

    from benchmarks.segmentation import average_precision

    rng = np.random.default_rng(seed)
    truth = ndi.zoom(rng.integers(0, 30, (3, 8, 8)), (1, 4, 4), order=0)
    predicted = np.roll(truth, seed, axis=2) * (rng.random(truth.shape) < 0.95)
    predicted[predicted == 3] = 4
    assert average_precision(predicted, truth) == pytest.approx(theirs([truth], [predicted], [0.5])[0][0, 0])
    assert average_precision(np.zeros_like(truth), truth) == 0


def test_the_hard_fields_never_change():
    import zlib

    from benchmarks.segmentation_fields import hard_field

    field = hard_field(0)
    assert (field.cells.max(), field.nuclei.max()) == (303, 303)
    assert zlib.crc32(np.ascontiguousarray(field.cells.astype(np.uint16))) == 84_356_973
