from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradcamo_assets.cells import cell_table, match_labels
from gradcamo_assets.errors import GradcamoError, SegmentationError
from gradcamo_assets.segmentation import Segmenter, SegmenterConfig
from gradcamo_assets.segmentation.compact_network import load_network
from gradcamo_assets.segmentation.engines import SHIPPED_WEIGHTS

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(SegmenterConfig())


@pytest.fixture(scope="module")
def field():
    """One field of a synthetic plate, whose code shares nothing with that of the training images."""
    from gradcamo_assets.synthetic import SyntheticPlate, render_field

    return render_field(SyntheticPlate(seed=11), 0, 1)


STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")


def average_precision(predicted: np.ndarray, truth: np.ndarray) -> float:
    hits = int((match_labels(predicted, truth)["iou"] >= 0.5).sum())
    return hits / (len(np.unique(predicted)) - 1 + len(np.unique(truth)) - 1 - hits)


@pytest.fixture(scope="module")
def masks(segmenter, field):
    return segmenter.segment(field.image, STAINS[: len(field.image)], (1.0, 0.5, 0.5))


def test_a_synthetic_field_is_segmented(masks, field):
    assert masks.cells.dtype == masks.nuclei.dtype == np.uint32
    assert masks.cells.shape == masks.nuclei.shape == field.image.shape[1:]
    assert average_precision(masks.cells, field.cells) >= 0.7
    assert average_precision(masks.nuclei, field.nuclei) >= 0.7


def test_one_slice_is_plain_2d(segmenter, field):
    middle = field.image.shape[1] // 2
    masks = segmenter.segment(field.image[:, middle : middle + 1], STAINS[: len(field.image)])
    assert masks.cells.shape == (1, *field.image.shape[2:])
    assert average_precision(masks.cells, field.cells[middle : middle + 1]) >= 0.6


def test_empty_slices_above_and_below_stay_empty(segmenter, field):
    image = field.image[:, 4:8]
    dark = np.repeat(image.min(axis=(1, 2, 3), keepdims=True), 2, axis=1) + np.zeros_like(image[:, :2])
    padded = np.concatenate([dark, image, dark], axis=1).astype(np.uint16)
    masks = segmenter.segment(padded, STAINS[: len(image)])
    assert not masks.cells[[0, 1, -2, -1]].any()
    assert masks.cells[2:-2].any()


@pytest.mark.parametrize("shape", [(2, 3, 70, 90), (2, 1, 33, 17), (2, 2, 16, 300)])
def test_constant_and_noisy_fields_are_empty(segmenter, shape):
    constant = segmenter.segment(np.full(shape, 100, np.uint16), ["DNA", "ER"])
    assert constant.cells.shape == shape[1:]
    assert not constant.cells.any()
    assert not constant.nuclei.any()
    noise = np.random.default_rng(0).poisson(100, shape).astype(np.uint16)
    assert not segmenter.segment(noise, ["DNA", "ER"]).cells.any()


def test_batches_of_slices_give_the_masks_of_whole_stacks(segmenter, field, monkeypatch):
    image = field.image[:, 4:8]
    whole = segmenter.segment(image, STAINS[: len(image)])
    monkeypatch.setattr("gradcamo_assets.segmentation.segment._MAX_BATCH_PIXELS", image.shape[2] * image.shape[3])
    batched = segmenter.segment(image, STAINS[: len(image)])
    np.testing.assert_array_equal(whole.cells, batched.cells)
    np.testing.assert_array_equal(whole.nuclei, batched.nuclei)


def one_cell(depth: int = 3) -> np.ndarray:
    """Two stains (2, Z, Y, X) of a round cell 30 pixels wide with a nucleus."""
    distance = np.hypot(*np.mgrid[-48:48, -48:48])
    stains = np.stack([900 * (distance < 8), 500 * (distance < 15)])[:, None] + np.full((2, depth, 1, 1), 100)
    return np.random.default_rng(0).poisson(stains).astype(np.uint16)


@pytest.mark.parametrize("depth", [1, 3])
def test_one_cell_only(segmenter, depth):
    masks = segmenter.segment(one_cell(depth), ["DNA", "ER"])
    assert (masks.cells.max(), masks.nuclei.max()) == (1, 1)
    assert (masks.cells[:, 48, 48] == 1).all()
    assert 500 <= (masks.cells[0] > 0).sum() <= 1000
    row = masks.confidence.row(0, named=True)
    assert row["label"] == 1
    assert row["cell_probability"] > 0.8
    assert row["flow_error"] < 0.3
    assert row["stitch_breaks"] == 0


