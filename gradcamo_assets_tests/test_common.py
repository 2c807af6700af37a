"""Test names, sections of the settings, atomic writes and provenance."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.home import Home
from gradcamo_assets.names import check_name, check_plate_name, natural_key, normalise_well_name, row_index, row_letters
from gradcamo_assets.provenance import Provenance, stored_version
from gradcamo_assets.settings import Share, section
from gradcamo_assets.storage import atomic_file, atomic_folder, write_json


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


def test_an_error_names_the_place_and_the_remedy() -> None:
    error = GradcamoError("the chunk is damaged", "Copy it again.", plate="P1", well="B03", site=2, path="x/y")
    assert str(error) == "plate P1, well B03, site 2, file x/y: the chunk is damaged. Copy it again."


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_folder_appears_whole_and_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "a"
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert list(folder.parent.iterdir()) == []
    with atomic_folder(folder) as slow:
        (slow / "slow").touch()
        assert not folder.exists()
        with atomic_folder(folder) as fast:
            (fast / "fast").touch()
        assert [path.name for path in folder.iterdir()] == ["fast"]
    assert [path.name for path in folder.iterdir()] == ["fast"]
    assert [path.name for path in folder.parent.iterdir()] == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pass


def test_remains_of_a_killed_process_do_not_block_a_write(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    program = (
        "import os, sys; from pathlib import Path; from gradcamo_assets.storage import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)]).returncode == -9
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    with atomic_folder(folder) as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_provenance_changes_with_every_part(tmp_path: Path) -> None:
    base = Provenance("in", {"a": 1}, "1")
    base.write(tmp_path)
    assert stored_version(tmp_path) == base.version
    for other in (Provenance("out", {"a": 1}, "1"), Provenance("in", {"a": 2}, "1"), Provenance("in", {"a": 1}, "2")):
        assert other.version != base.version
    assert stored_version(tmp_path / "nothing") is None


@section
class _Section:
    shape: tuple[int, int] = (1, 2)
    share: Share = 0.5
    on: bool = False
    word: str = Field(default="x", repr=False)

    def __post_init__(self) -> None:
        if self.on and not self.share:
            raise ValueError("on needs a share")


def test_a_section_is_a_frozen_dataclass_with_strict_types() -> None:
    example = replace(_Section((3, 4), share=1), on=True)
    assert asdict(example) == {"shape": (3, 4), "share": 1.0, "on": True, "word": "x"}
    with pytest.raises(FrozenInstanceError):
        example.on = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on": "false"}, "_Section: on: expected a valid boolean, found 'false'"),
        ({"on": 1}, "on: expected a valid boolean, found 1"),
        ({"shape": (1.0, 2)}, "shape: expected a valid integer, found 1.0"),
        ({"share": "0.1"}, "share: expected a valid number, found '0.1'"),
        ({"share": 2}, "share: expected less than or equal to 1, found 2"),
        ({"share": float("nan")}, "share: expected a finite number, found nan"),
        ({"shap": (1, 2)}, "shap is unknown; the nearest is shape"),
        ({"xyz": 1}, "xyz is unknown; known are shape, share, on, word"),
        ({"on": True, "share": 0}, "on needs a share"),
        ({"on": 1, "share": -1}, "share: expected greater than or equal to 0, found -1; on: "),
        ({"word": 3}, "word: expected a valid string. "),
    ],
)
def test_invalid_values_of_a_section_are_described(values: dict, message: str) -> None:
    with pytest.raises(GradcamoError) as error:
        _Section(**values)
    assert message in str(error.value)
    with pytest.raises(GradcamoError):
        replace(_Section(), **values)


def test_an_invalid_positional_value_is_described() -> None:
    with pytest.raises(GradcamoError, match="shape: expected a valid tuple, found 5"):
        _Section(5)  # type: ignore[arg-type]


def test_the_environment_sets_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAMO_HOME", str(tmp_path / "home"))
    home = Home.from_environment().create()
    assert home.inbox == tmp_path / "home" / "inbox"
    assert home.inbox.is_dir()
