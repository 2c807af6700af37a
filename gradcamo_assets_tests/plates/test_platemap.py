"""Plate maps as people write them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.common.errors import PlateMapError
from gradcamo_assets.plates import read_label_table, read_plate_map, treatment_class

HEADER = "Metadata_Well,Metadata_Compound,Metadata_Dose,Metadata_Dose_Unit,Metadata_pert_type"


def _write(folder: Path, text: str, name: str = "map.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_common_spellings_are_understood(tmp_path: Path) -> None:
    text = "Well Position,compound,Concentration,Units\na1,DMSO,,\nB2,cpd,10,uM\nB03, cpd ,0.3,uM\nC4,cpd,5,nM\n"
    frame = read_plate_map(_write(tmp_path, text), ["A1", "B02", "B3", "C4"]).frame
    assert frame.columns == [
        "Metadata_Well", "Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_Dose_Rank",
        "Metadata_pert_type",
    ]  # fmt: skip
    assert frame.rows() == [
        ("A01", "DMSO", 0.0, None, 0, "negcon"),
        ("B02", "cpd", 10.0, "uM", 2, "trt"),
        ("B03", "cpd", 0.3, "uM", 1, "trt"),
        ("C04", "cpd", 5.0, "nM", 1, "trt"),
    ]
    classes = frame.select(treatment_class()).to_series().to_list()
    assert classes == ["negcon", "cpd@10uM", "cpd@0.3uM", "cpd@5nM"]


def test_missing_and_unknown_wells_are_told(tmp_path: Path) -> None:
    found = read_plate_map(_write(tmp_path, "well,compound\nA1,x\nH12,y\n"), ["A01", "A02"])
    assert (found.missing, found.unknown) == (["A02"], ["H12"])
    assert found.frame["Metadata_pert_type"].to_list() == ["trt", "empty"]
    assert found.frame.select(treatment_class()).to_series().to_list() == ["x", None]


def test_without_a_map_every_well_is_empty() -> None:
    found = read_plate_map(None, ["A01", "B01"])
    assert found.frame["Metadata_pert_type"].to_list() == ["empty"] * 2
    assert found.frame["Metadata_Compound"].null_count() == 2 and found.frame.schema["Metadata_Dose_Rank"] == pl.Int32


def test_a_normalised_map_reads_back_the_same(tmp_path: Path) -> None:
    text = "\n".join([HEADER, "A01,a,1,uM,trt", "A02,b,2,uM,poscon", "A03,,,,", ""])
    wells = ["A01", "A02", "A03", "A04"]
    first = read_plate_map(_write(tmp_path, text), wells).frame
    first.write_csv(tmp_path / "again.csv")
    assert read_plate_map(tmp_path / "again.csv", wells).frame.equals(first)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("well,compound\nA1,x\nA01,y\n", "twice"),
        ("compound\nx\n", "no column Metadata_Well"),
        ("well,compound\nZZ99,x\n", "no well"),
        ("well,compound,dose\nA1,x,ten\n", "no dose"),
        ("well,compound,dose\nA1,x,-1\n", "no dose"),
        ("well,compound,dose\nA1,x,inf\n", "no dose"),
        ("well,compound,pert_type\nA1,x,control\n", "no perturbation type"),
        ("well,Metadata_Well,compound\nA1,A2,x\n", "both mean"),
        ("", "unreadable"),
    ],
)
def test_what_cannot_be_understood_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PlateMapError, match=says):
        read_plate_map(_write(tmp_path, text), ["A01"])


@given(st.lists(st.sampled_from([0.01, 0.1, 0.3, 1.0, 3.0, 10.0]), min_size=1, max_size=12))
def test_ranks_are_dense_and_ordered(tmp_path_factory: pytest.TempPathFactory, doses: list[float]) -> None:
    wells = [f"A{i + 1:02d}" for i in range(len(doses))]
    text = "well,compound,dose\n" + "\n".join(f"{w},x,{d}" for w, d in zip(wells, doses, strict=True))
    frame = read_plate_map(_write(tmp_path_factory.mktemp("map"), text), wells).frame
    order = sorted(set(doses))
    assert frame["Metadata_Dose_Rank"].to_list() == [order.index(dose) + 1 for dose in doses]


def test_a_label_table_is_typed(tmp_path: Path) -> None:
    header = "Metadata_Site,label,kind," + HEADER
    text = "\n".join([header, "1,7,target,A1,x,1,uM,trt", "2,7,bystander,A01,x,1,uM,trt"])
    table = read_label_table(_write(tmp_path, text))
    assert table.schema["label"] == pl.Int64 and table.schema["Metadata_Site"] == pl.Int32
    assert table.select("Metadata_Well", "Metadata_Site", "label", "kind").rows() == [
        ("A01", 1, 7, "target"),
        ("A01", 2, 7, "bystander"),
    ]


@pytest.mark.parametrize(
    "row", ["A1,0,1,target,x", "A1,1,x,target,x", "A1,1,1,friend,x", "A1,1,2,target,x\nA01,1,2,target,x"]
)
def test_a_wrong_label_table_is_an_error(tmp_path: Path, row: str) -> None:
    with pytest.raises(PlateMapError):
        read_label_table(_write(tmp_path, f"well,site,label,kind,compound\n{row}\n"))
