from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage as ndi

from gradcamo_assets.segmentation.train import loss
from gradcamo_assets.segmentation.training_images import training_image


def test_equal_seeds_give_equal_images_and_others_do_not():
    first, second, other = training_image(3), training_image(3), training_image(4)
    np.testing.assert_array_equal(first.cytoplasm, second.cytoplasm)
    np.testing.assert_array_equal(first.nuclei, second.nuclei)
    assert not np.array_equal(first.cytoplasm, other.cytoplasm)


def test_objects_are_connected_and_every_nucleus_lies_in_one_cell():
    for seed in range(12):
        image = training_image(seed, size=128)
        for labels in (image.cells, image.nuclei):
            for label in np.unique(labels[labels > 0]):
                assert ndi.label(labels == label)[1] == 1
        for label in np.unique(image.nuclei[image.nuclei > 0]):
            owners = np.unique(image.cells[image.nuclei == label])
            assert len(owners) == 1
            assert owners[0] > 0
        assert np.isfinite(image.cytoplasm).all()
        assert np.isfinite(image.nucleus).all()


def test_the_loss_is_cellposes():
    from cellpose.train import _loss_fn_seg

    torch.manual_seed(0)
    output, flows = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8)
    inside = (torch.rand(2, 1, 8, 8) > 0.5).float()
    theirs = _loss_fn_seg(torch.cat([inside, flows], 1), output, torch.device("cpu"))
    torch.testing.assert_close(loss(output, torch.cat([flows, inside], 1)), theirs)
