"""Check splits, and a training from registration to promotion and rollback."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import BundleError, GradcamoError
from gradcamo_assets.networks.bundle import ShortcutMitigation, load_bundle
from gradcamo_assets.tables import Lake
from gradcamo_assets.training import promotion
from gradcamo_assets.training.model_registry import CHALLENGER, CHAMPION, ModelRegistry, ModelVersion
from gradcamo_assets.training.promotion import champion_moves, promote, record_champion, record_versions
from gradcamo_assets.training.split import as_lists, part_of_well, split_wells
from gradcamo_assets.training.training import TrainingConfig
from gradcamo_assets.training.training_run import train_and_register
from gradcamo_assets_tests.training.tiny import write_plate


def _cells(wells_of_class: dict[str, int]) -> pl.DataFrame:
    rows = []
    for name, wells in wells_of_class.items():
        for _ in range(wells):
            well = f"{chr(65 + len(rows) // 48 % 16)}{len(rows) // 2 % 24 + 1:02d}"
            rows += [{"Metadata_Plate": "P", "Metadata_Well": well, "treatment_class": name}] * 2
    return pl.DataFrame(
        rows, schema={"Metadata_Plate": pl.String, "Metadata_Well": pl.String, "treatment_class": pl.String}
    )


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=2), st.integers(0, 99))
def test_parts_are_disjoint_and_every_class_is_in_training(wells: dict[str, int], seed: int) -> None:
    cells = _cells(wells)
    split = split_wells(cells, seed=seed)
    assert split["Metadata_Well"].is_unique().all()
    assert set(split["Metadata_Well"]) == set(cells["Metadata_Well"])
    parts = cells.join(split, on=["Metadata_Plate", "Metadata_Well"]).group_by("treatment_class").agg("split")
    for name, found in parts.iter_rows():
        assert "train" in found
        assert ("test" in found) == (wells[name] > 1)
        assert ("val" in found) == (wells[name] > 2)
    assert split.equals(split_wells(cells.sample(fraction=1, shuffle=True, seed=1), seed=seed))
    lists = as_lists(split)
    assert sum(map(len, lists.values())) == len(split)
    assert all(well.startswith("P/") for well in lists["train"])


@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=1, max_size=7),
    st.sampled_from(["well", "plate", "position"]),
    st.integers(0, 99),
)
def test_units_are_in_one_part_only_and_every_class_is_in_training(
    layouts: list[list[str]], apart: Any, seed: int
) -> None:
    """Each layout lists the classes of a plate's wells; every third plate has pooled wells."""
    rows = [
        {"Metadata_Plate": f"P{i}", "Metadata_Well": f"A{j + 1:02d}", "treatment_class": kind}
        for i, layout in enumerate(layouts)
        for j, name in enumerate(layout)
        for kind in (name, "abcd"[j % 4] if i % 3 == 2 else name)
    ]
    cells = pl.DataFrame(rows)
    classes = set(cells["treatment_class"])
    try:
        split = split_wells(cells, seed=seed, apart=apart)
    except GradcamoError:
        unit = {"well": "Metadata_Well", "plate": "Metadata_Plate", "position": "Metadata_Well"}[apart]
        held = cells.select(unit, "treatment_class").unique()
        spare = [
            group for _, group in held.group_by(unit)
            if not set(group["treatment_class"]) - set(held.filter(pl.col(unit) != group[unit][0])["treatment_class"])
        ]  # fmt: skip
        strata = held.group_by(unit).agg(pl.col("treatment_class").sort()).group_by("treatment_class").len()["len"]
        assert len(classes) < 2 or (apart != "well" and (not spare or strata.max() == 1))
        return
    assert set(split.rows()) == {(*row, part) for *row, part in split.rows()}
    assert set(map(tuple, split.select("Metadata_Plate", "Metadata_Well").rows())) == set(
        cells.select("Metadata_Plate", "Metadata_Well").rows()
    )
    units = {
        "well": ["Metadata_Plate", "Metadata_Well"], "plate": ["Metadata_Plate"], "position": ["Metadata_Well"]
    }[apart]  # fmt: skip
    assert split.group_by(units).agg(pl.col("split").n_unique())["split"].max() == 1
    trained = cells.join(split.filter(split="train"), on=["Metadata_Plate", "Metadata_Well"])
    assert set(trained["treatment_class"]) == classes
    assert split.equals(split_wells(cells.sample(fraction=1, shuffle=True, seed=1), seed=seed, apart=apart))