def test_every_cell_has_its_confidence(masks):
    assert masks.confidence["label"].to_list() == list(range(1, int(masks.cells.max()) + 1))
    assert masks.confidence["cell_probability"].is_between(0.5, 1).all()
    assert masks.confidence["flow_error"].is_between(0, 4).all()


@pytest.mark.parametrize("cytoplasm", [None, ()])
def test_cells_are_found_from_nuclei_alone(cytoplasm):
    segmenter = Segmenter(SegmenterConfig(cytoplasm=cytoplasm))
    masks = segmenter.segment(one_cell()[:1], ["DNA"])
    assert masks.nuclei.max() == 1
    assert (masks.cells[:, 48, 48] == 1).all()
    assert segmenter.version["cytoplasm"] == (None if cytoplasm is None else [])


def test_cells_are_found_without_a_nucleus_stain():
    segmenter = Segmenter(SegmenterConfig(nucleus="none"))
    masks = segmenter.segment(one_cell()[1:], ["GFP"])
    assert masks.nuclei is None
    assert masks.cells.max() == 1
    assert 500 <= (masks.cells[0] > 0).sum() <= 1000
    assert segmenter.version["nucleus"] == "none"


@pytest.mark.parametrize("settings", [{"nucleus": "DAPI"}, {"cytoplasm": ("AGP",)}])
def test_a_missing_channel_is_named(settings):
    with pytest.raises(SegmentationError, match=r"not exactly one channel '(DAPI|AGP)'"):
        Segmenter(SegmenterConfig(**settings)).segment(one_cell(), ["DNA", "ER"])


def test_two_touching_balls_are_separated_in_3d(field):
    """The z step is twice the pixel size."""
    segmenter = Segmenter(SegmenterConfig(mode="3d"))
    z, y, x = np.ogrid[:14, :64, :110]
    distance = np.minimum(*(np.hypot(np.hypot(2 * (z - 6.5), y - 32), x - at) for at in (32, 66)))
    image = np.random.default_rng(0).poisson(100 + np.stack([900 * (distance < 7), 500 * (distance < 13)]))
    masks = segmenter.segment(image.astype(np.uint16), ["DNA", "ER"], (1.0, 0.5, 0.5))
    truth = np.where(distance < 13, 1 + (x > 49), 0)
    assert average_precision(masks.cells, truth) == 1
    assert masks.confidence["label"].to_list() == [1, 2]
    assert (masks.confidence["cell_probability"] > 0.5).all()
    assert (masks.confidence["flow_error"] < 0.6).all()


@pytest.mark.slow
def test_blocks_of_a_field_give_the_masks_of_the_whole_field(field, monkeypatch):
    segmenter = Segmenter(SegmenterConfig(mode="3d"))
    image, stains = field.image[:, :, :, :64], STAINS[: len(field.image)]
    whole = segmenter.segment(image, stains, (1.0, 0.5, 0.5))
    monkeypatch.setattr("gradcamo_assets.segmentation.segment._MAX_BLOCK_VOXELS", 125 * 125 * 24)
    monkeypatch.setattr("gradcamo_assets.segmentation.segment._HALO", 1.0)
    in_blocks = segmenter.segment(image, stains, (1.0, 0.5, 0.5))
    assert average_precision(in_blocks.cells, whole.cells) >= 0.85
    assert average_precision(in_blocks.nuclei, whole.nuclei) >= 0.85
    assert in_blocks.confidence["label"].to_list() == list(range(1, int(in_blocks.cells.max()) + 1))


def test_stacks_with_close_slices_are_segmented_in_3d(segmenter):
    """Mode auto needs five slices, a known voxel size, and at least six slices in the width of a cell."""
    assert segmenter._is_3d(5, is_known=True, z_step=1 / 6)
    assert not segmenter._is_3d(4, is_known=True, z_step=1 / 6)
    assert not segmenter._is_3d(5, is_known=False, z_step=1 / 6)
    assert not segmenter._is_3d(5, is_known=True, z_step=1 / 5)
    assert not Segmenter(SegmenterConfig(mode="stitch"))._is_3d(5, is_known=True, z_step=1 / 30)
    assert Segmenter(SegmenterConfig(mode="3d"))._is_3d(5, is_known=False, z_step=1)
    assert not Segmenter(SegmenterConfig(mode="3d"))._is_3d(1, is_known=True, z_step=1 / 30)


