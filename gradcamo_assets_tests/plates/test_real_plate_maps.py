"""Real plate maps of four labs, read as the labs wrote them. Expected numbers were counted in the files."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from gradcamo_assets.errors import PlateError, PlateMapError
from gradcamo_assets.plates import read_plate_map
from gradcamo_assets.plates.companions import find_companions
from gradcamo_assets.plates.platemap import PlateMap

WELLS = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
LINCS_2016 = "lincs/2016_04_01_a549_48hr_batch1"
LINCS_2017 = "lincs/2017_12_05_Batch2"
VOLUMES = ["the plate map has columns of numbers or units that are not read: volume_ul, amount_mg"]
DENSITY = ["the plate map has columns of numbers or units that are not read: seed_density"]


@pytest.fixture
def maps(shared: Callable[[str], Path]) -> Path:
    return shared("platemaps")


def _listed(found: PlateMap) -> pl.DataFrame:
    return found.frame.filter(~pl.col("Metadata_Well").is_in(found.missing))


def _counts(frame: pl.DataFrame, column: str) -> Counter[object]:
    return Counter(frame[column].to_list())


@pytest.mark.parametrize(
    ("name", "types", "compounds", "main_doses", "notes"),
    [
        # Stock in mM, six threefold dilutions of 56 compounds and two controls at 20 mM.
        (f"{LINCS_2016}/platemap/C-7161-01-LM6-014.txt", {"trt": 360, "negcon": 24}, 58,
         dict.fromkeys([1e4, 3333.33, 1111.11, 370.37, 123.457, 41.1523], 56) | {19999.1: 12, 19999.8: 12}, []),
        (f"{LINCS_2016}/platemap/C-7161-01-LM6-016.txt", {"trt": 360, "negcon": 24}, 58,
         dict.fromkeys([1e4, 3333.33, 1111.11, 370.37, 123.457, 41.1523], 56) | {19999.1: 12, 19999.8: 12}, []),
        (f"{LINCS_2017}/platemap/AB00022422.csv", {"trt": 360, "negcon": 24}, 120,
         {1e4: 111, 1e3: 111, 100: 111, 5e3: 3, 500: 3, 50: 3}, VOLUMES),
        (f"{LINCS_2017}/platemap/LKCP001_A549_24H.txt", {"trt": 360, "negcon": 24}, 120,
         {1e4: 111, 1e3: 111, 100: 111, 5e3: 3, 500: 3, 50: 3}, VOLUMES),
        (f"{LINCS_2017}/platemap/LKCP002_U2OS_6H.txt", {"trt": 360, "negcon": 24}, 120,
         {1e4: 97, 1e3: 97, 100: 97, 5e3: 4, 500: 4, 50: 4}, VOLUMES),
        # Wells without compound and solvent are empty.
        (f"{LINCS_2017}/platemap/ASG003_MCF7_48H.txt", {"trt": 366, "negcon": 6, "empty": 12}, 120,
         {1e4: 106, 1e3: 106, 100: 106}, VOLUMES),
        (f"{LINCS_2017}/platemap/MOA002_A549_24H.txt", {"trt": 314, "negcon": 38, "empty": 32}, 82,
         {1e4: 68, 3333.33: 68, 1111.11: 68, 370.37: 68}, VOLUMES),
    ],
)  # fmt: skip
def test_lincs_stock_doses(
    maps: Path, name: str, types: dict[str, int], compounds: int, main_doses: dict[float, int], notes: list[str]
) -> None:
    found = read_plate_map(maps / name, WELLS)
    assert (found.missing, found.unknown, found.notes) == ([], [], notes)
    assert _counts(found.frame, "Metadata_pert_type") == types
    treated = found.frame.filter(Metadata_pert_type="trt")
    assert treated["Metadata_Compound"].n_unique() == compounds
    assert treated["Metadata_Dose_Unit"].unique().to_list() == ["uM"]
    doses = _counts(treated, "Metadata_Dose")
    assert {dose: doses[dose] for dose in main_doses} == main_doses
    controls = found.frame.filter(Metadata_pert_type="negcon").drop("Metadata_Well").unique()
    assert controls.rows() == [("DMSO", 0.0, None, 0, "negcon")]

    separator = "," if name.endswith(".csv") else "\t"
    rows = csv.DictReader((maps / name).read_text().splitlines(), delimiter=separator)
    raw = {row["well_position"]: (row["broad_sample"], row["mmoles_per_liter"]) for row in rows}
    for well, compound, dose in treated.select("Metadata_Well", "Metadata_Compound", "Metadata_Dose").iter_rows():
        assert (compound, pytest.approx(float(raw[well][1]) * 1000, rel=5e-6)) == (raw[well][0], dose)


def test_dilutions_that_excel_rounded_have_one_rank_each(maps: Path) -> None:
    frame = read_plate_map(maps / LINCS_2016 / "platemap/C-7161-01-LM6-014.txt", WELLS).frame
    ranks = frame.filter(pl.col("Metadata_Dose") < 15_000).group_by("Metadata_Dose_Rank").len().sort("len")
    assert dict(ranks.iter_rows()) == {0: 24, **dict.fromkeys(range(1, 7), 56)}


def test_jump_compounds_get_names_and_controls_from_their_metadata(maps: Path) -> None:
    metadata = maps / "jump_target/JUMP-Target-1_compound_metadata.tsv"
    first = read_plate_map(maps / "jump_target/JUMP-Target-1_compound_platemap.tsv", WELLS, [metadata])
    assert (first.missing, first.unknown, first.notes) == ([], [], [])
    assert _counts(first.frame, "Metadata_pert_type") == {"trt": 260, "poscon": 60, "negcon": 64}
    # 306 samples of 302 names: four names have two samples each.
    assert first.frame["Metadata_Compound"].n_unique() == 302 + 1
    assert first.frame.head(4).rows() == [
        ("A01", "gabapentin-enacarbil", None, None, None, "trt"), ("A02", "DMSO", 0.0, None, 0, "negcon"),
        ("A03", "amlodipine", None, None, None, "trt"), ("A04", "hexestrol", None, None, None, "trt"),
    ]  # fmt: skip
    second = read_plate_map(maps / "jump_target/JUMP-Target-2_compound_platemap.tsv", WELLS)
    assert _counts(second.frame, "Metadata_pert_type") == {"trt": 320, "negcon": 64}


@pytest.mark.parametrize(
    ("name", "first", "perturbations"), [("crispr", "BRDN0001480888", 335), ("orf", "ccsbBroad304_00900", 175)]
)
def test_jump_guides_and_open_reading_frames_are_compounds(
    maps: Path, name: str, first: str, perturbations: int
) -> None:
    found = read_plate_map(maps / f"jump_target/JUMP-Target-1_{name}_platemap.tsv", WELLS)
    empty = found.frame.filter(Metadata_pert_type="empty")
    assert empty["Metadata_Well"].to_list() == ["E01", "G04", "J05", "L08"]
    treated = found.frame.filter(Metadata_pert_type="trt")
    assert (len(treated), treated["Metadata_Compound"][0]) == (380, first)
    assert treated["Metadata_Compound"].n_unique() == perturbations
    assert treated["Metadata_Dose"].null_count() == 380


@pytest.mark.parametrize(
    ("name", "genotypes", "notes"),
    [
        ("plate1", {"WT": 4, "Null": 4}, []), ("plate2", {"WT": 16, "Null": 16}, []),
        ("plate3", {"WT": 24, "Null": 24, "HET": 24}, DENSITY), ("plate5", {"WT": 24, "Null": 24, "HET": 24}, []),
        ("plate6", {"WT": 20, "Null": 20, "HET": 20}, DENSITY),
    ],
)  # fmt: skip
def test_nf1_genotypes_are_compounds(maps: Path, name: str, genotypes: dict[str, int], notes: list[str]) -> None:
    found = read_plate_map(maps / f"nf1/platemap_NF1_{name}.csv", WELLS)
    assert _counts(_listed(found), "Metadata_Compound") == genotypes
    assert _listed(found)["Metadata_pert_type"].unique().to_list() == ["trt"]
    assert (found.unknown, found.notes) == ([], notes)


def test_nf1_sirna_on_two_genotypes_is_refused(maps: Path) -> None:
    with pytest.raises(PlateMapError, match=r"siRNA and genotype both name a perturbation.*Combine them"):
        read_plate_map(maps / "nf1/platemap_NF1_plate4.csv", WELLS)


def test_a_3d_screen_in_three_units(maps: Path) -> None:
    found = read_plate_map(maps / "nf1_3d_organoid/NF0014_T1_platemap.csv", WELLS)
    assert (len(_listed(found)), found.unknown, found.notes) == (60, [], [])
    treatments = Counter(_listed(found).drop("Metadata_Well").rows())
    assert treatments["DMSO", 0.0, None, 0, "negcon"] == 8
    assert treatments["Staurosporine", 0.01, "uM", 1, "trt"] == 4
    for compound in ("Binimetinib", "Mirdametinib", "Selumetinib", "Trametinib"):
        assert treatments[compound, 1.0, "uM", 1, "trt"] == treatments[compound, 10.0, "uM", 2, "trt"] == 2
    others = [row for row, count in treatments.items() if (row[1], count) == (1.0, 2)]
    assert len(others) == 20 and len(treatments) == 2 + 20 + 4


def test_two_compounds_in_a_well_are_refused_and_the_other_treatments_read(maps: Path, tmp_path: Path) -> None:
    path = maps / "pyroptosis/Interstellar_plate1_platemap.csv"
    with pytest.raises(PlateMapError, match=r"well [A-P]\d\d, file .*'1µg/ml \+ 10µM' are several doses"):
        read_plate_map(path, WELLS)
    single = tmp_path / "map.csv"
    lines = path.read_text().splitlines(keepends=True)
    single.write_text("".join(line for line in lines if "Nigericin" not in line))
    found = read_plate_map(single, WELLS)
    assert len(found.missing) == 48
    assert found.notes == ["the plate map has columns of numbers or units that are not read: alias"]
    treatments = _listed(found).group_by(pl.exclude("Metadata_Well")).len()
    assert set(treatments["len"]) == {24}
    assert sorted(treatments.drop("len").rows()) == sorted([
        ("ATP", 100.0, "uM", 1, "trt"), ("ATP", 1000.0, "uM", 2, "trt"), ("DMSO 0.1%", 0.0, None, 0, "negcon"),
        ("Disulfiram", 0.1, "uM", 1, "trt"), ("Disulfiram", 2.5, "uM", 2, "trt"),
        ("Flagellin", 0.1, "ug/mL", 1, "trt"), ("Flagellin", 1.0, "ug/mL", 2, "trt"), ("H2O2", 50.0, "uM", 1, "trt"),
        ("H2O2", 500.0, "uM", 2, "trt"), ("LPS", 1.0, "ug/mL", 1, "trt"), ("LPS", 10.0, "ug/mL", 2, "trt"),
        ("Media only", 0.0, None, 0, "negcon"), ("Thapsi", 1.0, "uM", 1, "trt"), ("Thapsi", 10.0, "uM", 2, "trt"),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "says"),
    [
        # Up to three compounds in a well, none of which is the compound.
        ("pyroptosis/Interstellar_plate2_platemap.csv", "no column Metadata_Compound, only.*inhibitor.*inducer1"),
        # A template: its only row explains the columns.
        ("lincs/idr0000-screenA-library.txt", "'# the well location.*is not a well"),
        ("jump_target/JUMP-Target-1_compound_metadata.tsv", "no column Metadata_Well"),
        (f"{LINCS_2016}/barcode_platemap.csv", "no column Metadata_Well"),
        ("nf1/barcode_platemap.csv", "no column Metadata_Well"),
        ("pe2loaddata/load_data_version1.csv", "no column Metadata_Compound"),
        ("pe2loaddata/load_data_version5.csv", "no column Metadata_Compound"),
        ("pe2loaddata/load_data_version7.csv", "no column Metadata_Compound"),
        ("pyroptosis/wave1_loaddata.csv", "no column Metadata_Compound"),
        ("pyroptosis/wave1_loaddata_with_illum.csv", "no column Metadata_Compound"),
        ("pyroptosis/wave2_loaddata.csv", "no column Metadata_Compound"),
    ],
)  # fmt: skip
def test_files_that_are_no_plate_map_of_single_treatments_are_refused(maps: Path, name: str, says: str) -> None:
    with pytest.raises(PlateMapError, match=says):
        read_plate_map(maps / name, WELLS)


@pytest.mark.parametrize(
    ("folder", "barcode", "plate_map"),
    [
        (LINCS_2016, "SQ00015233", "platemap/C-7161-01-LM6-014.txt"),
        (LINCS_2016, "SQ00015141", "platemap/C-7161-01-LM6-016.txt"),
        (LINCS_2017, "BR00092700", "platemap/LKCP001_A549_24H.txt"),
        (LINCS_2017, "BR00092774__2018-01-01T10_00_00-Measurement 1", "platemap/ASG003_MCF7_48H.txt"),
        ("nf1", "Plate_3_prime_nf1_analysis", "platemap_NF1_plate3.csv"),
        ("nf1", "Plate_1_nf1_analysis", "platemap_NF1_plate1.csv"),
    ],
)
def test_barcode_tables_name_the_map(maps: Path, tmp_path: Path, folder: str, barcode: str, plate_map: str) -> None:
    inbox = shutil.copytree(maps / folder, tmp_path / "inbox", copy_function=shutil.copyfile)
    inbox.chmod(0o755)
    (inbox / barcode).mkdir()
    assert find_companions(inbox / barcode).maps == (inbox / plate_map,)
    (inbox / "BR1").mkdir()
    assert find_companions(inbox / "BR1").note == "barcode_platemap.csv has no row for BR1"
    if folder == LINCS_2017:
        (inbox / "BR00092655").mkdir()
        with pytest.raises(PlateError, match="the plate map LKCP001_A549_6H does not exist"):
            find_companions(inbox / "BR00092655")