def test_plates_and_positions_are_held_out_whole() -> None:
    """Six plates of one layout: parts in proportion, all classes in each."""
    layout = [(f"{row}{column:02d}", "abc"[column % 3]) for row in "ABCD" for column in range(1, 7)]
    cells = pl.DataFrame(
        [{"Metadata_Plate": f"P{i}", "Metadata_Well": w, "treatment_class": c} for i in range(6) for w, c in layout]
    )
    by_plate = split_wells(cells, apart="plate").group_by("split").agg(pl.col("Metadata_Plate").n_unique())
    assert dict(by_plate.rows()) == {"train": 3, "val": 1, "test": 2}
    by_position = cells.join(split_wells(cells, apart="position"), on=["Metadata_Plate", "Metadata_Well"])
    assert dict(by_position.group_by("split").agg(pl.col("Metadata_Well").n_unique()).rows()) == {
        "train": 12, "val": 3, "test": 9
    }  # fmt: skip
    assert (
        by_position.group_by("split").agg(pl.col("treatment_class").n_unique())["treatment_class"].to_list() == [3] * 3
    )
    with pytest.raises(GradcamoError, match=r"none of the 1 plate\(s\) can be held out"):
        split_wells(cells.filter(Metadata_Plate="P0"), apart="plate")
    of_its_own = cells.with_columns(treatment_class=pl.col("treatment_class") + pl.col("Metadata_Plate"))
    with pytest.raises(GradcamoError, match="can be held out"):
        split_wells(of_its_own, apart="plate")
    with pytest.raises(GradcamoError, match="'row'"):
        split_wells(cells, apart="row")  # type: ignore[arg-type]


def test_named_plates_are_tested_and_no_other_well() -> None:
    layout = [(f"A{column:02d}", "abc"[column % 3]) for column in range(6)]
    cells = pl.DataFrame(
        [{"Metadata_Plate": f"P{i}", "Metadata_Well": w, "treatment_class": c} for i in range(4) for w, c in layout]
    )
    split = split_wells(cells, test_plates=["P1", "P3"], val_fraction=0)
    parts = split.group_by("Metadata_Plate").agg(pl.col("split").unique()).sort("Metadata_Plate")
    assert parts["split"].to_list() == [["train"], ["test"], ["train"], ["test"]]
    with_validation = split_wells(cells, test_plates=["P1"]).filter(split="val")
    assert with_validation.height == 3 and "P1" not in with_validation["Metadata_Plate"]
    with pytest.raises(GradcamoError, match="test plate P9"):
        split_wells(cells, test_plates=["P9", "P1"])


def test_the_part_of_a_well_is_read_from_the_lists_of_a_bundle() -> None:
    wells = pl.DataFrame({"Metadata_Plate": ["P1", "P2", "P1"], "Metadata_Well": ["A01", "A01", "B02"]})
    split = wells.head(2).with_columns(split=pl.Series(["train", "test"]))
    assert wells.select(part_of_well(as_lists(split), "unseen")).to_series().to_list() == ["train", "test", "unseen"]
    assert wells.select(part_of_well({})).to_series().to_list() == [None] * 3


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(GradcamoError, match="the cells have 1"):
        split_wells(_cells({"a": 4}))
    with pytest.raises(GradcamoError, match="the cells have 0"):
        split_wells(_cells({"a": 2}).with_columns(treatment_class=pl.lit(None, pl.String)))


@pytest.fixture
def plate(tmp_path: Path) -> tuple[pl.DataFrame, list[Path]]:
    """Eight wells of two classes that differ in the brightness of a blob."""
    return write_plate(tmp_path)


