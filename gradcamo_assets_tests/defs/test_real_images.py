"""Real microscope images through the same assets, scored with an encoder that was not trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr

from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.networks.bundle import BundleConfig
from gradcamo_assets.networks.encoders import build_encoder
from gradcamo_assets.plates import load_plate, read_field
from gradcamo_assets.tables import find_violations, run_sql
from gradcamo_assets.training.promotion import promote
from gradcamo_assets_tests.defs.conftest import Bench
from gradcamo_assets_tests.plates.test_omezarr import foreign_plate


def champion_for(bench: Bench, channels: list[str], shape: list[int], voxel_size: list[float | None]) -> None:
    """An encoder with random weights and noise for statistics, registered and promoted."""
    import torch

    torch.manual_seed(0)
    model, layer = build_encoder("efficientnet3d-small", len(channels), 3)
    with torch.no_grad():
        for _ in range(10):
            model.train()(torch.randn(4, len(channels), *shape))
    config = BundleConfig("efficientnet3d-small", layer, ["negcon", "a", "b"], channels, shape, voxel_size)
    registry = bench.platform.registry
    version = registry.register(model, config)
    promote(bench.platform.lake, registry, version, by="test", reason="trained elsewhere")


def lead_through(bench: Bench, name: str, settings: str) -> pl.DataFrame:
    """From the inbox to ``current_scores``."""
    bench.home.settings_file.write_text(settings)
    assert bench.ingest(name).success
    assert all(result.success for result in bench.process(name))
    sites = sorted({field.site for field in load_plate(bench.home.plates, name).fields})
    assert all(bench.run("rescore", plate_site_key(name, site)).success for site in sites)
    assert bench.run("refresh_qc").success
    assert find_violations(bench.home.database) == []
    return run_sql(bench.home.database, "SELECT * FROM current_scores")


def real_stack(bench: Bench, shared_data: Path, version: str) -> np.ndarray:
    """A plate of one real stack in the inbox, written by a foreign library in a version of NGFF: its image."""
    import tifffile

    stack = tifffile.imread(shared_data / "plantseg_rgb3d" / "tests" / "resources" / "rgb_3D.tif")
    image = np.moveaxis(stack, 1, 0)  # (Z, C, Y, X) on disk; channel 0 nuclei, 1 cytoplasm
    plate = foreign_plate(
        bench.home.inbox / "plantseg.zarr", {"B/3/0": image}, "czyx", version, channels=["nuclei", "cytoplasm"]
    )
    plate.with_name("plantseg.csv").write_text("Metadata_Well,Metadata_Compound\nB03,DMSO\n")
    return image


def test_a_real_stack_by_a_foreign_writer_in_ngff_0_4(bench: Bench, shared_data: Path) -> None:
    image = real_stack(bench, shared_data, "0.4")
    assert bench.ingest("plantseg").success
    plate = load_plate(bench.home.plates, "plantseg")
    (field,) = plate.fields
    assert (plate.channels, field.well) == (("nuclei", "cytoplasm"), "B03")
    np.testing.assert_array_equal(read_field(plate, field), image)


@pytest.mark.slow
def test_a_real_stack_by_a_foreign_writer(bench: Bench, shared_data: Path) -> None:
    real_stack(bench, shared_data, "0.5")
    champion_for(bench, ["nuclei", "cytoplasm"], [32, 48, 48], [None, None, None])
    scores = lead_through(bench, "plantseg", "[crops]\nshape = [32, 48, 48]\nkeep_border = true\n")
    assert 4 <= len(scores) <= 14  # seven cells were labelled by the data's authors, by a method of their own
    assert scores["Metadata_Well"].unique().to_list() == ["B03"]
    assert scores["split"].unique().to_list() == ["unseen"]
    assert (scores["gradcamo"].is_not_null() | scores["null_reason"].is_not_null()).all()
    cells = bench.platform.lake.read("cells")
    assert cells["volume_um3"].null_count() == len(cells) == cells["volume_voxels"].count(), "no unit is stated"


def test_two_real_cell_painting_fields_as_a_2d_plate(bench: Bench, shared_data: Path) -> None:
    folder = shared_data / "jump_rab30_mini" / "jump_rab30_mini"
    images = np.asarray(zarr.open_group(folder / "images.zarr", mode="r")["images"])
    stains = pl.read_csv(folder / "channels.csv")["channel"].to_list()
    foreign_plate(
        bench.home.inbox / "jump.zarr", {"G/1/0": images[0], "L/7/0": images[1]}, "cyx", channels=stains,
        scale={"y": 0.6, "x": 0.6},
    )  # fmt: skip
    (bench.home.inbox / "jump.csv").write_text(
        "Metadata_Well,Metadata_Compound,Metadata_pert_type\nG01,RAB30 ORF,trt\nL07,RAB30 CRISPR,trt\n"
    )
    champion_for(bench, ["DNA", "ER", "RNA", "AGP", "Mito"], [1, 96, 96], [1.0, 0.6, 0.6])
    scores = lead_through(
        bench, "jump", "[crops]\nshape = [1, 96, 96]\nkeep_border = true\n[segmentation]\ndiameter = 50\n"
    )
    by_well = dict(scores.group_by("Metadata_Well").len().rows())
    assert 8 <= by_well["G01"] <= 25  # about 15 nuclei by eye
    assert 30 <= by_well["L07"] <= 75  # about 50
    cells = bench.platform.lake.read("cells")
    assert not cells["touches_z_border"].any()
    assert scores["true_class"].unique().sort().to_list() == ["RAB30 CRISPR", "RAB30 ORF"]


@pytest.mark.slow
def test_a_real_imagexpress_export_goes_to_its_crops(bench: Bench, shared_data: Path) -> None:
    source = shared_data / "imagexpress_9987" / "resources" / "ImageXpress_exported" / "9987_Plate_3434"
    shutil.copytree(source, bench.home.inbox / "9987")
    (bench.home.inbox / "9987.tsv").write_text("Well Position\tCompound\tConc (nM)\nB2\tDMSO\t0\nB3\tnocodazole\t300\n")
    bench.home.settings_file.write_text(
        "[crops]\nshape = [1, 48, 48]\nkeep_border = true\n[segmentation]\ndiameter = 16\n"
    )
    result = bench.ingest("9987")
    assert result.success
    told = bench.checks(result)["true_z_stacks"]
    assert not told.passed and "FITC and Texas Red repeat one plane" in str(told.metadata["problems"].value)
    assert all(run.success for run in bench.process("9987"))
    cells = cells_with_crops(bench.platform.lake).collect()
    kept = cells.filter(pl.col("crop_index").is_not_null())
    assert dict(kept.group_by("Metadata_Well").len().rows()).keys() == {"B02", "B03"} and len(kept) >= 8
    assert set(kept["treatment_class"]) == {"negcon", "nocodazole@0.3uM"}
    assert not cells["touches_z_border"].any()
