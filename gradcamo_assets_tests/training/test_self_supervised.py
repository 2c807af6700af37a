"""Check self-supervised training and the prototypes fitted afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradcamo_assets.cells import TARGET, open_crops, write_crops
from gradcamo_assets.cells.dataset import CropDataset
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.scoring.scorer import Scorer, ScoringConfig
from gradcamo_assets.training.evaluation import compute_metrics, evaluate_cells
from gradcamo_assets.training.model_registry import ModelRegistry
from gradcamo_assets.training.self_supervised import PairSampler, SelfSupervisedModule, compute_embeddings, well_indices
from gradcamo_assets.training.split import split_wells
from gradcamo_assets.training.training import TrainingConfig, TrainingResult, train_encoder
from gradcamo_assets.training.training_run import train_and_register
from gradcamo_assets_tests.training.tiny import write_plate

LAYER = "5"


def pooled(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A user-defined 2D network."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    ), LAYER  # fmt: skip


def with_mlp(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A network with an MLP after global pooling."""
    model, layer = pooled(in_channels, classes)
    return nn.Sequential(*list(model)[:-1], nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes)), layer


CONFIG = TrainingConfig(
    encoder=f"{__name__}:pooled", objective="vicreg", epochs=3, batch_size=8, learning_rate=0.02, swap=0.0
)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CropDataset]:
    """Chequerboards with squares of 2 or 5 voxels, equal in brightness and variance: eight wells of eight crops."""
    folder, rng, fields, classes = tmp_path_factory.mktemp("textures"), np.random.default_rng(0), [], {}
    for well in range(8):
        y, x = np.mgrid[:24, :24][:, None] + rng.integers(0, 20, (2, 8, 1, 1))
        edge = 2 + 3 * (well % 2)
        images = 100 + 50 * ((y // edge + x // edge) % 2) + rng.normal(0, 5, (8, 24, 24))
        ids = [f"P/A{well + 1:02d}/1/{cell}" for cell in range(8)]
        labels = np.zeros((8, 1, 24, 24), np.uint8)
        labels[:, :, 4:20, 4:20] = TARGET
        write_crops(
            folder / f"{well}.zarr", iter(zip(images.astype(np.uint16)[:, None, None], labels, strict=True)),
            cell_ids=ids, shape=(1, 24, 24), channels=["DNA"], statistics={"center": [125.0], "scale": [25.0]},
            voxel_size=[1.0, 0.5, 0.5], provenance=Provenance(str(well), {}, "1"),
        )  # fmt: skip
        fields.append(open_crops(folder / f"{well}.zarr"))
        classes |= dict.fromkeys(ids, well % 2)
    parts = {"train": slice(0, 4), "val": slice(4, 6), "test": slice(4, 8)}
    return {name: CropDataset(fields[part], classes, ["DNA"]) for name, part in parts.items()}


def test_losses_equal_their_definitions() -> None:
    embedding = torch.randn(12, 16)
    for objective in ("vicreg", "simclr"):
        config = replace(CONFIG, objective=objective)
        module = SelfSupervisedModule(pooled(1, 2)[0], LAYER, config, 1, width=16)
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        views = module.projector(embedding).double()
        assert views.shape == (12, 32)
        found = float(module._view_loss("train", embedding))
        if objective == "vicreg":
            parts = views[::2], views[1::2]
            expected = 25 * float((parts[0] - parts[1]).square().mean())
            for part in parts:
                covariance = torch.cov(part.T)
                spread = (covariance.diag() + 1e-4).sqrt()
                expected += 12.5 * float((1 - spread).clamp_min(0).mean())
                expected += float(covariance.square().sum() - covariance.diag().square().sum()) / 32
        else:
            likeness = nn.functional.cosine_similarity(views[:, None], views[None], 2) / 0.5
            likeness.fill_diagonal_(-torch.inf)
            positive = torch.arange(12) ^ 1
            expected = float(nn.functional.cross_entropy(likeness, positive))
        assert found == pytest.approx(expected, rel=1e-4)


def _train(textures: dict[str, CropDataset], config: TrainingConfig, work: Path, **options) -> TrainingResult:
    return train_encoder(
        textures["train"],
        textures["val"],
        ["fine", "coarse"],
        config,
        work=work,
        progress=False,
        modules=[__name__],
        **options,
    )


@pytest.fixture(scope="module")
def learned(textures: dict[str, CropDataset], tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return _train(textures, CONFIG, tmp_path_factory.mktemp("learned"))


@pytest.mark.parametrize("change", [{}, {"objective": "simclr", "positives": "treatment"}])
def test_two_textures_are_distinguished_in_unseen_wells(
    textures: dict[str, CropDataset], learned: TrainingResult, change: dict[str, Any], tmp_path: Path
) -> None:
    result = _train(textures, replace(CONFIG, **change), tmp_path) if change else learned
    assert set(result.curves) == {"train_loss", "val_loss"}
    assert result.curves["train_loss"][-1] < result.curves["train_loss"][0]
    cells = evaluate_cells(result.model, [result.layer], textures["test"], ["a", "b"])[result.layer]
    assert compute_metrics(cells, "test")["test_accuracy"] > 0.9
    assert [len(epoch) for epoch in result.embeddings] == [16] * 3
    expected = compute_embeddings(result.model, LAYER, textures["val"], 16)
    np.testing.assert_allclose(result.embeddings[-1], expected, rtol=1e-3, atol=1e-4)


def test_labels_change_the_prototypes_and_not_the_encoder(
    textures: dict[str, CropDataset], learned: TrainingResult, tmp_path: Path
) -> None:
    train = textures["train"]
    relabelled = CropDataset(train.fields, {c: i % 2 for f in train.fields for i, c in enumerate(f.cell_ids)}, ["DNA"])
    other = _train({**textures, "train": relabelled}, CONFIG, tmp_path).model.state_dict()
    for name, values in learned.model.state_dict().items():
        assert torch.equal(values, other[name]) == (not name.startswith("8.")), name


def _mahalanobis(known: Tensor) -> Tensor:
    """Invert the embeddings' covariance, with 1% of its largest eigenvalue as ridge: (K, K)."""
    covariance = torch.cov(known.T.double())
    return (covariance + 0.01 * torch.linalg.eigvalsh(covariance)[-1] * torch.eye(len(covariance))).inverse()


def test_a_logit_is_the_difference_of_squared_distances_to_centre_and_prototype(
    textures: dict[str, CropDataset], learned: TrainingResult
) -> None:
    known, asked = (compute_embeddings(learned.model, LAYER, textures[part], 7).double() for part in ("train", "test"))
    centres = torch.stack([known[torch.from_numpy(textures["train"].targets == k)].mean(0) for k in (0, 1)])
    places = torch.cat([centres, centres.mean(0)[None]])
    steps = asked[:, None] - places
    squares = torch.einsum("nci,ij,ncj->nc", steps, _mahalanobis(known), steps)
    logits = learned.model(torch.stack([image for image, _, _ in textures["test"]])[:, :, 0]).double()
    torch.testing.assert_close(logits.argmax(1), squares[:, :2].argmin(1))
    scale = logits / (squares[:, 2:] - squares[:, :2])
    assert scale.min() > 0
    torch.testing.assert_close(scale, scale.median().expand_as(scale), rtol=1e-2, atol=0)


def test_the_map_of_a_logit_equals_that_of_a_similarity_target(
    textures: dict[str, CropDataset], learned: TrainingResult
) -> None:
    """Use pytorch-grad-cam on the network without a head; the target is computed from the training cells."""
    from pytorch_grad_cam import GradCAM

    known = compute_embeddings(learned.model, LAYER, textures["train"], 16)
    inverse, targets = _mahalanobis(known).float(), torch.from_numpy(textures["train"].targets)
    centres = torch.stack([known[targets == k].mean(0) for k in (0, 1)])

    class Nearer:
        """The similarity to one class's prototype, computed from distances."""

        def __init__(self, index: int):
            self.index = index

        def __call__(self, embedding: Tensor) -> Tensor:
            far, near = (embedding - at for at in (centres.mean(0), centres[self.index]))
            return far @ inverse @ far - near @ inverse @ near

    images = torch.stack([textures["test"][row][0][:, 0] for row in range(0, 32, 5)])
    masks = torch.ones(len(images), 24, 24)
    headless = nn.Sequential(*list(learned.model)[:-1]).requires_grad_(True)
    for index in (0, 1):
        result = gradcamo(learned.model, images, masks, layer=LAYER, target=index)
        with GradCAM(headless, [headless[5]]) as library:
            library(images, like := [Nearer(index)] * len(images))
            kept = library.activations_and_grads
            theirs = library.get_cam_image(
                images, headless[5], like, kept.activations[0].numpy(), kept.gradients[0].numpy(), eigen_smooth=False
            ).clip(0)
        ours = result.cam.numpy()
        assert ours.max() > 0
        np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-4)


@pytest.mark.slow
def test_two_processes_share_a_batch(textures: dict[str, CropDataset], tmp_path: Path) -> None:
    config = replace(CONFIG, objective="simclr")
    result, alone = (_train(textures, replace(config, devices=devices), tmp_path) for devices in (2, 1))
    assert result.curves["train_loss"] == pytest.approx(alone.curves["train_loss"], rel=0.3)
    assert result.curves["train_loss"][-1] < result.curves["train_loss"][0]


def test_a_resumed_training_gives_the_same_weights(
    textures: dict[str, CropDataset], learned: TrainingResult, tmp_path: Path
) -> None:
    def end(line: str) -> None:
        if line.startswith("epoch 2"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        _train(textures, CONFIG, tmp_path, report=end)
    lines: list[str] = []
    resumed = _train(textures, CONFIG, tmp_path, report=lines.append)
    assert lines[0] == "resuming after epoch 1" and len(lines) == 3
    for name, values in learned.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], values, msg=name)


def test_a_version_is_registered_with_its_objective_and_scored(tmp_path: Path) -> None:
    cells, paths = write_plate(tmp_path, shape=(1, 24, 24))
    registry, split = ModelRegistry(tmp_path / "mlflow"), split_wells(cells)
    config = TrainingConfig(encoder=f"{__name__}:pooled", objective="simclr", epochs=4, batch_size=8)
    fitted = train_and_register(
        cells, split, paths, config, registry, work=tmp_path, progress=False, modules=[__name__]
    )
    assert registry.version_rows()[0]["objective"] == "simclr"
    assert fitted.result.metrics["test_accuracy"] > 0.9
    assert set(fitted.figures) == {"confusion", "reliability", "curves", "maps"}
    field = open_crops(paths[-1])
    scored = Scorer(registry.fetch(fitted.version), ScoringConfig(precision="float32"), [__name__]).score(field)
    crops = CropDataset([field], dict.fromkeys(field.cell_ids, 0), field.channels)
    np.testing.assert_allclose(
        scored.embeddings, compute_embeddings(fitted.result.model, LAYER, crops, 16), rtol=1e-3, atol=1e-4
    )
    logits = fitted.result.model(torch.stack([image[:, 0] for image, _, _ in crops])).numpy()
    np.testing.assert_allclose(scored.scores["logit"], logits.max(1), rtol=1e-3, atol=1e-4)
    # The evidence of all voxels sums to the logit, as for any linear head.
    parts = [scored.scores[f"evidence_{where}"] for where in ("target", "neighbour", "background")]
    np.testing.assert_allclose(
        sum(part.to_numpy() for part in parts), scored.scores["logit"] - scored.scores["logit_bias"], rtol=1e-3
    )


def test_a_network_without_a_pooled_linear_head_is_refused_before_training(
    textures: dict[str, CropDataset], tmp_path: Path
) -> None:
    config = replace(CONFIG, encoder=f"{__name__}:with_mlp")
    with pytest.raises(GradcamoError, match="global average pooling"):
        _train(textures, config, tmp_path)
    assert not (tmp_path / "training").exists()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30), st.integers(0, 99))
