from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from gradcamo_assets.errors import SegmentationError
from gradcamo_assets.provenance import Provenance, stored_version
from gradcamo_assets.segmentation import Masks, read_masks, write_masks
from gradcamo_assets.segmentation.masks import CONFIDENCE_SCHEMA

PROVENANCE = Provenance(inputs="abc", parameters={"network": "compact"}, code="1")
SIZE = (1.0, 0.5, 0.5)


def some_masks(shape: tuple[int, int, int] = (3, 20, 30)) -> Masks:
    rng = np.random.default_rng(1)
    return Masks(rng.integers(0, 70_000, shape).astype(np.uint32), rng.integers(0, 5, shape).astype(np.uint32))


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 7, 5), (5, 600, 700), (3, 1100, 1000)])
def test_masks_are_read_back(tmp_path, shape):
    masks = some_masks(shape)
    write_masks(tmp_path / "1", masks, SIZE, PROVENANCE)
    back = read_masks(tmp_path / "1")
    assert back.cells.dtype == back.nuclei.dtype == np.uint32
    np.testing.assert_array_equal(back.cells, masks.cells)
    np.testing.assert_array_equal(back.nuclei, masks.nuclei)
    assert stored_version(tmp_path / "1") == PROVENANCE.version
    files = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert len(files) == 2, "a file for each label image, however many slices"


def test_masks_without_a_nucleus_stain_are_read_back(tmp_path):
    write_masks(tmp_path / "1", Masks(some_masks().cells, None), SIZE, PROVENANCE)
    back = read_masks(tmp_path / "1")
    assert back.nuclei is None
    np.testing.assert_array_equal(back.cells, some_masks().cells)
    labels = json.loads((tmp_path / "1" / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert labels == ["cells"] == [path.name for path in (tmp_path / "1" / "labels").iterdir() if path.is_dir()]


def test_confidence_is_stored_with_the_labels_and_read_back(tmp_path):
    confidence = pl.DataFrame([[1, 0.9, 0.1, 0], [7, 0.5, None, 3]], schema=CONFIDENCE_SCHEMA, orient="row")
    masks = some_masks()
    write_masks(tmp_path / "1", Masks(masks.cells, masks.nuclei, confidence), SIZE, PROVENANCE)
    assert_frame_equal(read_masks(tmp_path / "1").confidence, confidence)
    image = json.loads((tmp_path / "1" / "labels" / "cells" / "zarr.json").read_text())["attributes"]["ome"]
    assert image["image-label"]["properties"][0] == {
        "label-value": 1, "cell_probability": 0.9, "flow_error": 0.1, "stitch_breaks": 0
    }  # fmt: skip


def test_masks_of_unknown_voxel_size_state_no_unit(tmp_path):
    """NGFF: "If scaling information is not available [...] defaulting to 1.0"."""
    write_masks(tmp_path / "1", some_masks(), (None, 0.5, 0.25), PROVENANCE)
    for kind in ("cells", "nuclei"):
        image = json.loads((tmp_path / "1" / "labels" / kind / "zarr.json").read_text())["attributes"]["ome"]
        (multiscale,) = image["multiscales"]
        assert [axis.get("unit") for axis in multiscale["axes"]] == [None, "micrometer", "micrometer"]
        assert multiscale["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 0.5, 0.25]}]


@pytest.mark.parametrize("image_label", [None, {}, {"colors": [{"label-value": 1, "rgba": [0, 0, 0, 0]}]}])
def test_masks_without_confidence_are_read_with_an_empty_frame(tmp_path, image_label):
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)
    path = tmp_path / "1" / "labels" / "cells" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["ome"]["image-label"] = image_label
    if image_label is None:
        del content["attributes"]["ome"]["image-label"]
    path.write_text(json.dumps(content))
    confidence = read_masks(tmp_path / "1").confidence
    assert len(confidence) == 0
    assert dict(confidence.schema) == CONFIDENCE_SCHEMA


def test_damaged_confidence_is_reported(tmp_path):
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)
    path = tmp_path / "1" / "labels" / "cells" / "zarr.json"
    path.write_text(path.read_text().replace('"image-label": {}', '"image-label": {"properties": [3]}'))
    with pytest.raises(SegmentationError, match="no readable masks"):
        read_masks(tmp_path / "1")


def test_existing_masks_never_change(tmp_path):
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)
    write_masks(tmp_path / "1", some_masks((1, 4, 4)), SIZE, PROVENANCE)
    assert read_masks(tmp_path / "1").cells.shape == (3, 20, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Provenance, "write", fail)
    for name in ("1", "2"):
        with pytest.raises(OSError, match="disk full"):
            write_masks(tmp_path / name, some_masks((1, 4, 4)), SIZE, PROVENANCE)
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
    """The label group's list and each image's axes and transformations, as NGFF 0.5 defines them."""
    write_masks(tmp_path / "1", some_masks(), SIZE, PROVENANCE)
    group = json.loads((tmp_path / "1" / "labels" / "zarr.json").read_text())
    assert group["attributes"]["ome"] == {"version": "0.5", "labels": ["cells", "nuclei"]}
    image = json.loads((tmp_path / "1" / "labels" / "cells" / "zarr.json").read_text())["attributes"]["ome"]
    assert [axis["name"] for axis in image["multiscales"][0]["axes"]] == ["z", "y", "x"]
    transformation = image["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transformation == [{"type": "scale", "scale": list(SIZE)}]
    assert "image-label" in image


def test_the_labels_validate_as_ngff_and_open_in_the_reader_that_napari_uses(tmp_path):
    zarr, ome_zarr_io, ome_zarr_reader = (pytest.importorskip(m) for m in ("zarr", "ome_zarr.io", "ome_zarr.reader"))
    models = pytest.importorskip("ome_zarr_models.v05", reason="ome-zarr-models, which checks NGFF, is not installed")
    confidence = pl.DataFrame([[3, 0.9, 0.1, 0]], schema=CONFIDENCE_SCHEMA, orient="row")
    masks = some_masks()
    write_masks(tmp_path / "1", Masks(masks.cells, masks.nuclei, confidence), SIZE, PROVENANCE)
    for kind in ("cells", "nuclei"):
        path = tmp_path / "1" / "labels" / kind
        model = models.ImageLabel.from_zarr(zarr.open_group(path, mode="r"))
        assert model.ome_attributes.image_label is not None
        location = ome_zarr_io.parse_url(str(path))
        (node,) = ome_zarr_reader.Reader(location)()
        assert any(isinstance(spec, ome_zarr_reader.Label) for spec in node.specs)
        np.testing.assert_array_equal(np.asarray(node.data[0]), getattr(masks, kind))
        if kind == "cells":
            assert node.metadata["properties"][3]["cell_probability"] == 0.9


def test_errors_name_the_folder(tmp_path):
    with pytest.raises(SegmentationError, match="missing"):
        read_masks(tmp_path / "missing")
    masks = some_masks()
    with pytest.raises(SegmentationError, match="expected equal shapes"):
        write_masks(tmp_path / "1", Masks(masks.cells, masks.nuclei[:2]), SIZE, PROVENANCE)
    assert not (tmp_path / "1").exists()
