"""Test the scoring pass against pytorch-grad-cam and against a brute-force upsample-and-sum."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from gradcamo_assets.cells import CropField, open_crops, write_crops
from gradcamo_assets.cells.dataset import standardise
from gradcamo_assets.errors import BundleError, CropError, GradcamoError
from gradcamo_assets.explain.faithfulness import audit
from gradcamo_assets.networks.bundle import BundleConfig, save_bundle
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.scoring.audit import audit_crops
from gradcamo_assets.scoring.scorer import Scorer, ScoringConfig

CHANNELS = ["DNA", "ER", "Mito"]
SHAPE = (5, 40, 36)


@pytest.fixture
def field(tmp_path: Path) -> CropField:
    """Eleven crops with a target in the middle, most with a neighbour in a corner."""
    rng = np.random.default_rng()
    images = rng.integers(100, 900, (11, 3, *SHAPE)).astype(np.uint16)
    labels = np.zeros((11, *SHAPE), np.uint8)
    for crop in range(11):
        labels[crop, :, 12 : 20 + crop, 10:24] = 1
        if crop % 3:
            labels[crop, 1:, :9, : 3 * crop + 1] = 2
    write_crops(
        tmp_path / "crops.zarr", iter(zip(images, labels, strict=True)), cell_ids=[f"P/A01/1/{i}" for i in range(11)],
        shape=SHAPE, channels=["Mito", "DNA", "ER"],
        statistics={"center": [400.0, 300, 500], "scale": [200.0, 150, 99]},
        voxel_size=[1.0, 0.5, 0.5], provenance=Provenance("", {}, "1"),
    )  # fmt: skip
    return open_crops(tmp_path / "crops.zarr")


def make_bundle(folder: Path, encoder: str = "efficientnet3d-small", **changes: object) -> Path:
    """Save a random encoder whose BatchNorm statistics come from noise."""
    model, layer = build_encoder(encoder, 3, 4)
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(8, 3, *SHAPE))
    values = {
        "encoder": encoder, "layer": layer, "classes": ["a", "b", "c", "d"], "channels": CHANNELS,
        "crop_shape": list(SHAPE), "voxel_size": [1.0, 0.5, 0.5], "split": {"train": ["P/A01"]},
    }  # fmt: skip
    save_bundle(folder, model, BundleConfig(**{**values, **changes}))  # type: ignore[arg-type]
    return folder


def _inputs(field: CropField) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardise by hand, in the bundle's channel order."""
    images, labels = field.read(slice(0, len(field)))
    order = [field.channels.index(name) for name in CHANNELS]
    columns = [(images[:, i].astype(float) - field.center[i]) / field.scale[i] for i in order]
    return torch.from_numpy(np.stack(columns, 1)).float(), torch.from_numpy(labels)


def test_parity_with_upsample_and_sum(field: CropField, tmp_path: Path) -> None:
    scorer = Scorer(make_bundle(tmp_path / "bundle"), ScoringConfig(batch_size=4, precision="float32"))
    scored = scorer.score(field, keep_maps=3)
    images, labels = _inputs(field)
    model = scorer.model
    with torch.no_grad():
        features = model.forward_features(images)
        logits = model(images)
    predicted = logits.argmax(1)
    assert scored.scores["predicted_class"].to_list() == ["abcd"[k] for k in predicted]
    np.testing.assert_allclose(scored.embeddings, features.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)
    assert len(scored.maps) >= 3
    for row, values in enumerate(scored.scores.iter_rows(named=True)):
        weight = model.head.weight[predicted[row]]
        signed = torch.einsum("k,kzyx->zyx", weight, features[row])
        cam = F.interpolate(signed.clamp_min(0)[None, None], SHAPE, mode="trilinear", align_corners=False)[
            0, 0
        ].double()
        assert values["logit"] == pytest.approx(float(logits[row].max()), abs=1e-4)
        evidence = sum(values[f"evidence_{where}"] for where in ("target", "neighbour", "background"))
        assert evidence == pytest.approx(values["logit"] - values["logit_bias"], abs=1e-3)
        if float(cam.sum()) == 0:
            assert values["gradcamo"] is None
            assert values["null_reason"] == "empty map"
            continue
        for where, column in ((1, "gradcamo"), (2, "neighbour_share"), (0, "background_share")):
            assert values[column] == pytest.approx(
                float(cam[labels[row] == where].sum() / cam.sum()), rel=1e-4, abs=1e-6
            )
        assert values["mask_fraction"] == pytest.approx(float((labels[row] == 1).double().mean()))
        assert values["gradcamo"] <= values["gradcamo_max"] + 1e-12
        assert values["on_target"] == (values["gradcamo"] > 0.5)


