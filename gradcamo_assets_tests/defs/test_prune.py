"""Pruning: data that are deleted, data that remain, and the published database afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner

from gradcamo_assets.cells import open_crops, store_pixels
from gradcamo_assets.cli import main
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor, inbox_sensor
from gradcamo_assets.defs.automation.run_requests import PARTITION
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.prune import abandoned_plates, plan_crops, plan_plate, plan_scores, plan_unused
from gradcamo_assets.defs.unfinished_runs import announce_outputs
from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.home import Home
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.plates import ingest_plate
from gradcamo_assets.plates.plate_records import mark_known
from gradcamo_assets.storage import create_marker, temporary_path, write_bytes
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets.tables import LAKE_TABLES, find_violations, publish, run_sql
from gradcamo_assets_tests.buckets import memory_bucket
from gradcamo_assets_tests.defs.conftest import SETTINGS, Bench
from gradcamo_assets_tests.defs.sensor_ticks import another_version, requested, tick

OF_RUNS = [name for name, table in LAKE_TABLES.items() if "model_run" in table.keys]
OF_PLATES = [name for name, table in LAKE_TABLES.items() if "Metadata_Plate" in table.schema]
_FOLDERS = ("inbox", "plates", "masks", "crops", "reports", "exports", "pictures")
SHOWN = (
    "plates", "wells", "fields", "cells", "scores", "embeddings", "audit", "profiles", "umap", "confounder_audit",
    "channel_correlation", "current_scores", "qc_by_dose",
)  # fmt: skip


@pytest.fixture(scope="module")
def plate_and_twin(scored_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The scored plate, and a copy named ``twin`` that is not in the inbox."""
    bench = scored_bench.copy(tmp_path_factory.mktemp("homes") / "home")
    home, lake = bench.home, bench.platform.lake

    def renamed(rows: pl.DataFrame) -> pl.DataFrame:
        texts = [name for name, kind in rows.schema.items() if kind == pl.String and name.startswith("Metadata_")]
        return rows.with_columns(pl.col(texts).str.replace("^tiny", "twin"))

    for name in OF_PLATES:
        rows = lake.read(name)
        lake.replace(name, pl.concat([rows, renamed(rows.filter(Metadata_Plate="tiny"))]))
    for folder in (home.masks, home.crops, home.reports, home.exports, home.pictures / "plates"):
        shutil.copytree(folder / "tiny", folder / "twin")
    for file in home.plates.glob("tiny.*"):
        target = file.with_name(file.name.replace("tiny", "twin"))
        if file.is_dir():
            shutil.copytree(file, target)
        else:
            target.write_bytes(file.read_bytes().replace(b'"tiny"', b'"twin"'))
    mark_known(home.plates, "twin", "0")
    return bench


@pytest.fixture
def two_plates(plate_and_twin: Bench, tmp_path: Path) -> Bench:
    """A copy of both plates, published."""
    bench = plate_and_twin.copy(tmp_path / "home")
    publish(bench.platform.lake, bench.home.database)
    return bench


def files_of_home(bench: Bench) -> set[str]:
    """All files of the home, except those of the lake and Dagster."""
    kept = (bench.home.root / part for part in _FOLDERS)
    return {str(path.relative_to(bench.home.root)) for folder in kept for path in folder.rglob("*") if path.is_file()}


def counts(bench: Bench) -> dict[tuple[str, str | None], int]:
    """Number of rows by view and plate."""
    rows = {}
    for name in SHOWN:
        sql = f"SELECT Metadata_Plate, count(*) FROM {name} GROUP BY ALL"
        rows |= {(name, plate): n for plate, n in run_sql(bench.home.database, sql).rows()}
    return rows


def run_command(bench: Bench, *arguments: str, answer: str = "") -> str:
    """Run a command that must succeed and return its output."""
    result = CliRunner(env={"GRADCAMO_HOME": str(bench.home.root)}).invoke(main, [*arguments], input=answer)
    assert result.exit_code == 0, result.output
    return result.output


