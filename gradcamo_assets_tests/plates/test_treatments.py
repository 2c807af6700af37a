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
from gradcamo_assets.plates.treatments import add_dose_ranks, normalise_unit

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
    assert _map(folder, [row]).rows() == [("A01", "x", float(value), unit, 1, "trt")]


DOSE = st.tuples(st.integers(1, 9999), st.integers(-4, 2), st.sampled_from(sorted(IN_MICRO)))


@given(st.lists(DOSE, min_size=1, max_size=20))
def test_mixed_molar_doses_become_micromolar_and_are_ranked_by_value(
    folder: Path, doses: list[tuple[int, int, str]]
) -> None:
    values = [Decimal(digits).scaleb(power) for digits, power, _ in doses]
    units = [unit for *_, unit in doses]
    rows = [(well, "x", str(value), unit) for well, value, unit in zip(WELLS, values, units, strict=False)]
    frame = _map(folder, rows)
    micro = [value * IN_MICRO[unit] for value, unit in zip(values, units, strict=True)]
    if len(set(units)) == 1:
        assert frame["Metadata_Dose"].to_list() == [float(value) for value in values]
        assert frame["Metadata_Dose_Unit"].unique().to_list() == [units[0]]
    else:
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


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "y", None]),
            st.sampled_from(["uM", None]),
            st.sampled_from([0.0, None, 0.1, 0.3, 1.0, 10.0]),
            st.sampled_from([1.0, 1 + 1e-12, 1 - 1e-12, 1 + 1e-6]),
        ),
        max_size=25,
    )
)
def test_doses_that_differ_by_rounding_share_a_rank(
    rows: list[tuple[str | None, str | None, float | None, float]],
) -> None:
    table = [(name, unit, None if dose is None else dose * noise) for name, unit, dose, noise in rows]
    schema = {"Metadata_Compound": pl.String, "Metadata_Dose_Unit": pl.String, "Metadata_Dose": pl.Float64}
    ranks = add_dose_ranks(pl.DataFrame(table, schema=schema, orient="row"))["Metadata_Dose_Rank"].to_list()
    for (name, unit, dose), rank in zip(table, ranks, strict=True):
        mates = {round(other, 9) for n, u, other in table if (n, u) == (name, unit) and other}
        assert rank == (None if dose is None else 0 if dose == 0 else sum(mate <= round(dose, 9) for mate in mates))


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
        ("vehiclease", "", "", "", "trt"),
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
