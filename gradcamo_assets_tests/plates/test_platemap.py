"""Plate maps in many spellings, and files that must be rejected."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

import fastexcel
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import PlateMapError
from gradcamo_assets.plates import read_label_table, read_plate_map, treatment_class

HEADER = "Metadata_Well,Metadata_Compound,Metadata_Dose,Metadata_Dose_Unit,Metadata_pert_type"


_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def _write(folder: Path, text: str | bytes, name: str = "map.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def workbook(rows: str, shared: str = "", more: str = "") -> bytes:
    """An XLSX file with this ``sheetData`` on its first sheet, laid out as by Excel; its other sheet is ignored."""
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType='
        f'"application/xml"/><Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet2.xml" ContentType="{_TYPE}.worksheet+xml"/>'
        f'<Override PartName="/xl/sharedStrings.xml" ContentType="{_TYPE}.sharedStrings+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="map" sheetId="2" r:id="rId2"/><sheet name="notes" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId2" Type="{_OFFICE}/worksheet" Target="/xl/worksheets/sheet2.xml"/>'
        f'<Relationship Id="rId3" Type="{_OFFICE}/sharedStrings" Target="sharedStrings.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_MAIN}"><sheetData/></worksheet>',
        "xl/worksheets/sheet2.xml": f'{more}<worksheet xmlns="{_MAIN}"><sheetData>{rows}</sheetData></worksheet>',
        "xl/sharedStrings.xml": f'<sst xmlns="{_MAIN}">{shared}</sst>',
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as book:
        for name, content in parts.items():
            book.writestr(name, content)
    return packed.getvalue()


def _cells(*texts: str) -> str:
    return "<row>" + "".join(f'<c t="inlineStr"><is><t>{text}</t></is></c>' for text in texts) + "</row>"


def test_common_spellings_are_understood(tmp_path: Path) -> None:
    text = "Well Position,compound,Concentration,Units\na1,DMSO,,\nB2,cpd,10,uM\nB03, cpd ,0.3,uM\nC4,cpd,5,nM\n"
    frame = read_plate_map(_write(tmp_path, text), ["A1", "B02", "B3", "C4"]).frame
    assert frame.columns == [
        "Metadata_Well", "Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_Dose_Rank",
        "Metadata_pert_type",
    ]  # fmt: skip
    assert frame.rows() == [
        ("A01", "DMSO", 0.0, None, 0, "negcon"),
        ("B02", "cpd", 10.0, "uM", 3, "trt"),
        ("B03", "cpd", 0.3, "uM", 2, "trt"),
        ("C04", "cpd", 0.005, "uM", 1, "trt"),
    ]
    classes = frame.select(treatment_class()).to_series().to_list()
    assert classes == ["negcon", "cpd@10uM", "cpd@0.3uM", "cpd@0.005uM"]


def test_missing_and_unknown_wells_are_listed(tmp_path: Path) -> None:
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


MAP = [("well", "compound", "dose"), ("A1", "DMSO", ""), ("A2", "x", "0.5 µM"), ("B1", "müsli", "2")]
FRAME = [
    ("A01", "DMSO", 0.0, None, 0, "negcon"), ("A02", "x", 0.5, "uM", 1, "trt"), ("B01", "müsli", 2.0, None, 1, "trt"),
]  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_encodings_and_line_ends_are_detected(
    tmp_path: Path, separator: str, encoding: str, end: str
) -> None:
    text = end.join(separator.join(row) for row in MAP) + end
    if separator == ";":
        text = "sep=;\r\n" + text.replace("0.5", "0,5")
    path = _write(tmp_path, text.encode(encoding))
    assert read_plate_map(path, ["A1", "A2", "B1"]).frame.rows() == FRAME


def test_a_workbook_reads_like_the_same_csv_and_like_calamine(tmp_path: Path) -> None:
    hinted = '<si><r><t>com</t></r><r><t>pound</t></r><rPh sb="0" eb="1"><t>hint</t></rPh></si>'
    shared = f"<si><t>well</t></si>{hinted}<si><t>A1</t></si>"
    rows = (
        '<row r="2"><c r="B2" t="s"><v>0</v></c><c r="C2" t="s"><v>1</v></c>'
        '<c r="E2" t="inlineStr"><is><t>Dose (nM)</t></is></c></row>'
        '<row r="3"><c r="B3" t="s"><v>2</v></c><c r="C3" t="str"><f>"a"&amp;"b"</f><v>ab</v></c>'
        '<c r="E3"><f>30*10</f><v>300</v></c></row>'
        '<row r="5"><c r="B5" t="inlineStr"><is><t>A2</t></is></c><c r="C5" t="s"><v>1</v></c>'
        '<c r="E5"><v>2.5</v></c></row>'
    )
    path = _write(tmp_path, workbook(rows, shared), "map.xlsx")
    same = _write(tmp_path, "well,compound,,Dose (nM)\nA1,ab,,300\nA2,compound,,2.5\n")
    frame = read_plate_map(path, ["A1", "A2"]).frame
    assert frame.equals(read_plate_map(same, ["A1", "A2"]).frame)
    by_calamine = (
        fastexcel.read_excel(path).load_sheet(0).to_polars().select("well", "compound", "Dose (nM)").drop_nulls()
    )
    assert by_calamine.rows() == [("A1", "ab", 300.0), ("A2", "compound", 2.5)]
    assert frame["Metadata_Dose_Unit"].to_list() == ["uM"] * 2
    assert frame.select("Metadata_Compound", pl.col("Metadata_Dose") * 1000).rows() == [
        row[1:] for row in by_calamine.rows()
    ]


def test_small_doses_of_a_workbook_are_read_and_distant_blank_cells_are_ignored(tmp_path: Path) -> None:
    rows = _cells("well", "compound", "dose") + (
        '<row r="2"><c t="inlineStr"><is><t>A1</t></is></c><c t="inlineStr"><is><t>x</t></is></c>'
        '<c><v>1.2345678901E-10</v></c></row><row r="1048576"><c r="XFD1048576" s="1"/></row>'
    )
    path = _write(tmp_path, workbook(rows + _cells("A2", "x", "-")), "map.xlsx")
    assert read_plate_map(path, ["A1", "A2"]).frame["Metadata_Dose"].to_list() == [1.23457e-10, None]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Well ID,cmpd,Conc (uM)", "a1,x,2"),
        ("Well_Position;Compound Name;Concentration [µM]", "A01;x;2,0"),
        ("well_name,drug,dose_um,notes", "A1,x,2e0,?"),
        ("Destination Well,perturbation,dose,units", "A1,x,2.,micromolar"),
        ("Row,Column,treatment,Final conc uM", "1,01,x,2"),
        ("row,col,sample,conc", "a,1,x,2 umol/L"),
        ("Metadata_Well,pert_iname,pert_dose,pert_dose_unit", "A1,x,2,uM"),
        ("well,InChIKey,conc (nM)", "A1,x,2 µM"),
        ("Well;Wirkstoff;Sample;Konz (µM)", "A1;;x;2,0"),
        ("Row,Column,compound,dose_um", "1.0,1.0,x,2"),
        ("well,siRNA,Concentration,units", "A1,x,2,uM"),
        ("well,gene_name,genotype,conc_um", "A1,TP53,x,2"),
        ("well,sgRNA,gene symbol,conc_um", "A1,x,TP53,2"),
        ("well_position,broad_sample,mg_per_ml,mmoles_per_liter,solvent", "A01,x,7,0.002,DMSO"),
    ],
)
def test_spellings_of_columns(tmp_path: Path, header: str, row: str) -> None:
    frame = read_plate_map(_write(tmp_path, f"{header}\n{row}\n"), ["A1"]).frame
    assert frame.rows() == [("A01", "x", 2.0, "uM", 1, "trt")]


def test_a_broad_map_with_the_metadata_of_its_samples(tmp_path: Path) -> None:
    text = (
        "plate_map_name\twell_position\tbroad_sample\tmg_per_ml\tmmoles_per_liter\tsolvent\n"
        "M1\tA01\t\t\t\tDMSO\nM1\tA02\tBRD-1\t5.1\t9.99999999999999999\tDMSO\nM1\tA03\tBRD-1\t0.5\t1.e-001\tDMSO\n"
        "M1\tA04\tBRD-2\t5\t5\tDMSO\nM1\tA05\tBRD-3\t5\t5\tDMSO\nM1\tA06\tBRD-4\t5\t5\tDMSO\nM1\tA07\tNA\tNA\tNA\tNA\n"
    )
    told = (
        "broad_sample\tInChIKey\tpert_iname\tpert_type\tcontrol_type\tsmiles\n"
        "BRD-1\tK1\tquinine\ttrt\tNA\tCC=O\nBRD-2\tK2\tAMG900\tcontrol\tposcon_cp\tC\n"
        "BRD-3\tK3\tluciferase\tcontrol\tnegcon\tC\n\t\tDMSO\tcontrol\tnegcon\t\n"
    )
    path = _write(tmp_path, text, "M1.txt")
    wells = [f"A{column:02d}" for column in range(1, 8)]
    more = _write(tmp_path, "broad_sample\tpert_iname\nBRD-9\tz\n", "external_metadata_more.tsv")
    none = _write(tmp_path, "gene\tsymbol\n1\t2\n", "external_metadata_none.tsv")
    frame = read_plate_map(path, wells, [_write(tmp_path, told, "external_metadata.tsv"), more, none]).frame
    assert frame.drop("Metadata_Well").rows() == [
        ("DMSO", 0.0, None, 0, "negcon"), ("quinine", 1e4, "uM", 2, "trt"), ("quinine", 100.0, "uM", 1, "trt"),
        ("AMG900", 5e3, "uM", 1, "poscon"), ("luciferase", 0.0, None, 0, "negcon"), ("BRD-4", 5e3, "uM", 1, "trt"),
        (None, None, None, None, "empty"),
    ]  # fmt: skip
    twice = _write(tmp_path, told + "BRD-1\tK1\tother\ttrt\tNA\t\n", "external_metadata.tsv")
    with pytest.raises(PlateMapError, match="BRD-1 is described twice"):
        read_plate_map(path, wells, [twice])


BOMB = workbook(_cells("well", "compound") + "<row/>" * 17_000_000)
INVALID: dict[str, tuple[str, str | bytes, str]] = {
    "two spellings of one well": ("csv", "well,compound\nA1,x\nA01,y\n", "A01"),
    "no well column": ("csv", "compound\nx\n", "no column Metadata_Well"),
    "no compound column": ("csv", "well,dose\nA1,1\n", "no column Metadata_Compound"),
    "a well that is none": ("csv", "well,compound\nZZ99,x\n", "ZZ99.*not a well"),
    "a well without a name": ("csv", "well,compound\n,x\n", "not a well"),
    "a row that is none": ("csv", "row,column,compound\n33,1,x\n", "not a well"),
    "a dose in words": ("csv", "well,compound,dose\nA1,x,ten\n", "well A01.*not a dose"),
    "a negative dose": ("csv", "well,compound,dose\nA1,x,-1\n", "not a dose"),
    "an infinite dose": ("csv", "well,compound,dose\nA1,x,inf\n", "not a dose"),
    "a dose beyond floats": ("csv", "well,compound,dose\nA1,x,1e999\n", "not a dose"),
    "a dose of endless digits": ("csv", "well,compound,dose\nA1,x," + "1" * 100_000 + "..\n", "not a dose"),
    "thousands with a comma": ("csv", 'well,compound,dose\nA1,x,"1,000"\n', "not a dose"),
    "a dose below a limit": ("csv", "well,compound,dose\nA1,x,<10\n", "not a dose"),
    "an unknown unit": ("csv", "well,compound,dose,unit\nA1,x,1,bananas\n", "unknown unit 'bananas'.*nM.*mg/mL"),
    "an unknown unit in a cell": ("csv", "well,compound,dose\nA1,x,1 MOI\n", "unknown unit 'MOI'"),
    "two units for a dose": ("csv", "well,compound,dose,unit\nA1,x,1 nM,uM\n", "two units"),
    "an unknown kind": ("csv", "well,compound,pert_type\nA1,x,friend\n", "unknown perturbation type"),
    "a control of no kind": ("csv", "well,compound,pert_type\nA1,x,control\n", "unknown perturbation type"),
    "columns that mean one thing": ("csv", "well,Metadata_Well,compound\nA1,A2,x\n", "both mean"),
    "two dose columns": ("csv", "well,compound,conc (uM),conc_nM\nA1,x,1,2\n", "both mean"),
    "two header cells alike": ("csv", "well,compound,note,note\nA1,x,,\n", "two columns are called 'note'"),
    "nothing": ("csv", "", "unreadable.*empty"),
    "blank lines": ("csv", "\n\n , \n", "unreadable.*empty"),
    "a short row": ("csv", "well,compound,dose\nA1,x\n", "2 cells, the header 3"),
    "a long row": ("csv", "well,compound\nA1,x,1\n", "3 cells, the header 2"),
    "a quote that never ends": ("csv", 'well,compound\nA1,"x\nA2,y\n', "unreadable"),
    "digits without end in a name": ("csv", "well,compound\nA1," + "1" * 130_000 + "\n", "130,000 characters"),
    "a formula": ("csv", "well,compound\nA1,=1+1\n", "formula"),
    "a formula in a quoted cell": ("csv", "well,compound,note\nA1,x,\" =HYPERLINK(1)\"\n", "formula"),
    "a formula's error": ("csv", "well,compound\nA1,#REF!\n", "formula"),
    "NUL bytes": ("csv", "well,compound\nA1,x\0\n", "NUL"),
    "UTF-16 without its mark": ("csv", "well,compound\nA1,x\n".encode("utf-16-le"), "NUL"),
    "half a UTF-16 letter": ("csv", "well,compound\nA1,x\n".encode("utf-16")[:-1], "not text"),
    "a million columns": ("csv", ",".join(f"c{i}" for i in range(10**6)) + "\n", "1,000 columns"),
    "a million columns behind a quote": ("csv", '"a,\nb",' + "c," * 10**6 + "d\n", "1,000 columns"),
    "too many rows": ("csv", "well,compound\n" + "A1,x\n" * 100_001, "100,000 rows"),
    "too much text": ("csv", b"well,compound\n" + b"x" * 20_000_001, "larger than 20 MB"),
    "a cell without end": ("csv", "well,compound\nA1," + "x" * 200_000 + "\n", "unreadable"),
    "no workbook": ("xlsx", "well,compound\nA1,x\n", "not an XLSX"),
    "an old workbook": ("xls", b"\xd0\xcf\x11\xe0" + bytes(600), "not an XLSX"),
    "a zip bomb": ("xlsx", BOMB, "unpacked it is larger than 64 MB"),
    "half a zip": ("xlsx", workbook(_cells("well"))[:500], "unreadable"),
    "a zip of something else": ("xlsx", b"PK\x05\x06" + bytes(18), "not an XLSX"),
    "entities in a workbook": ("xlsx", workbook("", more='<!DOCTYPE x [<!ENTITY a "b">]>'), "document type"),
    "a workbook with a formula as text": ("xlsx", workbook(_cells("well", "compound") + _cells("A1", "=1")), "formula"),
    "a formula never computed": (
        "xlsx", workbook(_cells("well") + '<row><c r="A2"><f>B1</f><v/></c></row>'), "row 2 was never computed",
    ),
    "a shared text that is not there": ("xlsx", workbook('<row><c t="s"><v>7</v></c></row>'), "damaged XLSX"),
    "a cell of no place": ("xlsx", workbook(f'<row><c r="{"A" * 100_000}1"><v>7</v></c></row>'), "damaged XLSX"),
    "another file of the kind": ("xlsx", workbook("").replace(b"xl/workbook.xml", b"xl/document.xml"), "damaged XLSX"),
    "a cell far to the right": ("xlsx", workbook('<row><c r="XFD1"><v>1</v></c></row>'), "1,000 columns"),
    "a longer row in a workbook": ("xlsx", workbook(_cells("well", "compound") + _cells("A1", "x", "y")), "3 cells"),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_plate_map_is_rejected_within_seconds(tmp_path: Path, case: str) -> None:
    ending, content, says = INVALID[case]
    path = _write(tmp_path, content, f"map.{ending}")
    begin = time.perf_counter()
    with pytest.raises(PlateMapError, match=says) as raised:
        read_plate_map(path, ["A01"])
    assert time.perf_counter() - begin < 15 and str(path) in str(raised.value) and len(str(raised.value)) < 500


def test_a_workbook_with_a_wrong_unpacked_size_is_rejected(tmp_path: Path) -> None:
    honest = workbook(_cells("well", "compound") + "<row/>" * 1_000)
    with zipfile.ZipFile(io.BytesIO(honest)) as book:
        size = book.getinfo("xl/worksheets/sheet2.xml").file_size
    lie = honest.replace(size.to_bytes(4, "little"), (50).to_bytes(4, "little"))
    assert lie != honest
    with pytest.raises(PlateMapError, match="unreadable"):
        read_plate_map(_write(tmp_path, lie, "map.xlsx"), ["A1"])


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


def test_an_ambiguous_control_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PlateMapError, match="'Control' does not say whether"):
        read_plate_map(_write(tmp_path, "well,compound\nA1,Control\n"), ["A1"])
    frame = read_plate_map(_write(tmp_path, "well,compound\nA1,positive control\nA2,neg ctrl\n"), ["A1", "A2"]).frame
    assert frame["Metadata_pert_type"].to_list() == ["poscon", "negcon"]


def test_thousands_separators_beside_decimal_commas_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(PlateMapError, match=r"'1\.000' is ambiguous"):
        read_plate_map(_write(tmp_path, "well;compound;dose\nA1;x;1.000\nA2;x;10,5\n"), ["A1", "A2"])
    frame = read_plate_map(_write(tmp_path, "well;compound;dose\nA1;x;0.001\nA2;x;10,5\n"), ["A1", "A2"]).frame
    assert frame["Metadata_Dose"].to_list() == [0.001, 10.5]


@pytest.mark.parametrize(
    ("header", "rows", "unread"),
    [
        ("well,compound,Gehalt (µM)", ["A1,x,1", "A2,x,10"], "Gehalt (µM)"),
        ("well,compound,strength", ["A1,x,1 uM", "A2,x,10 nM"], "strength"),
        ("well,compound,dose,Einheit", ["A1,x,1,nM", "A2,x,1,uM"], "Einheit"),
        ("well;compound;dose;stock;time", ["A1;x;1,5;0,1;6", "A2;x;1,5;;"], "stock, time"),
        ("well,compound,dose,mg_per_ml,note", ["A1,x,1,5,a", "A2,x,2,6,2"], None),
    ],
)
def test_columns_of_numbers_or_units_that_are_not_read_are_named(
    tmp_path: Path, header: str, rows: list[str], unread: str | None
) -> None:
    found = read_plate_map(_write(tmp_path, "\n".join([header, *rows])), ["A1", "A2"])
    expected = [f"the plate map has columns of numbers or units that are not read: {unread}"] if unread else []
    assert found.notes == expected


def test_samples_that_no_metadata_table_describes_are_named(tmp_path: Path) -> None:
    path = _write(tmp_path, "well,broad_sample\nA1,BRD-1\nA2,brd-2\nA3,BRD-3\nA4,\n")
    tables = [_write(tmp_path, f"broad_sample,pert_iname\n{row}\n", f"{row[:5]}.csv") for row in ("BRD-1,a", "BRD-2,b")]
    found = read_plate_map(path, ["A1", "A2", "A3", "A4"], tables)
    assert found.notes == ["samples of the plate map without a row in BRD-1.csv, BRD-2.csv: BRD-3, brd-2"]
    assert found.frame["Metadata_Compound"].to_list() == ["a", "brd-2", "BRD-3", None]


def test_two_perturbations_in_one_well_are_rejected(tmp_path: Path) -> None:
    text = "well,genotype,siRNA\nA1,WT,x\nA2,Null,x\n"
    with pytest.raises(PlateMapError, match=r"siRNA 'x' has genotype \['WT', 'Null'\]\. Combine them"):
        read_plate_map(_write(tmp_path, text), ["A1", "A2"])
    with pytest.raises(PlateMapError, match="compound and genotype both name"):
        read_plate_map(_write(tmp_path, "well,genotype,compound\nA1,WT,\nA2,KO,\n"), ["A1", "A2"])
    frame = read_plate_map(_write(tmp_path, text.replace("Null,x", "Null,y")), ["A1", "A2"]).frame
    assert frame["Metadata_Compound"].to_list() == ["x", "y"]