def test_train_register_promote_and_roll_back(plate: tuple[pl.DataFrame, list[Path]], tmp_path: Path) -> None:
    cells, paths = plate
    split = split_wells(cells)
    registry, lake = ModelRegistry(tmp_path / "mlflow"), Lake(tmp_path / "lake")
    assert registry.by_alias(CHAMPION) is None
    assert registry.version_rows() == []
    assert not record_champion(lake, registry, by="nobody")
    lines: list[str] = []
    config = TrainingConfig(epochs=6, batch_size=8)
    fitted = train_and_register(
        cells, split, paths, config, registry, work=tmp_path, progress=False, report=lines.append, tags={"who": "test"}
    )
    assert len(lines) == 6
    assert not list((tmp_path / "training").iterdir()), "checkpoints are deleted after registration"
    assert fitted.result.metrics["test_accuracy"] > 0.9
    assert set(fitted.result.curves) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert all(len(curve) == 6 for curve in fitted.result.curves.values())
    assert registry.by_alias(CHALLENGER) == fitted.version
    _, bundle = load_bundle(registry.fetch(fitted.version))
    assert bundle.classes == ["a", "b"]
    assert bundle.split == as_lists(split)
    assert bundle.crop_shape == [2, 24, 24]
    assert bundle.cure == ShortcutMitigation(0.5, "none", 0.0)

    promote(lake, registry, fitted.version, by="test", reason="the first")
    second = registry.register(fitted.result.model, bundle, parameters={}, metrics={"accuracy": 0.5}, curves={})
    registry.promote(second.version)
    assert record_champion(lake, registry, by="sensor")
    assert not record_champion(lake, registry, by="sensor")
    registry.promote(fitted.version.version)
    assert record_champion(lake, registry, by="sensor")
    moves = champion_moves(lake, registry.name)
    assert moves.select("from_version", "to_version").rows() == [(None, 1), (1, 2), (2, 1)]
    assert moves["promoted_by"].to_list() == ["test", "sensor", "sensor"]
    assert record_versions(lake, registry) == 2
    models = lake.read("models")
    assert models["train_wells"][0].to_list() == bundle.split["train"]
    assert models["aliases"].to_list() == [["champion"], ["challenger"]]
    assert models["swap"].to_list() == [0.5, 0.5] and models["regulariser"].to_list() == ["none", "none"]

    artifacts = next((tmp_path / "mlflow" / "artifacts").rglob("config.json")).parent
    for name in ("config.json", "model.safetensors"):
        assert not any(path.suffix in (".pkl", ".pt", ".pth") for path in artifacts.rglob("*")), name
    third = registry.register(fitted.result.model, bundle)
    stored = tmp_path / "mlflow" / third.source.replace("mlflow-artifacts:", "artifacts")
    (stored / "config.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        registry.fetch(third)
    assert len(registry.version_rows()) == 3


def test_a_move_is_recorded_once_and_keeps_its_reason_whoever_sees_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines have no common lock: a sensor may see a move while ``promote`` is at work."""
    lake = Lake(tmp_path / "lake")
    champion: list[ModelVersion | None] = [None]
    versions = [ModelVersion("encoder", number, f"run{number}", f"source{number}") for number in (1, 2)]

    class Registry:
        name = "encoder"

        def by_alias(self, alias: str) -> ModelVersion | None:
            return champion[0]

        def fetch(self, version: ModelVersion) -> Path:
            return tmp_path

        def promote(self, number: int, alias: str) -> None:
            moved, champion[0] = champion[0] != versions[number - 1], versions[number - 1]
            with ThreadPoolExecutor(4) as sensors:
                seen = list(sensors.map(lambda _: record_champion(lake, registry, by="sensor"), range(4)))
            assert sum(seen) >= moved, "no sensor saw the move"

    registry = cast(ModelRegistry, Registry())
    monkeypatch.setattr(promotion, "load_bundle", lambda *_: None)
    promote(lake, registry, versions[0], by="Ada", reason="better")
    promote(lake, registry, versions[1], by="Ada", reason="better still")
    promote(lake, registry, versions[1], by="Bob", reason="again")
    moves = champion_moves(lake, "encoder").select("from_version", "to_version", "promoted_by", "reason")
    assert moves.rows() == [(None, 1, "Ada", "better"), (1, 2, "Ada", "better still")]


def test_an_unreachable_registry_is_an_error_and_not_an_empty_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = ModelRegistry(tmp_path, uri="http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        record_champion(Lake(tmp_path / "lake"), registry, by="sensor")


def test_a_class_without_a_training_crop_is_named(plate: tuple[pl.DataFrame, list[Path]], tmp_path: Path) -> None:
    cells, paths = plate
    split = split_wells(cells).with_columns(
        split=pl.when(pl.col("Metadata_Well").is_in(["A01", "A03", "A05", "A07"]))
        .then(pl.lit("test"))
        .otherwise("split")
    )
    with pytest.raises(GradcamoError, match="no training crop of class a"):
        train_and_register(
            cells, split, paths, TrainingConfig(epochs=1), ModelRegistry(tmp_path / "m"), work=tmp_path, progress=False
        )
    with pytest.raises(GradcamoError, match="no crops"):
        train_and_register(cells, split, [], TrainingConfig(), ModelRegistry(tmp_path / "m"), work=tmp_path)
