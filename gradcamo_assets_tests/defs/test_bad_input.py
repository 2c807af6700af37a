"""Bad input is reported with its place, and all other data are processed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr

from gradcamo_assets.defs.field_results import mask_folder
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.plates import load_plate, read_field
from gradcamo_assets.segmentation import read_masks
from gradcamo_assets.synthetic import write_synthetic_plate
from gradcamo_assets.tables import find_violations, publish, run_sql
from gradcamo_assets_tests.defs.conftest import TINY, Bench


def _chunks(array: Path) -> list[Path]:
    return sorted(path for path in array.rglob("*") if path.is_file() and path.name != "zarr.json")


def _fill(field: Path, values: np.ndarray | int) -> None:
    zarr.open_array(field / "0", mode="r+")[:] = values


@pytest.fixture
def damaged(bench: Bench) -> Bench:
    """A plate of 6 wells x 2 sites in the inbox: three bad fields, one without cells, a plate map without a well."""
    plate = write_synthetic_plate(bench.home.inbox, TINY)
    wells = sorted(path.parent for path in plate.glob("*/*/zarr.json"))
    shutil.rmtree(wells[0] / "0" / "0")
    chunk = _chunks(wells[1] / "0" / "0")[0]
    chunk.write_bytes(chunk.read_bytes()[:50])
    _fill(wells[2] / "0", 100)
    _fill(wells[3] / "0", np.random.default_rng(0).poisson(100, (5, 6, 96, 96)).astype(np.uint16))
    table = pl.read_csv(bench.home.inbox / "tiny.csv")
    table.head(5).write_csv(bench.home.inbox / "tiny.csv")
    return bench


def test_bad_fields_are_reported_and_the_others_are_processed(damaged: Bench) -> None:
    ingested = damaged.ingest("tiny")
    assert ingested.success
    checks = damaged.checks(ingested)
    assert not checks["fields_readable"].passed
    listed = str(checks["fields_readable"].metadata["bad_fields"].value)
    assert all(path in listed for path in ("A/01/0", "A/02/0", "A/03/0")), listed
    assert not checks["plate_map_matches"].passed
    lacking = set(TINY.well_names) - set(pl.read_csv(damaged.home.inbox / "tiny.csv")["Metadata_Well"])
    assert all(well in str(checks["plate_map_matches"].metadata["problems"].value) for well in lacking)

    results = damaged.process("tiny")
    assert all(result.success for result in results)
    usable = damaged.checks(results[0])["fields_usable"]
    assert not usable.passed and not usable.blocking
    assert f"{TINY.well_names[3]}: unusable masks: no cell was found" in str(usable.metadata["unusable"].value)
    assert damaged.checks(results[1])["fields_usable"].passed
    lake = damaged.platform.lake
    publish(lake, damaged.home.database)
    fields = run_sql(damaged.home.database, "SELECT * FROM fields ORDER BY Metadata_Well, Metadata_Site")
    bad = fields.filter(pl.col("qc_flag").is_not_null())
    wells = [("A01", 1), ("A02", 1), ("A03", 1), (TINY.well_names[3], 1)]
    assert bad.select("Metadata_Well", "Metadata_Site").rows() == wells
    assert bad["qc_flag"].to_list()[2:] == ["empty", "unusable masks: no cell was found"]
    assert bad["n_cells"].to_list() == [None, None, None, 0]
    cells = lake.read("cells")
    seen = set(cells.select("Metadata_Well", "Metadata_Site").unique().rows())
    no_cells = (TINY.well_names[3], 1)
    assert seen == {(well, site) for well in TINY.well_names for site in (1, 2)} - {
        ("A01", 1), ("A02", 1), ("A03", 1), no_cells,
    }  # fmt: skip
    counted = cells.group_by("Metadata_Well", "Metadata_Site").agg(n=pl.len()).join(
        fields, on=["Metadata_Well", "Metadata_Site"]
    )  # fmt: skip
    assert (counted["n"] == counted["n_cells"]).all() and counted["foreground_share"].is_between(0.01, 0.9).all()
    assert cells["mean_intensity"].list.len().unique().to_list() == [5]
    masks = lake.read("masks", site=1).filter(Metadata_Well=no_cells[0])["mask_version"].item()
    assert read_masks(mask_folder(damaged.home, "tiny", *no_cells, masks)).cells.max() == 0
    assert cells.filter(Metadata_Well=lacking.pop())["treatment_class"].null_count() > 0


@pytest.mark.slow
def test_a_field_damaged_after_ingestion_is_flagged_until_a_rerun(bench: Bench) -> None:
    write_synthetic_plate(bench.home.inbox, TINY)
    assert bench.ingest("tiny").success
    plate = load_plate(bench.home.plates, "tiny")
    chunk = _chunks(plate.path / plate.fields[0].path / "0")[0]
    good = chunk.read_bytes()
    chunk.write_bytes(good[:50])
    result = bench.run("process_fields", plate_site_key("tiny", 1))
    assert result.success
    check = bench.checks(result)["fields_segmented"]
    assert not check.passed
    assert "A01" in str(check.metadata["reasons"].value)
    flagged = "SELECT Metadata_Well, qc_flag FROM fields WHERE qc_flag IS NOT NULL AND Metadata_Site = 1"
    ((well, flag),) = bench.ask(flagged)
    assert well == "A01" and flag.startswith("not segmented: plate tiny, well A01")
    chunk.write_bytes(good)
    assert bench.run("process_fields", plate_site_key("tiny", 1)).success
    assert bench.ask(flagged) == []
    assert bench.ask("SELECT count(DISTINCT Metadata_Well) FROM cells WHERE crop_index IS NOT NULL") == [(6,)]
    assert read_field(plate, plate.fields[0]).shape == (5, 6, 96, 96)


@pytest.mark.parametrize("pixels", ["stored", pytest.param("cut from the field", marks=pytest.mark.slow)])
def test_damaged_crops_fail_their_partition_only(scored_bench: Bench, tmp_path: Path, pixels: str) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    registry = bench.platform.registry
    champion = registry.by_alias()
    assert champion is not None
    for site in (1, 2):
        for table in ("scores", "score_versions"):
            bench.platform.lake.drop(table, plate="tiny", site=site)
    victim = next(path for path in sorted((bench.home.crops / "tiny").glob("*_s1/*")))
    if pixels == "stored":
        chunk = _chunks(victim / "pixels" / "images")[0]
        place = f"{victim.parent.name}/{victim.name}"
    else:
        shutil.rmtree(victim / "pixels")
        (masks,) = (bench.home.masks / "tiny" / victim.parent.name).iterdir()
        chunk = _chunks(masks / "labels" / "cells" / "0")[0]
        place = f"plate tiny, well {victim.parent.name[:3]}, site 1"
    chunk.write_bytes(chunk.read_bytes()[:100])
    failed = bench.run("rescore", plate_site_key("tiny", 1))
    assert not failed.success
    assert place in _failure(failed)
    assert bench.run("rescore", plate_site_key("tiny", 2)).success
    done = bench.run("refresh_qc")
    assert done.success, _failure(done)
    assert find_violations(bench.home.database) == []
    assert run_sql(bench.home.database, "SELECT DISTINCT Metadata_Site FROM scores").rows() == [(2,)]


def test_an_unreadable_bundle_is_reported_and_scores_remain(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    registry = bench.platform.registry
    champion = registry.by_alias()
    assert champion is not None
    before = bench.platform.lake.delta_version("scores")
    weights = registry.fetch(champion) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    again = {"scores_and_embeddings": {"config": {"again": True}}}
    failed = bench.run("rescore", plate_site_key("tiny", 1), ops=again)
    assert not failed.success
    assert "model.safetensors" in _failure(failed)
    assert bench.platform.lake.delta_version("scores") == before


def _failure(result: object) -> str:
    """The error messages of the failed steps."""
    events = result.all_events  # type: ignore[attr-defined]
    return " ".join(str(event.event_specific_data.error) for event in events if event.is_step_failure)
