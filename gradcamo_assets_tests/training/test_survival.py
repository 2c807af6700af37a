"""What is left of accuracy in other surroundings, of networks whose reasons are known, and the verdict on it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import balanced_accuracy_score
from torch.utils.data import Dataset

from gradcamo_assets.training.evaluation import METRICS, judge
from gradcamo_assets.training.promotion_rule import Evidence, PromotionConfig, verdict
from gradcamo_assets.training.swap_survival import audited, survived
from gradcamo_assets_tests.explain.nets import Reads, scene

CLASSES = ["a", "b", "c"]


class Scene(Dataset):
    """``nets.scene`` as a dataset of crops; ``judge`` asks it for the names of its cells."""

    def __init__(self, cells: int):
        self.images, target, neighbours, self.classes = scene(3, cells)
        self.labels = target + 2 * neighbours
        self.cell_ids = [f"P/A{cell % 12:02d}/1/{cell}" for cell in range(cells)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple:
        return self.images[item], self.labels[item], int(self.classes[item])


@pytest.mark.parametrize("where", [0, 1])
def test_perfect_accuracy_from_the_background_is_refused_and_from_the_cell_is_not(
    where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradcamo_assets.scoring.audit._MAX_PART_SIZE", 9)
    crops, model = Scene(40), Reads(where, 3).eval()
    judged = judge(model, ["act"], crops, CLASSES)["act"]  # type: ignore[arg-type]
    assert (judged["predicted_class"] == judged["true_class"]).all()
    found = audited(model, "act", crops, judged, CLASSES, most=30)  # type: ignore[arg-type]
    assert len(found) == 30 and found["Metadata_CellID"].is_unique().all()
    assert found.sort(pl.all()).equals(audited(model, "act", crops, judged, CLASSES, 30).sort(pl.all()))  # type: ignore[arg-type]
    metrics = survived(found, "test")
    cell = float(where == 0)
    assert metrics == {
        "test_audited": 30, "test_accuracy_audited": 1, "test_accuracy_swapped": cell, "test_survives_swap": cell,
        "test_trusted": cell,
    }  # fmt: skip
    challenger = Evidence(2, metrics | {"test_balanced_accuracy": 1.0, "test_median_adjusted": 1.0}, len(CLASSES))
    for champion in (None, Evidence(1, {"test_balanced_accuracy": 0.4, "test_median_adjusted": 0.1}, len(CLASSES))):
        refused = [answer for answer in verdict(challenger, champion, PromotionConfig()) if not answer.passed]
        assert [answer.name for answer in refused] == ["accuracy_comes_from_the_cell"] * where
        assert all("0% of what is above it is left" in answer.text for answer in refused)


def test_cells_without_another_class_are_no_evidence() -> None:
    crops, model = Scene(9), Reads(0, 3).eval()
    judged = judge(model, ["act"], crops, CLASSES)["act"]  # type: ignore[arg-type]
    for few in (judged.with_columns(true_class=pl.lit("a")), judged.clear()):
        found = audited(model, "act", crops, few, CLASSES)  # type: ignore[arg-type]
        assert found.is_empty() and survived(found, "test") == {}


def test_numbers_equal_loops() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "true_class": CLASSES[i % 3], "predicted_class": CLASSES[rng.integers(3)],
            "swapped_class": CLASSES[rng.integers(3)], "looks_at": ["target", "background", None][rng.integers(3)],
            "survives_swap": bool(rng.integers(2)),
        }
        for i in range(40)
    ]  # fmt: skip
    found = survived(pl.DataFrame(rows), "test")
    assert {name.removeprefix("test_") for name in found} <= METRICS.keys()
    truth = [row["true_class"] for row in rows]
    for how, column in (("audited", "predicted_class"), ("swapped", "swapped_class")):
        expected = balanced_accuracy_score(truth, [row[column] for row in rows])
        assert found[f"test_accuracy_{how}"] == pytest.approx(expected)
    assert found["test_survives_swap"] == np.mean([row["survives_swap"] for row in rows])
    assert found["test_trusted"] == np.mean([row["survives_swap"] and row["looks_at"] == "target" for row in rows])
