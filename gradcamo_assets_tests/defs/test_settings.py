"""Validation of ``gradcamo.toml``, settings in the launchpad, and settings recorded by runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.defs.assets.model_assets import trained_model
from gradcamo_assets_tests.defs.conftest import TINY, Bench

HALF = '[plates]\nillumination = "false"\n[trainig]\nepochs = 3\n[training]\nepochs = "5"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[plates]\nillumination = "false"', "[plates] illumination: expected a valid boolean, found 'false'"),
        ("[trainig]\nepochs = 3", "[trainig] is unknown; the nearest is training"),
        ('[training]\nepochs = "5"', "[training] epochs: expected a valid integer, found '5'"),
        ("[training]\nepoch = 5", "[training] epoch is unknown; the nearest is epochs"),
        ("[training]\nepochs = 5.5", "[training] epochs: expected a valid integer, found 5.5"),
        ("[crops]\nshape = [4, 5]", "[crops] shape"),
        ("crops = 3", "[crops]: expected an object, found 3"),
        ("[segmentation]\nnetwork = 'cyto3'", "[segmentation] network: unknown network 'cyto3'"),
        ("[encoders]\nmodules = ['lab:build']", "[encoders] modules"),
        ("[encoders]\nmodules = 'lab'", "[encoders] modules"),
        ("[inbox]\nmarker = '../done'", "[inbox] marker"),
        ("[registry]\nuri = 'mlflow:5000'", "[registry] uri: expected this: Address of an MLflow server"),
        ("[crops", "the settings cannot be read"),
    ],
)
def test_a_command_refuses_invalid_settings(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADCAMO_HOME", str(tmp_path))
    (tmp_path / "inbox").mkdir()
    (tmp_path / "gradcamo.toml").write_text(text)
    result = CliRunner().invoke(main, ["inbox"])
    assert result.exit_code == 1
    assert message in result.stderr and str(tmp_path / "gradcamo.toml") in result.stderr


def test_all_invalid_settings_are_listed_and_no_plate_counts_as_failed(bench: Bench) -> None:
    (bench.home.inbox / f"{TINY.name}.zarr").mkdir()
    bench.home.settings_file.write_text(HALF)
    failed = bench.ingest(TINY.name)
    assert not failed.success
    reasons = [str(event.step_failure_data.error) for event in failed.all_events if event.is_step_failure]
    for message in (
        "illumination: expected a valid boolean",
        "[trainig] is unknown",
        "epochs: expected a valid integer",
    ):
        assert message in reasons[0]
    assert not [*bench.home.plates.glob(f"*{TINY.name}*")], "the failure is not recorded for the plate"


def test_lists_and_integers_are_accepted(bench: Bench) -> None:
    bench.home.settings_file.write_text(
        '[crops]\nshape = [4, 5, 6]\n[profiles]\nformats = []\npopulations = ["all"]\nregularisation = 1\n'
        '[segmentation]\ncytoplasm = ["ER"]\ndiameter = 40\n[alerts]\nmail_to = ["a@b", "c@d"]\n'
    )
    settings = bench.platform.settings
    assert settings.crops.shape == (4, 5, 6) and settings.profiles.formats == ()
    assert type(settings.profiles.regularisation) is float and settings.segmentation.cytoplasm == ("ER",)
    assert settings.alerts.mail_to == ("a@b", "c@d") and settings.training.epochs == 20


def test_every_setting_has_one_description(bench: Bench) -> None:
    for part in fields(settings := bench.platform.settings):
        section = type(getattr(settings, part.name))
        assert f"[{part.name}]" in (section.__doc__ or "")
        assert all(field.description for field in section.__pydantic_fields__.values())


def test_the_webhook_address_is_in_no_message(bench: Bench) -> None:
    for address in ('"http://example.com/secret"', '["https://example.com/secret"]'):
        bench.home.settings_file.write_text(f"[alerts]\nwebhook = {address}\n")
        with pytest.raises(Exception, match=r"\[alerts\] webhook: ") as error:
            _ = bench.platform.settings
        assert "secret" not in str(error.value)
    bench.home.settings_file.write_text('[alerts]\nwebhook = "https://example.com/secret"\n')
    assert "secret" not in repr(bench.platform.settings)


def _launchpad_fields(bench: Bench, job: str, op: str) -> dict[str, dg.Field]:
    """The launchpad's fields of an op."""
    shape = bench.definitions.resolve_job_def(job).run_config_schema.config_type.fields["ops"]
    return shape.config_type.fields[op].config_type.fields["config"].config_type.fields


@pytest.mark.parametrize(
    ("job", "op", "section", "more", "less"),
    [
        ("train_model", "trained_model", "training", set(), set()),
        ("promote_challenger", "promotion", "promotion", set(), set()),
        ("refresh_qc", "profiles", "profiles", {"refit"}, {"audit_cells", "background"}),
    ],
)
def test_the_launchpad_offers_the_fields_of_a_section(
    bench: Bench, job: str, op: str, section: str, more: set[str], less: set[str]
) -> None:
    offered = _launchpad_fields(bench, job, op)
    kind = type(getattr(bench.platform.settings, section))
    assert set(offered) - more == {field.name for field in fields(kind)} - less
    for name in set(offered) - more:
        assert not offered[name].is_required and offered[name].description == kind.__pydantic_fields__[name].description


def test_literals_are_choices_in_the_launchpad(bench: Bench) -> None:
    def choices(field: dg.Field) -> list[str]:
        kind = field.config_type.inner_type
        return [value.config_value for value in getattr(kind, "inner_type", kind).enum_values]

    training = _launchpad_fields(bench, "train_model", "trained_model")
    assert choices(training["precision"]) == ["auto", "float32", "bfloat16", "float16"]
    assert choices(training["regulariser"]) == ["none", "gradcamo"]
    profiles = _launchpad_fields(bench, "refresh_qc", "profiles")
    assert choices(profiles["scope"]) == ["plate", "screen"]
    assert choices(profiles["populations"]) == ["all", "on_target", "trusted", "matched", "weighted"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": "3"}, "epochs"),
        ({"precision": "int8"}, "precision"),
        ({"epochs": 0}, "epochs: expected greater than or equal to 1, found 0"),
        ({"objective": "simclr", "regulariser": "gradcamo"}, "regulariser must be none if objective is simclr"),
    ],
)
def test_values_in_the_launchpad_are_checked(bench: Bench, given: dict, message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        dg.materialize(
            [trained_model],
            resources={"platform": bench.platform},
            run_config={"ops": {"trained_model": {"config": given}}},
        )


def test_a_run_records_its_settings(scored_bench: Bench) -> None:
    def used_by(asset: str) -> dict:
        event = scored_bench.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event and event.asset_materialization
        return event.asset_materialization.metadata["settings"].value  # type: ignore[return-value]

    assert used_by("crops")["crops"] == {"shape": [6, 48, 48], "keep_border": True, "pad": True, "store": "training"}
    assert used_by("masks")["segmentation"]["mode"] == "stitch"
    training = used_by("trained_model")["training"]
    # Epochs are set in the file; swapping is enabled by the demo.
    assert training["epochs"] == 6 and training["swap"] == 0.5
    for asset, section in (
        ("plate_images", "plates"), ("cells", "segmentation_qc"), ("gradcamo_scores", "scoring"),
        ("embeddings", "scoring"), ("audit", "scoring"), ("profiles", "profiles"), ("confounder_audit", "profiles"),
    ):  # fmt: skip
        assert set(used_by(asset)[section]) == {
            field.name for field in fields(getattr(scored_bench.platform.settings, section))
        }