def test_parity_with_pytorch_grad_cam(field: CropField, tmp_path: Path) -> None:
    """The library's map, before its min-max scaling and its spline, equals our map up to a factor."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    scorer = Scorer(make_bundle(tmp_path / "bundle"), ScoringConfig(precision="float32"))
    maps = scorer.score(field, keep_maps=len(field)).maps
    images, _ = _inputs(field)
    model = scorer.model
    predicted = model(images).argmax(1).tolist()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with GradCAM(model, [model.activation]) as cam:
        cam(images, [ClassifierOutputTarget(k) for k in predicted])
        activations = cam.activations_and_grads.activations[0].numpy()
        gradients = cam.activations_and_grads.gradients[0].numpy()
        theirs = np.maximum(
            cam.get_cam_image(images, model.activation, predicted, activations, gradients, eigen_smooth=False), 0
        )
    for ours, expected in zip(maps, theirs, strict=True):
        if expected.max() > 0:
            np.testing.assert_allclose(ours / ours.max(), expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_hold_the_standardised_crops_in_order(
    field: CropField, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(make_bundle(tmp_path / "bundle"), ScoringConfig(precision="float32"))
    order = [1, 2, 0]
    stored = (np.asarray(field.images)[:, order], field.center[order], field.scale[order])
    expected = standardise(*map(torch.from_numpy, stored))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for size in (1, 4, 11, 64):
        rows = [slice(start, start + size) for start in range(0, len(field), size)]
        for chosen, (images, labels) in zip(rows, scorer.batches(field, rows), strict=True):
            assert torch.equal(images, expected[chosen])
            assert images.is_contiguous(memory_format=torch.channels_last_3d)
            np.testing.assert_array_equal(labels, field.labels[chosen])


def test_a_damaged_crop_ends_the_batches(field: CropField, tmp_path: Path) -> None:
    shard = next(path for path in (field.path / "images" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CropError, match="the index is damaged"):
        Scorer(make_bundle(tmp_path / "bundle")).score(field)


@pytest.mark.parametrize("encoder", ["efficientnet3d-small", pytest.param("monai-resnet18", marks=pytest.mark.slow)])
def test_scores_do_not_depend_on_the_batch_size(field: CropField, tmp_path: Path, encoder: str) -> None:
    if encoder == "monai-resnet18":
        pytest.importorskip("monai")
    bundle = make_bundle(tmp_path / "bundle", encoder) if encoder.startswith("eff") else _resnet(tmp_path / "bundle")
    one, many = (Scorer(bundle, ScoringConfig(batch_size=size)).score(field).scores for size in (3, 64))
    for name in ("gradcamo", "gradcamo_adjusted", "neighbour_share", "logit"):
        np.testing.assert_allclose(
            one[name].fill_null(-9).to_numpy(), many[name].fill_null(-9).to_numpy(), rtol=1e-3, atol=1e-4
        )


def _resnet(folder: Path) -> Path:
    """Save a third-party network without our pooled head."""
    model, layer = build_encoder("monai-resnet18", 3, 2)
    config = BundleConfig("monai-resnet18", layer, ["a", "b"], CHANNELS, list(SHAPE), [1.0, 0.5, 0.5])
    save_bundle(folder, model, config)
    return folder


def test_single_crops_of_several_fields_are_standardised_by_their_own_plates(field: CropField, tmp_path: Path) -> None:
    scorer = Scorer(make_bundle(tmp_path / "bundle"), ScoringConfig(precision="float32"))
    other = replace(field, center=field.center + 10, scale=field.scale * 2)
    images, labels = scorer.prepare([(field, *field.read(2)), (other, *other.read(5)), (field, *field.read(0))])
    for found, number, source in ((0, 2, field), (1, 5, other), (2, 0, field)):
        expected, regions = _inputs(source)
        np.testing.assert_allclose(images[found], expected[number], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(labels[found], regions[number])


def test_crops_that_do_not_fit_are_refused(field: CropField, tmp_path: Path) -> None:
    for changes, reason in (
        ({"crop_shape": [5, 40, 40]}, r"crops are \[5, 40, 36\]"),
        ({"voxel_size": [1.0, 0.1, 0.1]}, "0.5 um in y"),
        ({"channels": ["DNA", "ER", "AGP"]}, "lacks channel AGP"),
    ):
        scorer = Scorer(make_bundle(tmp_path / reason[:8], **changes))
        with pytest.raises(BundleError, match=reason):
            scorer.score(field)


def test_a_field_without_crops_gives_no_rows(tmp_path: Path) -> None:
    write_crops(
        tmp_path / "empty.zarr", iter([]), cell_ids=[], shape=SHAPE, channels=CHANNELS,
        statistics={"center": [0.0] * 3, "scale": [1.0] * 3}, voxel_size=[1.0, 0.5, 0.5],
        provenance=Provenance("", {}, "1"),
    )  # fmt: skip
    scored = Scorer(make_bundle(tmp_path / "bundle")).score(open_crops(tmp_path / "empty.zarr"))
    assert len(scored.scores) == 0
    assert len(scored.embeddings) == 0


def test_precisions_agree_and_an_unknown_one_is_refused(field: CropField, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    exact, coarse = (Scorer(bundle, ScoringConfig(precision=name)) for name in ("float32", "bfloat16"))
    assert (exact.precision, coarse.precision) == ("float32", "bfloat16")
    assert not any("Norm" in type(module).__name__ for module in exact.model.modules())
    one, two = (scorer.score(field).scores for scorer in (exact, coarse))
    both = one["gradcamo"].is_not_null() & two["gradcamo"].is_not_null()
    same = both & (one["predicted_class"] == two["predicted_class"])
    np.testing.assert_allclose(one.filter(same)["gradcamo"], two.filter(same)["gradcamo"], atol=0.05)
    total = sum(two[f"evidence_{where}"] for where in ("target", "neighbour", "background"))
    np.testing.assert_allclose(total, two["logit"] - two["logit_bias"], rtol=1e-4, atol=1e-4)
    with pytest.raises(GradcamoError, match="expected 'auto', 'float32' or 'bfloat16', found 'float16'"):
        ScoringConfig(precision="float16")  # type: ignore[arg-type]


def test_the_runtimes_give_equal_scores_and_embeddings(field: CropField, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    scorers = [
        Scorer(bundle, ScoringConfig(batch_size=4, precision="float32", runtime=name)) for name in ("openvino", "torch")
    ]
    assert [scorer.runtime for scorer in scorers] == ["openvino", "torch"]
    one, two = (scorer.score(field, keep_maps=3) for scorer in scorers)
    np.testing.assert_allclose(one.embeddings, two.embeddings, rtol=0, atol=1e-5 * two.embeddings.max())
    np.testing.assert_allclose(one.maps, two.maps, rtol=0, atol=1e-5 * two.maps.max())
    for name, column in two.scores.to_dict().items():
        if column.dtype == pl.Float64:
            np.testing.assert_allclose(one.scores[name], column, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert one.scores[name].equals(column, null_equal=True)


def test_an_encoder_stays_on_torch_unless_openvino_is_demanded(
    field: CropField, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "openvino", None)
    scorer = Scorer(bundle, ScoringConfig(batch_size=4))
    assert scorer.runtime == "torch" and len(scorer.score(field).scores) == len(field)
    with pytest.raises(BundleError, match=r"bundle: OpenVINO is not installed"):
        Scorer(bundle, ScoringConfig(runtime="openvino")).score(field)


def test_the_audit_reads_crops_and_keeps_their_order(field: CropField, tmp_path: Path) -> None:
    scorer = Scorer(make_bundle(tmp_path / "bundle"), ScoringConfig(precision="float32"))
    cells = [field.cell_ids[index] for index in (7, 0, 3)]
    table = audit_crops(scorer, {"P/A01/1": field}, cells)
    assert table["Metadata_CellID"].to_list() == cells
    images, labels = _inputs(field)
    rows = torch.tensor([7, 0, 3])
    _, columns = audit(scorer.model, images[rows], labels[rows] == 1, "activation", labels[rows] == 2)
    for name, values in columns.items():
        np.testing.assert_allclose(table[name].cast(float).fill_null(np.nan).to_numpy(), values, atol=1e-5)
    assert table["logit_drop_neighbour"].null_count() == 2  # Crops 0 and 3 have no neighbour.


def test_an_audit_in_parts_keeps_the_order_and_all_cells(
    field: CropField, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradcamo_assets.scoring.audit._MAX_PART_SIZE", 3)
    scorer = Scorer(make_bundle(tmp_path / "bundle"), ScoringConfig(precision="float32"))
    cells = [field.cell_ids[index] for index in (6, 1, 4, 0, 7, 3)]
    table = audit_crops(scorer, {"P/A01/1": field}, cells, ["a", "a", "b", "b", "a", "a"])
    assert table["Metadata_CellID"].to_list() == cells
    # Parts take every other cell: a, b, a and a, b, a.
    assert table["survives_swap"].null_count() == 0 and table["survives_swap"].dtype == pl.Boolean
    alone = audit_crops(scorer, {"P/A01/1": field}, cells[:3], ["a"] * 3)
    assert alone["survives_swap"].null_count() == 3 and alone["logit_drop_background_only"].null_count() == 0
