"""Doses, units, perturbation types and ranks, compared with decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import PlateMapError
from gradcamo_assets.plates.platemap import read_plate_map
from gradcamo_assets.plates.treatments import normalise_unit, treatment_class

UNITS = {
    "pM": ["pM", "pm", "pmol/L", "picomolar", "pmol / l"],
    "nM": ["nM", "nm", "NM", "nmol/L", "nanomolar", "nanomoles per liter"],
    "uM": ["uM", "um", "µM", "μM", "umol/L", "µmol L^-1", "micromolar", "umol/litre", "(uM)"],
    "mM": ["mM", "mm", "mmol/L", "millimolar", "mmoles_per_liter"],
    "M": ["M", "mol/L", "molar", "mol L-1"],
    "mg/mL": ["mg/mL", "mg/ml", "mg_per_ml", "mg ml-1", "milligram/milliliter"],
    "ug/mL": ["ug/mL", "µg/ml", "μg/mL", "mcg/mL", "microgram per ml"],
    "ng/mL": ["ng/mL", "ng/ml", "ng.ml-1"],
    "%": ["%", "percent", "pct", "% v/v", "v/v", "%(w/v)", "% (v/v)"],
}
IN_MICRO = {name: Decimal(f"1e{power}") for name, power in {"pM": -6, "nM": -3, "uM": 0, "mM": 3, "M": 6}.items()}
BASE = {
    **{name: ("uM", factor) for name, factor in IN_MICRO.items()}, "mg/mL": ("ug/mL", Decimal(1000)),
    "ug/mL": ("ug/mL", Decimal(1)), "ng/mL": ("ug/mL", Decimal("0.001")), "%": ("%", Decimal(1)),
}  # fmt: skip
WELLS = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]


def _map(folder: Path, rows: list[tuple[str, ...]], header: str = "well;compound;dose;unit") -> pl.DataFrame:
    path = folder / "map.csv"
    path.write_text("\n".join([header, *(";".join(row) for row in rows)]))
    return read_plate_map(path, WELLS[: len(rows)]).frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maps")


@pytest.mark.parametrize(("unit", "spelling"), [(unit, text) for unit, texts in UNITS.items() for text in texts])
def test_spellings_of_units(unit: str, spelling: str) -> None:
    assert normalise_unit(spelling) == unit


@pytest.mark.parametrize("text", ["", "x", "cells", "mmol", "g", "mg", "ug/well", "U/mL", "MOI", "l", "%%", "mM/L"])
def test_unknown_units(text: str) -> None:
    assert normalise_unit(text) is None


@given(data=st.data(), dose=st.integers(1, 999), power=st.integers(-4, 3), unit=st.sampled_from(sorted(UNITS)))
def test_all_spellings_of_a_well_dose_and_unit_are_equal(
    folder: Path, data: st.DataObject, dose: int, power: int, unit: str
) -> None:
    value = Decimal(dose).scaleb(power)
    numbers = [f"{value:f}", f"{value:e}", f"+{value:f}", f"{value:f}".replace(".", ","), f" {value:E} "]
    well = data.draw(st.sampled_from(["a1", "A1", "A01", " A001 ", "a01"]))
    number, spelling = data.draw(st.sampled_from(numbers)), data.draw(st.sampled_from(UNITS[unit]))
    in_cell = data.draw(st.booleans())
    row = (well, "x", f"{number}{spelling}", "") if in_cell else (well, "x", number, spelling)
    base, factor = BASE[unit]
    assert _map(folder, [row]).rows() == [("A01", "x", float(value * factor), base, 1, "trt")]


DOSE = st.tuples(st.integers(1, 9999), st.integers(-4, 2), st.sampled_from(sorted(IN_MICRO)))


@given(st.lists(DOSE, min_size=1, max_size=20))
def test_molar_doses_become_micromolar_and_are_ranked_by_value(folder: Path, doses: list[tuple[int, int, str]]) -> None:
    values = [Decimal(digits).scaleb(power) for digits, power, _ in doses]
    units = [unit for *_, unit in doses]
    rows = [(well, "x", str(value), unit) for well, value, unit in zip(WELLS, values, units, strict=False)]
    frame = _map(folder, rows)
    micro = [value * IN_MICRO[unit] for value, unit in zip(values, units, strict=True)]
    assert frame["Metadata_Dose"].to_list() == [float(value) for value in micro]
    assert frame["Metadata_Dose_Unit"].unique().to_list() == ["uM"]
    order = sorted(set(micro))
    assert frame["Metadata_Dose_Rank"].to_list() == [order.index(value) + 1 for value in micro]
    again = _map(folder, [(r[0], r[1], repr(r[2]), r[3]) for r in frame.rows()])
    assert again.equals(frame)


def test_molar_doses_masses_and_shares_are_kept_apart(folder: Path) -> None:
    given_doses = ["500 nM", "1 uM", "2 mg/mL", "30 ug/mL", "0.5 %", "7", ""]
    frame = _map(folder, [(well, "x", dose, "") for well, dose in zip(WELLS, given_doses, strict=False)])
    assert frame.select("Metadata_Dose", "Metadata_Dose_Unit", "Metadata_Dose_Rank").rows() == [
        (0.5, "uM", 1), (1.0, "uM", 2), (2000.0, "ug/mL", 2), (30.0, "ug/mL", 1), (0.5, "%", 1), (7.0, None, 1),
        (None, None, None),
    ]  # fmt: skip


NOISY_DOSES = st.tuples(
    st.sampled_from(["x", "y"]),
    st.sampled_from(["uM", ""]),
    st.sampled_from([0.0, None, 0.1, 0.3, 10 / 3, 10.0]),
    st.sampled_from([1.0, 1 + 1e-8, 1 - 1e-8, 1 + 1e-12]),
)


@given(st.lists(NOISY_DOSES, min_size=1, max_size=25))
def test_doses_that_differ_by_rounding_are_one_treatment_with_one_rank(
    folder: Path, rows: list[tuple[str, str, float | None, float]]
) -> None:
    texts = [
        (well, name, "" if dose is None else repr(dose * noise), unit)
        for well, (name, unit, dose, noise) in zip(WELLS, rows, strict=False)
    ]
    frame = _map(folder, texts).with_columns(treatment_class().alias("class"))
    for row, (name, unit, dose, _) in zip(frame.iter_rows(named=True), rows, strict=True):
        doses = sorted({d for n, u, d, _ in rows if (n, u) == (name, unit) and d})
        assert row["Metadata_Dose_Rank"] == (None if dose is None else doses.index(dose) + 1 if dose else 0)
        assert row["Metadata_Dose"] == (None if dose is None else pytest.approx(dose, rel=1e-5))
    treatment = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
    expected = {(name, unit if dose else "", dose) for name, unit, dose, _ in rows}
    assert frame.select(treatment).n_unique() == frame["class"].n_unique() == len(expected)


def test_doses_of_dilutions_in_decimals_are_equal_on_all_plates(folder: Path) -> None:
    # The stock doses of LINCS: 10 mM diluted threefold, as two programs wrote them.
    written = ["9.99999999999999999", "10.0000001", "3.33333333333076923", "3.3333333312528", "0.0411522633769230769"]
    frames = [_map(folder, [("A1", "x", dose, "mM")]) for dose in written]
    assert [frame["Metadata_Dose"][0] for frame in frames] == [10_000, 10_000, 3333.33, 3333.33, 41.1523]
    assert _map(folder, [("A1", "x", "41152.2633744856204", "nM")])["Metadata_Dose"][0] == 41.1523


def test_a_control_without_and_with_a_unit_is_one_treatment(folder: Path) -> None:
    rows = [("A1", "DMSO", "", ""), ("A2", "DMSO", "0", "uM"), ("A3", "DMSO", "0.1 %", "")]
    frame = _map(folder, rows).drop("Metadata_Well")
    assert frame.unique().rows() == [("DMSO", 0.0, None, 0, "negcon")]


@pytest.mark.parametrize(
    ("compound", "pert_type", "control_type", "solvent", "kind"),
    [
        ("DMSO", "", "", "", "negcon"), ("0.1% DMSO", "", "", "", "negcon"),
        ("DMSO 0,5 % (v/v)", "", "", "", "negcon"), ("Vehicle control", "", "", "", "negcon"),
        ("Untreated", "", "", "", "negcon"), ("media only", "", "", "", "negcon"), ("PBS", "", "", "", "negcon"),
        ("Negative Control", "", "", "", "negcon"), ("Mock", "", "", "", "negcon"), ("water", "", "", "", "negcon"),
        ("empty", "", "", "", "empty"), ("Blank", "", "", "", "empty"), ("", "", "", "", "empty"),
        ("", "", "", "DMSO", "negcon"), ("", "", "", "EtOH", "empty"), ("x", "", "", "DMSO", "trt"),
        ("x", "trt", "", "", "trt"), ("x", "trt_cp", "", "", "trt"), ("x", "negcon", "", "", "negcon"),
        ("x", "Treatment", "", "", "trt"), ("x", "ctl_vehicle", "", "", "negcon"), ("x", "poscon", "", "", "poscon"),
        ("x", "control", "negcon", "", "negcon"), ("x", "control", "poscon_cp", "", "poscon"),
        ("x", "control", "poscon_diverse", "", "poscon"), ("x", "control", "poscon_orf", "", "poscon"),
        ("DMSO", "control", "", "", "negcon"), ("", "control", "NA", "DMSO", "negcon"),
        ("x", "", "negcon", "", "negcon"), ("DMSO", "trt", "", "", "trt"), ("x", "empty", "", "", "empty"),
        ("vehiclease", "", "", "", "trt"), ("Dimethyl sulfoxide", "", "", "", "negcon"),
        ("DMSO_2", "", "", "", "negcon"),
        ("DMSO1", "", "", "", "negcon"), ("Scramble", "", "", "", "negcon"), ("non-targeting", "", "", "", "negcon"),
        ("H2O", "", "", "", "negcon"), ("H2O2", "", "", "", "trt"), ("Blank 3", "", "", "", "empty"),
    ],
)  # fmt: skip
def test_perturbation_types(
    folder: Path, compound: str, pert_type: str, control_type: str, solvent: str, kind: str
) -> None:
    header = "well;compound;dose;pert_type;control_type;solvent"
    frame = _map(folder, [("A1", compound, "3", pert_type, control_type, solvent)], header)
    assert frame["Metadata_pert_type"].to_list() == [kind]
    assert frame["Metadata_Dose"].to_list() == [0.0 if kind == "negcon" else 3.0]
    assert frame["Metadata_Compound"].to_list() == [compound or (solvent if kind == "negcon" else None)]


def test_a_wrong_treatment_names_its_well(folder: Path) -> None:
    with pytest.raises(PlateMapError, match=r"well A02.*unknown unit 'x'"):
        _map(folder, [("A1", "a", "1", "uM"), ("A2", "a", "1", "x")])


@pytest.mark.parametrize(
    ("compound", "says"),
    [
        ("2024-03-01 00:00:00", "is a date.*MARCH1"), ("1-Mar", "is a date"), ("Sep-02", "is a date"),
        ("01. Mrz", "is a date"), ("01.03.2024", "is a date"), ("9/2/24", "is a date"),
        ("x" * 256, r"has 256 characters.*at most 255"), ("x" * 100_000, "has 100,000 characters"),
        ("x\x1b[31m", "control characters"), ("a\u202eb", "control characters"), ('"a\nb"', "control characters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_solvent", [False, True])
def test_a_compound_that_is_no_name_is_rejected_with_its_well(
    folder: Path, compound: str, says: str, is_solvent: bool
) -> None:
    row = ("A2", "", "", "negcon", compound) if is_solvent else ("A2", compound, "1 uM", "", "")
    with pytest.raises(PlateMapError, match=f"(?s)well A02, file .*{says}") as raised:
        _map(folder, [("A1", "APR-246", "1 uM", "", ""), row], "well;compound;dose;pert_type;solvent")
    assert len(str(raised.value)) < 400


def test_spellings_of_one_name_in_unicode_are_one_compound(folder: Path) -> None:
    names = ["m\u00fcsli bar", "mu\u0308sli bar", "m\u00fcsli\u00a0bar"]
    frame = _map(folder, [(well, name, "", "") for well, name in zip(WELLS, names, strict=False)])
    assert frame["Metadata_Compound"].to_list() == [names[0]] * 3


def test_two_doses_in_one_well_are_rejected_with_the_way_to_write_them(folder: Path) -> None:
    with pytest.raises(PlateMapError, match=r"'1µg/ml \+ 10µM' are several doses\. .*as one compound"):
        _map(folder, [("A1", "LPS + Nigericin", "1µg/ml + 10µM", "")])
