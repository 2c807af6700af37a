"""Check the swap test and the promotion rule on networks whose decisions are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import balanced_accuracy_score
from torch.utils.data import Dataset

from gradcamo_assets.training.evaluation import METRICS, evaluate_cells
from gradcamo_assets.training.promotion_rule import Evidence, PromotionConfig, judge_challenger
from gradcamo_assets.training.swap_survival import run_swap_test, swap_metrics
from gradcamo_assets_tests.explain.nets import Reads, scene

CLASSES = ["a", "b", "c"]


class Scene(Dataset):
    """``nets.scene`` as a dataset of crops; ``evaluate_cells`` reads its cell identifiers."""

    def __init__(self, cells: int):
        self.images, target, neighbours, self.classes = scene(3, cells)
        self.labels = target + 2 * neighbours
        self.cell_ids = [f"P/A{cell % 12:02d}/1/{cell}" for cell in range(cells)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple:
        return self.images[item], self.labels[item], int(self.classes[item])


@pytest.mark.parametrize("where", [0, 1])
def test_perfect_accuracy_passes_only_if_it_comes_from_the_cell(where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcamo_assets.scoring.audit._MAX_PART_SIZE", 9)
    crops, model = Scene(40), Reads(where, 3).eval()
    evaluated = evaluate_cells(model, ["act"], crops, CLASSES)["act"]  # type: ignore[arg-type]
    assert (evaluated["predicted_class"] == evaluated["true_class"]).all()
    found = run_swap_test(model, "act", crops, evaluated, CLASSES, max_cells=30)  # type: ignore[arg-type]
    assert len(found) == 30 and found["Metadata_CellID"].is_unique().all()
    assert found.sort(pl.all()).equals(run_swap_test(model, "act", crops, evaluated, CLASSES, 30).sort(pl.all()))  # type: ignore[arg-type]
    metrics = swap_metrics(found, "test")
    cell = float(where == 0)
    assert metrics == {
        "test_audited": 30, "test_accuracy_audited": 1, "test_accuracy_swapped": cell, "test_survives_swap": cell,
        "test_trusted": cell, "test_one_treatment_per_well": 1,
    }  # fmt: skip
    challenger = Evidence(2, metrics | {"test_balanced_accuracy": 1.0, "test_median_adjusted": 1.0}, len(CLASSES))
    for champion in (None, Evidence(1, {"test_balanced_accuracy": 0.4, "test_median_adjusted": 0.1}, len(CLASSES))):
        failed = [answer for answer in judge_challenger(challenger, champion, PromotionConfig()) if not answer.passed]
        assert [answer.name for answer in failed] == ["accuracy_comes_from_the_cell"] * where
        assert all("0% of the accuracy above chance remains" in answer.text for answer in failed)
        assert all("so its plates are likely to fail the swap" in answer.text for answer in failed)


def test_cells_of_a_single_class_give_no_swap_metrics() -> None:
    crops, model = Scene(9), Reads(0, 3).eval()
    evaluated = evaluate_cells(model, ["act"], crops, CLASSES)["act"]  # type: ignore[arg-type]
    for few in (evaluated.with_columns(true_class=pl.lit("a")), evaluated.clear()):
        found = run_swap_test(model, "act", crops, few, CLASSES)  # type: ignore[arg-type]
        assert found.is_empty() and swap_metrics(found, "test") == {}


def test_swap_metrics_equal_loops() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "true_class": CLASSES[i % 3], "predicted_class": CLASSES[rng.integers(3)],
            "swapped_class": CLASSES[rng.integers(3)], "looks_at": ["target", "background", None][rng.integers(3)],
            "survives_swap": bool(rng.integers(2)), "Metadata_Plate": "P", "Metadata_Well": f"A0{i % 3}",
        }
        for i in range(40)
    ]  # fmt: skip
    found = swap_metrics(pl.DataFrame(rows), "test")
    assert found["test_one_treatment_per_well"] == 1
    mixed = pl.DataFrame([rows[0] | {"Metadata_Well": "A01"}, *rows[1:]])
    assert swap_metrics(mixed, "test")["test_one_treatment_per_well"] == 0
    assert {name.removeprefix("test_") for name in found} <= METRICS.keys()
    truth = [row["true_class"] for row in rows]
    for how, column in (("audited", "predicted_class"), ("swapped", "swapped_class")):
        expected = balanced_accuracy_score(truth, [row[column] for row in rows])
        assert found[f"test_accuracy_{how}"] == pytest.approx(expected)
    assert found["test_survives_swap"] == np.mean([row["survives_swap"] for row in rows])
    assert found["test_trusted"] == np.mean([row["survives_swap"] and row["looks_at"] == "target" for row in rows])
