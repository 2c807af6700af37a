"""Test sections of the settings: their types, limits and error messages."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from pydantic import Field

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.settings import Share, section


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