def test_mode_3d_rejects_few_slices_and_segments_one_slice_in_2d(segmenter):
    segmenter_3d = Segmenter(SegmenterConfig(mode="3d"))
    with pytest.raises(SegmentationError, match="needs 5 slices"):
        segmenter_3d.segment(one_cell(4), ["DNA", "ER"])
    np.testing.assert_array_equal(
        segmenter_3d.segment(one_cell(1), ["DNA", "ER"]).cells, segmenter.segment(one_cell(1), ["DNA", "ER"]).cells
    )
    with pytest.raises(SegmentationError, match=r"voxel size is unknown.*voxel_size = \[z, y, x\] in the .toml file"):
        segmenter_3d.segment(one_cell(6), ["DNA", "ER"], (None, 0.5, 0.5))
    empty = segmenter_3d.segment(np.full((2, 6, 40, 40), 7, np.uint16), ["DNA", "ER"], (1.0, 0.5, 0.5))
    assert not empty.cells.any()
    assert len(empty.confidence) == 0


@pytest.mark.parametrize(
    ("voxel", "anisotropy"), [((1.0, 0.5, 0.5), 2), ((1.0, 1.0, 1.0), 1), ((0.0, 1.0, 1.0), 1), ((2.0, 0.3, 0.5), 5)]
)
def test_anisotropy_follows_the_voxel_size(segmenter, voxel, anisotropy):
    assert segmenter._anisotropy(voxel) == pytest.approx(anisotropy)
    assert Segmenter(SegmenterConfig(anisotropy=3.5))._anisotropy(voxel) == 3.5


def shipped_network(kind: str) -> torch.nn.Module:
    return load_network(kind, SHIPPED_WEIGHTS / f"{kind}.safetensors")


def another_network(kind: str) -> torch.nn.Module:
    network = shipped_network(kind)
    with torch.no_grad():
        network.head.bias[2] -= 100
    return network


def no_network(kind: str) -> torch.nn.Module:
    return torch.nn.Conv2d(3, 3, 1)


def test_a_users_registered_network(segmenter, field):
    """The shipped network, given by its import path, finds the same cells as 'compact'."""
    registered = Segmenter(SegmenterConfig(network=f"{__name__}:shipped_network"))
    image, names = field.image[:, 4:6], STAINS[: len(field.image)]
    found, want = (each.segment(image, names, (1.0, 0.5, 0.5)) for each in (registered, segmenter))
    assert average_precision(found.cells, want.cells) > 0.8
    assert average_precision(found.nuclei, want.nuclei) > 0.8
    other = Segmenter(SegmenterConfig(network=f"{__name__}:another_network"))
    assert not other.segment(image, names, (1.0, 0.5, 0.5)).cells.any()
    assert registered.version["network"] == f"{__name__}:shipped_network"
    assert registered.version["weights"].keys() == {"cells", "nuclei"}
    assert registered.version["weights"] == Segmenter(registered.config).version["weights"] != other.version["weights"]


def test_missing_registered_networks_and_wrong_outputs_are_rejected():
    for name in ("no_module_of_this_name:f", f"{__name__}:absent"):
        with pytest.raises(SegmentationError, match="cannot be imported"):
            Segmenter(SegmenterConfig(network=name))
    with pytest.raises(SegmentationError, match="wrong output"):
        Segmenter(SegmenterConfig(network=f"{__name__}:no_network")).segment(one_cell(), ["DNA", "ER"])


def test_nan_is_rejected(segmenter):
    with pytest.raises(SegmentationError, match="NaN or infinity"):
        segmenter.segment(np.full((2, 1, 32, 32), np.nan), ["DNA", "ER"])


def test_wrong_shapes_and_channels_are_rejected(segmenter):
    for shape, channels, message in (
        ((2, 32, 32), ["DNA", "ER"], "shape"),
        ((2, 1, 32, 32), ["DNA"], "shape"),
        ((2, 1, 0, 32), ["DNA", "ER"], "shape"),
        ((2, 1, 32, 32), ["ER", "RNA"], "no channel could be the nucleus"),
        ((2, 1, 32, 32), ["w1", "w2"], "Set nucleus"),
    ):
        with pytest.raises(SegmentationError, match=message):
            segmenter.segment(np.zeros(shape, np.uint16), channels)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "cyto3"},
        {"network": "cpsam_v3"},
        {"mode": "2d"},
        {"anisotropy": 0},
        {"network": "module:"},
        {"cytoplasm": "ER"},
        {"diameter": 0},
        {"diameter": float("nan")},
        {"stitch_threshold": 0},
        {"flow_threshold": -1},
        {"min_volume": -1},
    ],
)
def test_invalid_settings_are_rejected(settings):
    with pytest.raises(GradcamoError, match=next(iter(settings))):
        SegmenterConfig(**settings)