def test_pruning_a_plate_deletes_nothing_else(two_plates: Bench) -> None:
    bench = two_plates
    files, rows = files_of_home(bench), counts(bench)
    assert {name for name, plate in rows if plate == "twin"} == set(SHOWN)
    output = run_command(bench, "prune", "--plate", "twin", "--all", "--yes")
    folders = ("masks/twin", "crops/twin", "plates/twin.zarr", "reports/twin", "pictures/plates/twin")
    for deleted in (*folders, "lake/scores", "lake/umap"):
        assert deleted in output, output
    assert {file for file in files - files_of_home(bench) if "twin" not in file} == set()
    assert not any("twin" in file for file in files_of_home(bench))
    assert not any("twin" in bench.platform.lake.read(name)["Metadata_Plate"] for name in OF_PLATES)
    publication = publish(bench.platform.lake, bench.home.database)
    assert "twin" in publication.plates and not publication.rebuilt
    assert counts(bench) == {(name, plate): n for (name, plate), n in rows.items() if plate != "twin"}
    assert find_violations(bench.home.database) == []
    assert requested(tick(bench, inbox_sensor)) == requested(tick(bench, champion_model_sensor)) == []


def test_a_plate_in_the_inbox_or_with_an_unreachable_inbox_is_not_pruned(two_plates: Bench) -> None:
    bench = two_plates
    before = files_of_home(bench)
    with pytest.raises(GradcamoError, match="ingested again"):
        plan_plate(bench.home, bench.platform.lake, "tiny")
    shutil.rmtree(bench.home.inbox)
    with pytest.raises(PlateError, match="cannot be listed"):
        plan_plate(bench.home, bench.platform.lake, "twin")
    assert files_of_home(bench) == {file for file in before if not file.startswith("inbox")}


def test_a_plate_is_scored_without_the_pixels_that_were_pruned(two_plates: Bench) -> None:
    bench = two_plates
    lake = bench.platform.lake
    for folder in bench.home.crops.glob("twin/*/*"):
        store_pixels(folder)
    rows, images = counts(bench), images_of_crops(bench, "twin")
    run_command(bench, "prune", "--plate", "twin", "--crops", "--yes")
    assert not [*bench.home.crops.glob("twin/*/*/pixels")] and [*bench.home.crops.glob("tiny/*/*/pixels")]
    publish(lake, bench.home.database)
    assert counts(bench) == rows and find_violations(bench.home.database) == []
    for found, expected in zip(images_of_crops(bench, "twin"), images, strict=True):
        np.testing.assert_array_equal(found, expected)
    another_version(bench)
    asked = [key for job, key in requested(tick(bench, champion_model_sensor)) if job == "rescore"]
    assert {key.keys_by_dimension["plate"] for key in asked} == {"tiny", "twin"}  # type: ignore[union-attr]
    bench.instance.add_dynamic_partitions("plates", ["twin"])
    assert bench.run("rescore", plate_site_key("twin", 1)).success
    assert requested(tick(bench, inbox_sensor)) == []
    with pytest.raises(GradcamoError, match="nothing to prune"):
        plan_crops(bench.home, lake, "twin")


def images_of_crops(bench: Bench, plate: str) -> list[np.ndarray]:
    """The images of all crops of a plate, by field."""
    return [open_crops(folder).read(slice(0, None))[0] for folder in sorted(bench.home.crops.glob(f"{plate}/*/*"))]


@pytest.mark.slow
def test_scores_of_an_old_version_are_pruned_and_those_of_the_champion_remain(two_plates: Bench) -> None:
    bench = two_plates
    lake, registry = bench.platform.lake, bench.platform.registry
    with pytest.raises(GradcamoError, match="is the champion"):
        plan_scores(bench.home, lake, registry, 1)
    with pytest.raises(GradcamoError, match="Versions with results: 1"):
        plan_scores(bench.home, lake, registry, 7)
    another_version(bench)
    assert bench.materialize("qc_database").success
    rows = counts(bench)
    run_command(bench, "prune", "--plate", "twin", "--scores", "1", "--yes")
    publish(lake, bench.home.database)
    left = counts(bench)
    for table in ("scores", "embeddings", "audit", "profiles"):
        assert (table, "twin") not in left and left[table, "tiny"] == rows[table, "tiny"], table
    assert left["cells", "twin"] == rows["cells", "twin"]
    output = run_command(bench, "prune", "--scores", "1", "--yes")
    assert "lake/umap" in output and "lake/replicability" in output
    assert not [*bench.home.fitted.rglob("*.safetensors"), *bench.home.exports.rglob("*.parquet")]
    publish(lake, bench.home.database)
    assert {name for name, _ in counts(bench)} <= {"plates", "wells", "fields", "cells", "channel_correlation"}
    assert run_sql(bench.home.database, "SELECT count(*) FROM models").item() == 2
    assert find_violations(bench.home.database) == []


