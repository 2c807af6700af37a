"""Checks of a challenger, its promotion by asset and command, and encoders trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from gradcamo_assets.cli import main
from gradcamo_assets.defs.automation.jobs_and_sensors import retraining_sensor
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import BundleError
from gradcamo_assets.home import Home
from gradcamo_assets.networks.bundle import ShortcutMitigation
from gradcamo_assets.training.model_registry import CHALLENGER
from gradcamo_assets.training.promotion import champion_moves, promote
from gradcamo_assets.training.promotion_rule import CHECKS, Evidence, PromotionConfig, judge_challenger
from gradcamo_assets.training.register_model import register_weights
from gradcamo_assets_tests.defs.conftest import Bench
from gradcamo_assets_tests.defs.made_up import (
    CHANNELS,
    CLASSES,
    ENCODER,
    SETTINGS,
    SHAPE,
    VOXELS,
    add_plate,
    add_version,
    scored_by,
    tiny_encoder,
)
from gradcamo_assets_tests.defs.sensor_ticks import tick

MODULES = [ENCODER.partition(":")[0]]
METRICS = ("test_balanced_accuracy", "unseen_accuracy", "test_median_adjusted", "test_accuracy_swapped")
FROM_THE_CELL = {"test_accuracy_audited": 0.8, "test_accuracy_swapped": 0.7}
GOOD = {"test_balanced_accuracy": 0.8, "test_median_adjusted": 0.4, **FROM_THE_CELL}
_metrics = st.dictionaries(st.sampled_from([*METRICS, "test_accuracy_audited", "seconds"]), st.floats())
_evidence = st.builds(
    Evidence,
    st.integers(1, 9),
    _metrics,
    st.none() | st.integers(2, 9),
    st.frozensets(st.sampled_from(["P/A01", "P/A02"])),
    st.none() | st.builds(ShortcutMitigation, st.just(0.5), st.sampled_from(["none", "gradcamo"]), st.just(3.0)),
)


@given(_evidence, st.none() | _evidence, st.sampled_from(METRICS), st.floats(0, 1))
def test_all_checks_have_results_and_better_evidence_fails_no_check(
    challenger: Evidence, champion: Evidence | None, metric: str, more: float
) -> None:
    config = PromotionConfig()
    before = judge_challenger(challenger, champion, config)
    assert [answer.name for answer in before] == list(CHECKS)
    assert all(answer.text and (champion is None or "version" in answer.text) for answer in before)
    value = challenger.get(metric)
    if value is not None and abs(value) < 1e300:
        better = Evidence(challenger.version, {**challenger.metrics, metric: value + more}, challenger.classes)
        after = judge_challenger(better, champion, config)
        assert all(late.passed for early, late in zip(before, after, strict=True) if early.passed)


@given(st.floats(0, 1), st.floats(-1, 1), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_challenger_may_be_worse_than_the_champion_by_the_tolerance(
    accuracy: float, adjusted: float, lost: float, tolerance: float
) -> None:
    champion = Evidence(1, {"test_balanced_accuracy": accuracy, "test_median_adjusted": adjusted}, 2)
    worse = {"test_balanced_accuracy": accuracy - lost, "test_median_adjusted": adjusted - lost}
    config = PromotionConfig(tolerance, tolerance, least_over_chance=-1)
    answers = {answer.name: answer.passed for answer in judge_challenger(Evidence(2, worse, 2), champion, config)}
    if abs(lost - tolerance) > 1e-9:
        assert answers["accuracy_on_test_wells"] == answers["adjusted_gradcamo"] == (lost < tolerance)
    assert answers["accuracy_on_unseen_plates"], "neither has seen another plate"


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 9), st.floats(0, 1))
def test_accuracy_above_chance_must_remain_in_other_surroundings(
    intact: float, swapped: float, classes: int, least: float
) -> None:
    metrics = {"test_accuracy_audited": intact, "test_accuracy_swapped": swapped}
    config = PromotionConfig(least_from_the_cell=least)
    found = {answer.name: answer for answer in judge_challenger(Evidence(2, metrics, classes), None, config)}
    answer = found["accuracy_comes_from_the_cell"]
    needed = 1 / classes + least * (intact - 1 / classes)
    if abs(swapped - needed) > 1e-9:
        assert answer.passed == (intact > 1 / classes and swapped > needed)
    assert f"{intact:.3f}" in answer.text and f"{swapped:.3f}" in answer.text
    without = Evidence(2, {"test_accuracy_audited": intact}, classes)
    answers = {answer.name: answer for answer in judge_challenger(without, None, config)}
    refused = answers["accuracy_comes_from_the_cell"]
    assert not refused.passed and "train it again, or promote by hand" in refused.text


def test_the_text_says_that_a_score_trained_for_is_no_evidence() -> None:
    kinds = ((1, "none"), (2, "gradcamo"))
    honest, trained = (Evidence(v, GOOD, 2, mitigation=ShortcutMitigation(0.5, kind, 3.0)) for v, kind in kinds)
    for challenger, champion in ((trained, None), (trained, honest), (honest, trained), (honest, None)):
        text = judge_challenger(challenger, champion, PromotionConfig())[-1].text
        said = "Version 2 was trained for this score (penalty gradcamo, weight 3): its score is no evidence by itself."
        assert (said in text) == (trained in (challenger, champion)) and "Version 1 was" not in text


def test_missing_metrics_fail_the_check() -> None:
    old = Evidence(1, {"test_accuracy": 0.9, "test_balanced_accuracy": 0.9}, 2, frozenset({"P/A01"}))
    new = Evidence(2, GOOD, 2, frozenset({"P/A01"}))
    answers = {answer.name: answer for answer in judge_challenger(new, old, PromotionConfig())}
    assert not answers["adjusted_gradcamo"].passed
    assert "no test_median_adjusted was logged with version 1" in answers["adjusted_gradcamo"].text
    assert not answers["accuracy_on_test_wells"].passed
    assert "both on the same 1 test wells" in answers["accuracy_on_test_wells"].text
    assert not judge_challenger(Evidence(2, {}), None, PromotionConfig())[0].passed
    guessing = Evidence(2, {"test_balanced_accuracy": 0.55}, 2)
    assert not judge_challenger(guessing, None, PromotionConfig())[0].passed
    unseen = [Evidence(v, {**GOOD, "unseen_accuracy": a}, 2) for v, a in ((1, 0.7), (2, 0.5))]
    answers = {answer.name: answer for answer in judge_challenger(unseen[1], unseen[0], PromotionConfig())}
    assert not answers["accuracy_on_unseen_plates"].passed


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """One synthetic plate and an ephemeral instance."""
    monkeypatch.setenv("GRADCAMO_HOME", str(tmp_path))
    Home(tmp_path).create()
    bench = Bench(Platform(root=str(tmp_path)), dg.DagsterInstance.ephemeral())
    bench.home.settings_file.write_text(SETTINGS)
    add_plate(bench, "P1")
    return bench


def test_the_asset_promotes_or_gives_the_reason(bench: Bench) -> None:
    registry, lake = bench.platform.registry, bench.platform.lake
    assert not bench.run("promote_challenger").success, "there is no challenger"
    for version, metrics in ((1, GOOD), (2, {**GOOD, "test_median_adjusted": 0.1}), (3, {})):
        found = add_version(bench, version)
        for name, value in metrics.items():
            registry.client.log_metric(found.run_id, name, value)
        result = bench.run("promote_challenger")
        assert result.success
        assert registry.by_alias().version == 1  # type: ignore[union-attr]
        checks = bench.checks(result)
        assert set(checks) == set(CHECKS)
        outcome = result.get_asset_materialization_events()[0].materialization.metadata["outcome"].value
        if version == 1:
            assert outcome == "Version 1 is the new champion."
            assert all(check.passed for check in checks.values())
        else:
            assert str(outcome).startswith("Refused: ")
            assert f"gradcamo promote {version}" in str(outcome)
            assert not checks["adjusted_gradcamo"].passed
            assert f"version {version} has {'0.100' if metrics else 'none'}" in str(
                checks["adjusted_gradcamo"].description
            )
            assert checks["accuracy_on_test_wells"].passed == bool(metrics)
    looser = {"ops": {"promotion": {"config": {"adjusted_tolerance": 0.5}}}}
    registry.promote(2, CHALLENGER)
    assert bench.run("promote_challenger", **looser).success
    assert registry.by_alias().version == 2  # type: ignore[union-attr]
    moves = champion_moves(lake, registry.name)
    assert moves["to_version"].to_list() == [1, 2]
    assert "0.5 less is allowed" in moves["reason"][1]
    bench.home.settings_file.write_text("[promotion]\nadjusted_tolerence = 1\n")
    assert not bench.run("promote_challenger").success, "a misspelt threshold is an error"


def test_the_command_promotes_and_lists_partitions_to_rescore(bench: Bench) -> None:
    registry, lake = bench.platform.registry, bench.platform.lake
    cli = CliRunner()
    assert "has no version 1. Launch train_model" in cli.invoke(main, ["promote", "1"]).stderr
    for seed in (1, 2):
        add_version(bench, seed)
    done = cli.invoke(main, ["promote", "1", "--reason", "it's the first"])
    assert done.exit_code == 0, done.output
    assert "version 1 is champion" in done.output
    assert "2 plate x site:\n  P1: sites 1, 2" in done.output
    assert champion_moves(lake, registry.name)["reason"].to_list() == ["it's the first"]
    assert "Choose one of 1, 2." in cli.invoke(main, ["promote", "7"]).stderr
    assert cli.invoke(main, ["promote", "nonsense"]).exit_code == 2
    found = registry.by_alias(CHALLENGER)
    assert found is not None
    (registry.fetch(found) / "model.safetensors").write_bytes(b"no weights")
    refused = cli.invoke(main, ["promote", "2"])
    assert refused.exit_code == 1
    assert "do not match the digest in the configuration" in refused.stderr
    assert registry.by_alias().version == 1  # type: ignore[union-attr]
    assert len(champion_moves(lake, registry.name)) == 1


def test_a_move_made_in_mlflow_is_recorded_before_the_next_promotion(bench: Bench) -> None:
    registry, lake = bench.platform.registry, bench.platform.lake
    versions = [add_version(bench, seed) for seed in range(2)]
    registry.promote(1)
    promote(lake, registry, versions[1], by="me", reason="better", modules=MODULES)
    moves = champion_moves(lake, registry.name).select("from_version", "to_version", "reason")
    assert moves.rows() == [(None, 1, "moved in MLflow"), (1, 2, "better")]


def test_retraining_is_requested_after_enough_new_plates(bench: Bench) -> None:
    def tick() -> dg.RunRequest | dg.SkipReason:
        with dg.build_sensor_context(instance=bench.instance, resources={"platform": bench.platform}) as context:
            return retraining_sensor(context)  # type: ignore[return-value]

    assert "Disabled" in str(tick())
    bench.home.settings_file.write_text("[retraining]\nafter_plates = 2\n")
    assert "1 of 2 new plates: P1" in str(tick())
    add_plate(bench, "P2")
    request = tick()
    assert isinstance(request, dg.RunRequest)
    assert tick().run_key == request.run_key  # type: ignore[union-attr]
    add_version(bench, split={"train": ["P1/A01"], "val": [], "test": ["P2/A01"]})
    assert "0 of 2 new plates" in str(tick())
    for plate in ("P3", "P4"):
        add_plate(bench, plate)
    again = tick()
    assert isinstance(again, dg.RunRequest)
    assert again.run_key != request.run_key
    job = bench.definitions.resolve_job_def("train_model")
    bench.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "training is in progress" in str(tick())
    assert bench.definitions.resolve_schedule_def("weekly_training").default_status == dg.DefaultScheduleStatus.STOPPED


def test_mlflow_runs_of_lost_trainings_are_ended(bench: Bench) -> None:
    job, registry = bench.definitions.resolve_job_def("train_model"), bench.platform.registry
    statuses = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.STARTED]
    known = [bench.instance.create_run_for_job(job, status=status).run_id for status in statuses]
    with registry.start_run() as run_id:
        pass
    client = registry.client
    experiment = client.get_run(run_id).info.experiment_id
    lost = {"host": "a machine that was lost", "process": "1"}
    tags = [*({**lost, "dagster_run_id": run} for run in [*known, "of another instance"]), lost]
    runs = [client.create_run(experiment, tags=tags_of_run).info.run_id for tags_of_run in tags]
    tick(bench, retraining_sensor)
    states = [client.get_run(run).info.status for run in [run_id, *runs]]
    assert states == ["FINISHED", "FAILED", "FAILED", "RUNNING", "RUNNING", "RUNNING"]
    assert "Dagster run" in client.get_run(runs[0]).data.tags["error"]


def resnet18(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A user's 2D network: torchvision's ResNet-18 for any number of stains."""
    from torchvision.models import resnet18 as build

    network = build(num_classes=classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return network, "layer4"


def test_a_foreign_2d_network_is_registered_promoted_and_scores_a_2d_plate(bench: Bench, tmp_path: Path) -> None:
    add_plate(bench, "flat", shape=(1, 48, 48))
    torch.manual_seed(0)
    network, _ = resnet18(len(CHANNELS), len(CLASSES))
    save_file(network.state_dict(), str(tmp_path / "mine.safetensors"))
    here = "gradcamo_assets_tests.defs.test_promotion:resnet18"
    arguments = ["register", here, "--weights", str(tmp_path / "mine.safetensors"), "--layer", "layer3"]
    arguments += ["--classes", ",".join(CLASSES)]
    cli = CliRunner()
    assert "--crop-shape" in cli.invoke(main, arguments).stderr
    done = cli.invoke(main, [*arguments, "--plate", "flat"])
    assert done.exit_code == 0, done.output + done.stderr
    assert "gradcamo promote 1" in done.output
    assert cli.invoke(main, ["promote", "1"]).exit_code == 0
    for site in (1, 2):
        result = bench.run("rescore", plate_site_key("flat", site))
        assert result.success, [e.step_failure_data.error for e in result.all_events if e.is_step_failure]
        assert "crops_and_maps" in result.get_asset_materialization_events()[-1].materialization.metadata
    assert scored_by(bench.home.lake) == {("flat", 1): {1: 6}, ("flat", 2): {1: 6}}
    scores = bench.platform.lake.read("scores")
    assert scores["gradcamo"].is_between(0, 1).all()
    assert set(scores["split"]) == {"unseen"}
    cell = scores.sort("Metadata_CellID").row(0, named=True)
    assert cell["logit"] == pytest.approx(_logits(bench, network.eval(), "flat/A01/1", 0).max().item(), rel=0.05)
    assert len(bench.platform.lake.read("embeddings")["embedding"][0]) == 256


def _logits(bench: Bench, network: nn.Module, field: str, row: int) -> torch.Tensor:
    from gradcamo_assets.cells import open_crops
    from gradcamo_assets.defs.field_results import crop_folder

    plate, well, site = field.split("/")
    cells = bench.platform.lake.read("crops", plate=plate, site=int(site)).filter(Metadata_Well=well)
    crops = open_crops(crop_folder(bench.home, cells.row(0, named=True)))
    image = (crops.read(row)[0][:, 0].astype("float32") - 100) / 10
    with torch.inference_mode():
        return network(torch.from_numpy(image)[None])[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a", "b", "c"]}, "cannot be loaded"),
        ({"classes": ["a", "a"]}, "duplicate names a"),
        ({"channels": ["DNA"]}, "cannot be loaded"),
        ({"layer": "no.such"}, "no layer"),
        ({"layer": "4"}, "no feature map"),
        ({"crop_shape": [2, 16]}, "fails on a crop"),
        ({"voxel_size": [1.0, 0.0, 0.5]}, "voxel_size"),
        ({"encoder": "os:kill"}, "'os' of encoder 'os:kill' is not listed"),
    ],
)
def test_what_does_not_go_together_is_not_registered(
    bench: Bench, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    network, _ = tiny_encoder(len(CHANNELS), len(CLASSES))
    save_file(network.state_dict(), str(tmp_path / "w"))
    values = {"encoder": ENCODER, "classes": CLASSES, "channels": CHANNELS, "crop_shape": SHAPE, "voxel_size": VOXELS}
    with pytest.raises(BundleError, match=message):
        register_weights(bench.platform.registry, weights=tmp_path / "w", **{**values, **change}, modules=MODULES)  # type: ignore[arg-type]
    assert bench.platform.registry.version_rows() == []


def test_a_pickle_is_refused(bench: Bench, tmp_path: Path) -> None:
    network, _ = tiny_encoder(len(CHANNELS), len(CLASSES))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BundleError, match="cannot be loaded"):
        register_weights(
            bench.platform.registry, ENCODER, tmp_path / "weights.pt", classes=CLASSES, channels=CHANNELS,
            crop_shape=SHAPE, voxel_size=VOXELS, modules=MODULES,
        )  # fmt: skip