@pytest.mark.parametrize("network", ["cpsam_v2", "cpsam", "cpdino", "cpdino-vitb"])
def test_large_weights_are_never_downloaded(network, monkeypatch, tmp_path):
    import cellpose.models

    monkeypatch.setattr(cellpose.models, "MODEL_DIR", tmp_path)
    monkeypatch.setattr(cellpose.utils, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(SegmentationError, match="Download them once"):
        Segmenter(SegmenterConfig(network=network))


def test_a_folder_needs_both_weights_and_a_file_must_be_of_cellpose(tmp_path):
    with pytest.raises(SegmentationError, match="weights file is missing"):
        Segmenter(SegmenterConfig(network=str(tmp_path)))
    (tmp_path / "mine").write_bytes(b"no weights")
    with pytest.raises(SegmentationError, match="cannot load"):
        Segmenter(SegmenterConfig(network=str(tmp_path / "mine"))).segment(
            np.random.default_rng(0).integers(0, 99, (2, 1, 32, 32)), ["DNA", "ER"]
        )


def test_the_version_names_weights_and_parameters():
    first, second = Segmenter().version, Segmenter(SegmenterConfig(diameter=40)).version
    assert first["weights"].keys() == {"cells", "nuclei"}
    assert first["cellpose"]
    assert {name for name in first if first[name] != second[name]} == {"diameter"}


@pytest.mark.parametrize(("voxel", "diameter"), [(1.0, 30), (0.5, 30), (0.6, 30), (0.1, 150), (1.5, 10), (0.001, 30)])
def test_the_scale_follows_the_voxel_size(segmenter, voxel, diameter):
    assert segmenter._diameter((1.0, voxel, voxel)) == pytest.approx(diameter)
    assert Segmenter(SegmenterConfig(diameter=44))._diameter((1.0, voxel, voxel)) == 44


@pytest.mark.parametrize(
    ("voxel", "diameter"),
    [((None, None, None), 30), ((2.0, None, None), 30), ((None, 1.0, 1.0), 30), ((1.0, 1.0, 1.0), 30),
     ((None, 0.1, 0.1), 150), ((2.0, 1.0, 1.0), 15)],
)  # fmt: skip
def test_an_unknown_pixel_size_leaves_the_scale_of_the_network(segmenter, voxel, diameter):
    """A single slice needs no z; 1 um along every axis is what files state that do not know their scale."""
    assert segmenter._diameter(voxel) == pytest.approx(diameter)


def test_an_unknown_z_step_is_no_reason_for_3d(segmenter, monkeypatch):
    asked = []
    monkeypatch.setattr(Segmenter, "_is_3d", lambda self, depth, is_known, z_step: asked.append(is_known))
    for voxel in ((None, 0.5, 0.5), (None, None, None), (1.0, 0.5, 0.5)):
        segmenter.segment(np.zeros((2, 5, 40, 40), np.uint16), ["DNA", "ER"], voxel)
    assert asked == [False, False, True]


def test_real_fields_of_a_screen(segmenter):
    """Counts by eye: about 15 and 50 nuclei."""
    folder = DATA / "jump_rab30_mini" / "jump_rab30_mini" / "images.zarr" / "images"
    if not folder.exists():
        pytest.skip(f"real images not found: {folder}")
    import zarr

    images = zarr.open_array(folder, mode="r")[:]
    channels = ["AGP", "DNA", "ER", "Mito", "RNA"]
    for image, fewest, most in zip(images, (12, 40), (19, 62), strict=True):
        masks = Segmenter(SegmenterConfig(diameter=50)).segment(image[:, None], channels)
        assert fewest <= masks.nuclei.max() <= most
        assert cell_table(masks.cells, masks.nuclei)["nucleus_label"].is_not_null().mean() > 0.6


def test_a_real_stack(segmenter):
    path = DATA / "plantseg_rgb3d" / "tests" / "resources" / "rgb_3D.tif"
    if not path.exists():
        pytest.skip(f"real stack not found: {path}")
    import tifffile

    stack = tifffile.imread(path).transpose(1, 0, 2, 3)
    masks = segmenter.segment(stack, ["nuclei", "cytoplasm"])
    assert 4 <= masks.nuclei.max() <= 25
    tall = cell_table(masks.nuclei, masks.nuclei).select("bbox_z0", "bbox_z1")
    assert (tall["bbox_z1"] - tall["bbox_z0"]).median() >= 10
