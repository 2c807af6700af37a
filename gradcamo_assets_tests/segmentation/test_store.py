from __future__ import annotations

import json

import numpy as np
import pytest

from gradcamo_assets.common.errors import SegmentationError
from gradcamo_assets.common.provenance import Provenance
from gradcamo_assets.segmentation import Masks, read_masks, write_masks

PROVENANCE = Provenance(inputs="abc", parameters={"network": "compact"}, code="1")
SIZE = (1.0, 0.5, 0.5)


def some_masks(shape: tuple[int, int, int] = (3, 20, 30)) -> Masks:
    rng = np.random.default_rng(1)
    return Masks(rng.integers(0, 70_000, shape).astype(np.uint32), rng.integers(0, 5, shape).astype(np.uint32))


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 7, 5)])
def test_what_is_written_is_read(tmp_path, shape):
    masks = some_masks(shape)
    write_masks(tmp_path / "1", masks, SIZE, PROVENANCE)
    back = read_masks(tmp_path / "1")
    assert back.cells.dtype == back.nuclei.dtype == np.uint32
    np.testing.assert_array_equal(back.cells, masks.cells)
    np.testing.assert_array_equal(back.nuclei, masks.nuclei)
    assert PROVENANCE.is_current(tmp_path / "1")


def test_a_second_write_replaces_the_first(tmp_path):
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)
    write_masks(tmp_path / "1", some_masks((1, 4, 4)), SIZE, PROVENANCE)
    assert read_masks(tmp_path / "1").cells.shape == (1, 4, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Provenance, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_masks(tmp_path / "1", some_masks((1, 4, 4)), SIZE, PROVENANCE)
    assert read_masks(tmp_path / "1").cells.shape == (3, 20, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_the_images_open_as_labels_in_ngio(tmp_path):
    from ngio import open_label

    masks = some_masks()
    write_masks(tmp_path / "1", masks, SIZE, PROVENANCE)
    for kind in ("cells", "nuclei"):
        label = open_label(str(tmp_path / "1" / "labels" / kind))
        np.testing.assert_array_equal(label.get_array(), getattr(masks, kind))
        assert (label.pixel_size.z, label.pixel_size.y, label.pixel_size.x) == SIZE


def test_the_metadata_follow_the_specification(tmp_path):
    """The label group's list and each image's axes and transformations, as NGFF 0.5 words them."""
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)
    group = json.loads((tmp_path / "1" / "labels" / "zarr.json").read_text())
    assert group["attributes"]["ome"] == {"version": "0.5", "labels": ["cells", "nuclei"]}
    image = json.loads((tmp_path / "1" / "labels" / "cells" / "zarr.json").read_text())["attributes"]["ome"]
    assert [axis["name"] for axis in image["multiscales"][0]["axes"]] == ["z", "y", "x"]
    transformation = image["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transformation == [{"type": "scale", "scale": list(SIZE)}]
    assert "image-label" in image


def test_refusals_name_the_folder(tmp_path):
    with pytest.raises(SegmentationError, match="missing"):
        read_masks(tmp_path / "missing")
    masks = some_masks()
    with pytest.raises(SegmentationError, match="one field"):
        write_masks(tmp_path / "1", Masks(masks.cells, masks.nuclei[:2]), SIZE, PROVENANCE)
    assert not (tmp_path / "1").exists()