def test_a_positive_has_the_same_class_and_another_well_if_there_is_one(
    items: list[tuple[int, int]], seed: int
) -> None:
    wells = np.array([well for _, well in items])
    targets = np.unique([target for target, _ in items], return_inverse=True)[1]
    sampler = PairSampler(targets, wells, 40, seed)
    drawn = list(sampler)
    assert drawn == list(sampler) and len(drawn) == len(sampler) == 80
    for item, positive in zip(drawn[::2], drawn[1::2], strict=True):
        assert targets[item] == targets[positive]
        elsewhere = any(targets[other] == targets[item] and wells[other] != wells[item] for other in range(len(items)))
        assert (wells[positive] != wells[item]) == elsewhere
    same = list(PairSampler(targets, None, 40, seed))
    assert same[::2] == same[1::2]


def test_positives_are_equally_likely_and_wells_follow_the_cell_ids(textures: dict[str, CropDataset]) -> None:
    train = textures["train"]
    np.testing.assert_array_equal(well_indices(train), np.repeat(range(4), 8))
    drawn = np.array(list(PairSampler(train.targets, well_indices(train), 4000, 0))).reshape(-1, 2)
    followed = np.bincount(drawn[drawn[:, 0] < 8, 1], minlength=32)
    assert followed[16:24] == pytest.approx([1000 / 8] * 8, rel=0.4) and followed.sum() == followed[16:24].sum()
