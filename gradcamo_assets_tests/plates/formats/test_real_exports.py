"""Exports as microscopes write them: what is read from each, or why it is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import Export, detect_format, read_export, read_plane

Shared = Callable[[str], Path]


def files_of(export: Export) -> dict[tuple[str, int, str, int], str]:
    """The file of each plane, by well, site, channel name and z."""
    rows = export.planes.select("well", "site", "channel", "z", "file").iter_rows()
    return {(well, site, export.channels[channel], z): file for well, site, channel, z, file in rows}


def assert_pixels_are_those_of_tifffile(export: Export) -> None:
    for file in export.planes["file"]:
        np.testing.assert_array_equal(read_plane(export.path / file), tifffile.imread(export.path / file))


@pytest.mark.parametrize("version", [1, 5])
def test_phenix_is_read_as_pe2loaddata_reads_it(version: int, shared: Shared) -> None:
    folder = shared("exports") / f"phenix_v{version}"
    with (shared("platemaps") / "pe2loaddata" / f"load_data_version{version}.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    stains = [name.removeprefix("FileName_") for name in row if name.startswith("FileName_")]
    expected = {row[f"Metadata_ChannelName_{stain}"]: row[f"FileName_{stain}"] for stain in stains}
    export = read_export(folder)
    assert {key[2]: file for key, file in files_of(export).items()} == expected and len(expected) == 6
    assert {key[:2] for key in files_of(export)} == {(row["Metadata_Well"], int(row["Metadata_Site"]))}
    sizes = [float(row[f"Metadata_ImageResolution{axis}"]) * 1e6 for axis in "YX"]
    assert export.voxel_size[1:] == pytest.approx(sizes) and sizes == pytest.approx([0.598, 0.598], abs=5e-4)
    assert (export.format, export.problems, dict(export.incomplete)) == ("Operetta", (), {})
    assert read_plane(folder / export.planes["file"][0]).shape == (1080, 1080)
    assert export.acquisition["magnification"] == "20" and export.acquisition["binning"] == "2"


@pytest.mark.parametrize(
    ("name", "format", "reason"),
    [
        (
            "phenix_v7_index",
            "Operetta",
            r"none of the 7 planes that Index.xml lists has a file \(r01c01f01p01-ch1sk1fk1",
        ),
        (
            "incell_index",
            "IN Cell",
            r"none of the 16 planes that test_data.xdce lists has a file \(C - 03\(fld 01 wv UV",
        ),
    ],
)
def test_an_index_without_its_images_is_recognised_and_refused(
    name: str, format: str, reason: str, shared: Shared
) -> None:
    folder = shared("exports") / name
    assert detect_format(folder) == format
    with pytest.raises(PlateError, match=reason):
        read_export(folder)


def test_an_index_of_in_cell_with_images_of_its_names(tmp_path: Path, shared: Shared) -> None:
    (tmp_path / "test_data.xdce").write_bytes((shared("exports") / "incell_index" / "test_data.xdce").read_bytes())
    expected = {
        (f"{row}03", site, stain, 0): f"{row} - 03(fld {site:02d} wv {stain}).tif"
        for row in "CD" for site in (1, 2) for stain in ("UV - DAPI", "Blue - FITC", "Green - dsRed", "Red - Cy5")
    }  # fmt: skip
    for name in expected.values():
        (tmp_path / name).touch()
    export = read_export(tmp_path)
    assert files_of(export) == expected and export.voxel_size[1:] == (0.1625, 0.1625)
    assert export.format == "IN Cell" and str(export.acquisition["objective"]).startswith("Nikon 40X/0.95")
    (tmp_path / "C - 03(fld 02 wv Red - Cy5).tif").unlink()
    assert dict(read_export(tmp_path).incomplete) == {("C03", 2): "lacks Red - Cy5"}


def test_a_blank_cv8000(shared: Shared) -> None:
    export = read_export(shared("exports") / "cv8000_blank")
    assert (export.format, export.channels) == ("CellVoyager", ("C01", "C02"))
    # The z positions in MeasurementData.mlf are 0, 3, 6 and 9.
    assert export.voxel_size == pytest.approx((3, 0.325, 0.325)) and dict(export.incomplete) == {}
    name = "CV8000-Minimal-DataSet-2C-3W-4S-FP2-stack_{}_T0001F{:03d}L01A0{}Z{:02d}C0{}.tif"
    assert files_of(export) == {
        (well, site, f"C0{c}", z): name.format(well, site, c, z + 1, c)
        for well in ("D08", "E03", "F08") for site in range(1, 5) for c in (1, 2) for z in range(4)
    }  # fmt: skip
    unused = [f"MeasurementData.mlf lists channel C0{number}, but it has no files" for number in (3, 4)]
    assert list(export.problems) == unused
    assert not read_plane(export.path / export.planes["file"][0]).any()


def test_metaxpress_without_its_htd(shared: Shared) -> None:
    export = read_export(shared("exports") / "metaxpress_no_htd")
    assert detect_format(export.path) == "MetaXpress names"
    assert files_of(export) == {
        (well, site, wave, 0): f"IM-Assays-EXP2_{well}_s{site}_{wave}.TIF"
        for well, site in (("A01", 1), ("A02", 4)) for wave in ("w1", "w3")
    }  # fmt: skip
    header = tifffile.TiffFile(export.path / export.planes["file"][0]).metaseries_metadata
    assert header and header["PlaneInfo"]["spatial-calibration-x"] == 0.645
    assert export.voxel_size[1:] == (0.645, 0.645) and dict(export.incomplete) == {}
    assert any("no HTD" in problem for problem in export.problems)
    assert any("w2, but it has no files" in problem for problem in export.problems)
    assert_pixels_are_those_of_tifffile(export)


def test_scanr_without_its_descriptor(shared: Shared) -> None:
    export = read_export(shared("exports") / "scanr_names")
    assert export.format == "ScanR names"
    assert files_of(export) == {
        (f"A0{well}", 1, stain, 0): f"A{well}--W0000{well}--P00001--Z00000--T00000--{stain}.tif"
        for well in (1, 2) for stain in ("GFP", "mcherry")
    }  # fmt: skip
    assert_pixels_are_those_of_tifffile(export)
    assert export.voxel_size == (None, None, None), "its TIFF tags give a resolution of 1 without a unit"
    assert 32768 < read_plane(export.path / export.planes["file"][0]).min() < 33100


def test_names_of_phenix_as_png(shared: Shared) -> None:
    export = read_export(shared("lincs_a549") / "images" / "SQ00015198")
    assert (export.format, export.channels) == ("Phenix names", ("ch1", "ch2", "ch3", "ch4", "ch5"))
    assert set(export.planes.select("well", "site").iter_rows()) == {
        (well, site) for well in ("A01", "J18", "A13", "P13") for site in (1, 2, 3)
    }
    assert export.voxel_size == (None, None, None)
    assert files_of(export)["J18", 2, "ch4", 0] == "r10c18f02p01-ch4sk1fk1fl1.png"
    opencv = pytest.importorskip("cv2", reason="OpenCV decodes PNG independently")
    for file in export.planes["file"][:3]:
        expected = opencv.imread(str(export.path / file), opencv.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read_plane(export.path / file), expected)


def test_names_of_arrayscan(shared: Shared) -> None:
    export = read_export(shared("bbbc016_dose"))
    assert (export.format, export.channels) == ("ArrayScan names", ("d2",))
    wells = [f"O{column:02d}" for column in range(1, 25)]
    # The names number fields from 0.
    assert files_of(export) == {
        (well, site, "d2", 0): f"AS_09047_050428030001_{well}f{site - 1:02d}d2.TIF"
        for well in wells
        for site in (1, 2, 3)
    }
    assert any(problem.startswith("sites are numbered from 1, so '00' is site 1") for problem in export.problems)


@pytest.mark.parametrize("table", ["wave1_loaddata", "wave1_loaddata_with_illum", "wave2_loaddata"])
def test_tables_of_a_real_screen(table: str, tmp_path: Path, shared: Shared) -> None:
    source = shared("platemaps") / "pyroptosis" / f"{table}.csv"
    (tmp_path / "load_data.csv").write_bytes(source.read_bytes())
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    stains = [name.removeprefix("FileName_Orig") for name in rows[0] if name.startswith("FileName_Orig")]
    expected = {
        (row["Metadata_Well"], int(row["Metadata_Site"]), stain, int(row["Metadata_PlaneID"]) - 1):
        row[f"FileName_Orig{stain}"]
        for row in rows for stain in stains
    }  # fmt: skip
    for name in expected.values():
        (tmp_path / name).touch()
    export = read_export(tmp_path)
    assert files_of(export) == expected and len(expected) == len(rows) * len(stains)
    assert export.voxel_size[1:] == pytest.approx((0.29898804, 0.29898804))
    assert dict(export.incomplete) == {} and not export.planes.filter(pl.col("channel") >= len(stains)).height
