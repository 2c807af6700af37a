"""Sections of ``gradcamo.toml``: frozen dataclasses that check their values, each in the package that uses it."""

from __future__ import annotations

from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from gradcamo_assets.errors import GradcamoError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A field of a section; ``limits`` are those of pydantic's ``Field``."""
    return Field(default=default, description=description, **limits)


@dataclass_transform(frozen_default=True)
def section(kind: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose types are strict, ``asdict`` and ``replace`` included.

    An integer will do for a float; nothing else is converted. Making one raises a ``GradcamoError`` that names every
    value that is wrong. The value of a field with ``repr=False`` is secret.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))(kind)
    construct = made.__init__

    @wraps(construct)
    def checked(self: T, *values: Any, **named: Any) -> None:
        try:
            construct(self, *values, **named)
        except ValidationError as error:
            raise GradcamoError(f"{kind.__name__}: {describe_errors(error, kind)}", "Give other values.") from None

    made.__init__ = checked
    return made


def describe_errors(error: ValidationError, kind: type) -> str:
    """All that is wrong, with its place, what was expected and what was found; ``kind`` is what was to be made."""
    return "; ".join(dict.fromkeys(_problem(problem, kind) for problem in error.errors(include_url=False)))


def _problem(problem: ErrorDetails, kind: Any) -> str:
    place, secret, known = "", False, [*kind.__pydantic_fields__]
    for part in problem["loc"]:
        # A value that was given without its name stands at a number.
        name = known[part] if isinstance(part, int) and part < len(known) else str(part)
        if name in known:
            field = kind.__pydantic_fields__[name]
            kind, secret = field.annotation, not field.repr
            known = [*getattr(kind, "__pydantic_fields__", ())]
            place += f"[{name}] " if known else f"{name} "
    if problem["type"] == "unexpected_keyword_argument":
        unknown = f"[{name}]" if isinstance(problem["input"], dict) else name
        nearest = get_close_matches(name, known, 1)
        there = f"the nearest is {nearest[0]}" if nearest else f"known are {', '.join(known)}"
        return f"{place}{unknown} is unknown; {there}"
    text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["type"] == "string_pattern_mismatch":
        text = f"expected this: {field.description[:-1]}"
    found = "" if secret or problem["type"] == "value_error" else f", found {problem['input']!r:.80}"
    return f"{place.strip()}: {text}{found}" if place else text
