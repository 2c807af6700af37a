"""Test names of wells, plates and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.names import check_name, check_plate_name, natural_key, normalise_well_name, row_index, row_letters


@given(st.integers(0, 31), st.integers(1, 48), st.booleans(), st.booleans())
def test_all_spellings_of_a_well_are_normalised(row: int, column: int, upper: bool, padded: bool) -> None:
    letters = chr(65 + row) if row < 26 else "A" + chr(65 + row - 26)
    spelling = f"{letters if upper else letters.lower()}{column:02d}" if padded else f"{letters}{column}"
    assert normalise_well_name(spelling) == f"{letters}{column:02d}"
    assert row_index(letters) == row and row_letters(row) == letters


@pytest.mark.parametrize("text", ["", "A", "1", "A0", "A49", "AG1", "BA1", "A1B", "../A1", "A-1", "A1.5"])
def test_invalid_well_names_are_refused(text: str) -> None:
    with pytest.raises(PlateError, match="not a well"):
        normalise_well_name(text)


@given(st.text(max_size=12))
def test_an_accepted_plate_name_is_one_harmless_path_component(text: str) -> None:
    try:
        name = check_plate_name(text)
    except PlateError:
        return
    assert name == text
    assert Path("plates", name).parent == Path("plates")
    assert not set(name) & set("/\\'\"; \n|\0")


@pytest.mark.parametrize("text", ["..", ".hidden", "a/b", "a\\b", "a b", "", "a" * 200, "a\n", "x..y", "a'b", "a|b"])
def test_names_that_could_leave_their_folder_are_refused(text: str) -> None:
    with pytest.raises(GradcamoError):
        check_plate_name(text)
    with pytest.raises(GradcamoError):
        check_name(text)


def test_natural_order() -> None:
    assert sorted(["f10", "f9", "2", "10", "f9b"], key=natural_key) == ["2", "10", "f9", "f9b", "f10"]