def test_nothing_is_deleted_without_confirmation(two_plates: Bench) -> None:
    before = files_of_home(two_plates)
    environment = {"GRADCAMO_HOME": str(two_plates.home.root)}
    arguments = ["prune", "--plate", "twin", "--all"]
    refused = CliRunner(env=environment).invoke(main, arguments, input="n\n")
    assert refused.exit_code == 1 and "crops/twin" in refused.output
    assert files_of_home(two_plates) == before
    for wrong in (["--plate", "twin"], ["--crops"], ["--plate", "twin", "--crops", "--all"]):
        assert CliRunner(env=environment).invoke(main, ["prune", *wrong]).exit_code == 2
    for name in ("nobody", "../tiny", ".."):
        unknown = CliRunner(env=environment).invoke(main, ["prune", "--plate", name, "--all", "--yes"])
        assert unknown.exit_code == 1 and ("tiny, twin" in unknown.output or "not a valid plate name" in unknown.output)
    assert files_of_home(two_plates) == before
    assert "Delete this?" in run_command(two_plates, *arguments, answer="y\n")
    assert files_of_home(two_plates) != before


def test_a_link_is_not_followed(two_plates: Bench, tmp_path: Path) -> None:
    crops = two_plates.home.crops
    (crops / "twin").rename(tmp_path / "elsewhere")
    (crops / "twin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GradcamoError, match="link to another folder"):
        plan_crops(two_plates.home, two_plates.platform.lake, "twin")
    assert any((tmp_path / "elsewhere").iterdir())


def stored_folders(bench: Bench) -> set[Path]:
    """The folders of all versions of masks and crops."""
    return {folder for store in (bench.home.masks, bench.home.crops) for folder in store.glob("*/*/*")}


def folders_in_use(bench: Bench) -> set[Path]:
    """The folders of the versions in the QC database."""
    bench.ask("SELECT 1")
    sql = """SELECT 'masks', Metadata_Plate, Metadata_Well, Metadata_Site, mask_version FROM lake.masks
        UNION SELECT 'crops', Metadata_Plate, Metadata_Well, Metadata_Site, crop_version FROM cells"""
    rows = run_sql(bench.home.database, sql).rows()
    return {
        bench.home.root / store / plate / f"{well}_s{n}" / version for store, plate, well, n, version in rows if version
    }


def process(bench: Bench, volume: int) -> None:
    """Segment and crop site 1 again, without cells below a volume."""
    text = SETTINGS.replace("[segmentation]\n", f"[segmentation]\nmin_volume = {volume}\n")
    bench.home.settings_file.write_text(text)
    assert bench.run("process_fields", plate_site_key("tiny", 1)).success


def test_scratch_of_killed_runs_is_pruned_once_no_run_is_unfinished(stored_bench: Bench) -> None:
    bench, home = stored_bench, stored_bench.home
    field, run_folder = Path("P1", "A01_s1"), home.fitted / "run"
    written = (
        home.database, home.plates / "P1.json", home.plates / "failures" / "P1.json", home.masks / field / "version",
        home.crops / field / "version", home.crops / field / "version" / "pixels", run_folder / "umap.safetensors",
        run_folder / "sphering" / "P1" / "all.safetensors", home.exports / "P1" / "encoder-v1",
        home.reports / "exploration.csv", home.reports / "P1" / "encoder-v1.html", home.unfinished / "run.masks.json",
        home.mlflow / "bundles" / "run" / "source",
    )  # fmt: skip
    scratch = {temporary_path(path) for path in written}
    for path in scratch:
        create_marker(path / "half")

    def planned() -> set[Path]:
        return scratch & set(plan_unused(home, bench.platform.lake, bench.platform.registry, bench.instance).paths)

    job = bench.definitions.resolve_job_def("process_fields")
    run = bench.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert planned() == set()
    bench.instance.report_run_failed(run)
    assert planned() == scratch
    run_command(bench, "prune", "--unused", "--yes")
    assert not any(path.exists() for path in scratch)


@pytest.mark.slow
def test_unused_masks_and_crops_are_pruned(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "home", stored=True)
    home, lake, registry = bench.home, bench.platform.lake, bench.platform.registry

    def unused() -> set[Path]:
        return set(plan_unused(home, lake, registry, bench.instance).paths)

    assert unused() == set() and stored_folders(bench) == folders_in_use(bench)
    process(bench, 300)
    assert stored_folders(bench) > folders_in_use(bench)
    assert unused() == set(), "the champion's scores were made from the old ones"
    assert bench.run("rescore", plate_site_key("tiny", 1)).success
    old = stored_folders(bench) - folders_in_use(bench)
    assert unused() == old and {folder.parts[-4] for folder in old} >= {"masks"}

    run = bench.instance.create_run_for_job(
        bench.definitions.resolve_job_def("process_fields"), status=dg.DagsterRunStatus.STARTED
    )
    killed = announce_outputs(home, run.run_id, home.masks, "tiny", 1)
    killed.__enter__()
    assert unused() == {folder for folder in old if folder.is_relative_to(home.crops)}, (
        "the run has announced new masks"
    )
    run_command(bench, "prune", "--unused", "--yes")
    assert stored_folders(bench) - folders_in_use(bench) == {
        folder for folder in old if folder.is_relative_to(home.masks)
    }
    bench.instance.report_run_failed(run)
    output = run_command(bench, "prune", "--unused", "--yes")
    assert stored_folders(bench) == folders_in_use(bench) and not list(home.unfinished.iterdir())
    assert "masks/tiny" in output

    assert requested(tick(bench, inbox_sensor)) == requested(tick(bench, champion_model_sensor)) == []
    assert find_violations(home.database) == []
    process(bench, 200)
    assert folders_in_use(bench) < stored_folders(bench), "pruned versions can be made again"


@pytest.mark.slow
def test_results_of_models_deleted_from_mlflow_are_pruned(scored_bench: Bench, tmp_path: Path) -> None:
    """A deleted and re-registered model is version 1 again, with other weights."""
    bench = scored_bench.copy(tmp_path / "home")
    lake, registry = bench.platform.lake, bench.platform.registry
    old = registry.by_alias()
    assert old is not None
    model, config = load_bundle(registry.fetch(old))
    scores = "SELECT model_run, count(*) FROM scores GROUP BY ALL"
    ((run, n),) = run_sql(bench.home.database, scores).rows()
    of_another = lake.read("scores", plate="tiny", site=1).with_columns(
        model_name=pl.lit("another"), model_run=pl.lit("another-run")
    )
    lake.write("scores", of_another, plate="tiny", site=1, model_run="another-run")
    moves = tick(bench, champion_model_sensor).cursor

    registry.client.delete_registered_model(registry.name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    new = registry.register(model, config)
    registry.promote(new.version)
    assert new.version == old.version == 1 and new.run_id != old.run_id == run
    fetched, _ = load_bundle(registry.fetch(new))
    assert all(torch.equal(a, b) for a, b in zip(fetched.parameters(), model.parameters(), strict=True))

    asked = tick(bench, champion_model_sensor, moves)
    assert requested(asked) == [("rescore", plate_site_key("tiny", site)) for site in (1, 2)]
    assert bench.materialize("qc_database").success
    shown = "(SELECT count(*) FROM current_scores), (SELECT count(*) FROM qc_by_dose), (SELECT count(*) FROM umap)"
    assert bench.ask(f"SELECT count(*), {shown} FROM scores") == [(0, 0, 0, 0)], (
        "the old scores are not the new model's"
    )
    assert bench.ask("SELECT Metadata_Site, model_run, reason FROM stale_scores ORDER BY ALL") == [
        (site, new.run_id, "never scored by the champion") for site in (1, 2)
    ]
    for request in asked.run_requests or []:
        assert bench.run_request(request).success
    assert requested(tick(bench, champion_model_sensor, asked.cursor)) == []
    assert bench.ask(scores) == [(new.run_id, n)]

    assert set(lake.read("scores")["model_run"]) == {old.run_id, new.run_id, "another-run"}
    output = run_command(bench, "prune", "--unused", "--yes")
    assert "lake/scores" in output and "lake/umap" in output
    for name in OF_RUNS:
        assert old.run_id not in lake.read(name)["model_run"], name
    assert not (bench.home.fitted / old.run_id).exists()
    assert set(lake.read("scores")["model_run"]) == {new.run_id, "another-run"}
    assert bench.ask(scores) == [(new.run_id, n)] and find_violations(bench.home.database) == []


def test_the_folder_of_a_killed_ingestion_is_pruned_from_a_bucket(tmp_path: Path) -> None:
    home = Home(memory_bucket())
    for name in ("one", "two"):
        plate = SyntheticPlate(name=name, wells=2, sites=1, shape=(1, 48, 48), cells=1, doses=1)
        ingest_plate(write_synthetic_plate(home.inbox, plate), home.plates)
    killed = [home.plates / f"{name}.0123456789ab.zarr" for name in ("one", "two", "three")]
    for folder in killed:
        write_bytes(folder / "zarr.json", b"{}")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_run(dg.DagsterRun("ingest_plates", status=dg.DagsterRunStatus.STARTED, tags={PARTITION: "two"}))
        assert abandoned_plates(home, instance) == [killed[0], killed[2]]
    assert abandoned_plates(Home(tmp_path), instance) == []
