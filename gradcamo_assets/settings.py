"""Define sections of ``gradcamo.toml`` as frozen dataclasses that check their values.

Each package defines the sections that it uses.
"""

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
    """Define a field of a section; ``limits`` are arguments of pydantic's ``Field``."""
    return Field(default=default, description=description, **limits)


@dataclass_transform(frozen_default=True)
def section(kind: type[T]) -> type[T]:
    """Turn a class into a frozen dataclass with strict types that supports ``asdict`` and ``replace``.

    An integer is accepted for a float; nothing else is converted. The constructor raises a ``GradcamoError`` that lists
    every invalid value. Values of fields with ``repr=False`` are secret and never shown.
    """
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    section_class: Any = dataclass(frozen=True, config=config)(kind)
    construct = section_class.__init__

    @wraps(construct)
    def construct_checked(self: T, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise GradcamoError(f"{kind.__name__}: {describe_errors(error, kind)}", "Correct these values.") from None

    section_class.__init__ = construct_checked
    return section_class


def describe_errors(error: ValidationError, kind: type) -> str:
    """Describe every validation error: its place, the expected and the found value.

    Args:
        kind: the section class that was validated.
    """
    return "; ".join(dict.fromkeys(_describe_error(details, kind) for details in error.errors(include_url=False)))


def _describe_error(details: ErrorDetails, kind: Any) -> str:
    place, is_secret, fields = "", False, [*kind.__pydantic_fields__]
    for part in details["loc"]:
        # Positional arguments have an index instead of a name.
        name = fields[part] if isinstance(part, int) and part < len(fields) else str(part)
        if name in fields:
            field = kind.__pydantic_fields__[name]
            kind, is_secret = field.annotation, not field.repr
            fields = [*getattr(kind, "__pydantic_fields__", ())]
            place += f"[{name}] " if fields else f"{name} "
    if details["type"] == "unexpected_keyword_argument":
        unknown = f"[{name}]" if isinstance(details["input"], dict) else name
        nearest = get_close_matches(name, fields, 1)
        suggestion = f"the nearest is {nearest[0]}" if nearest else f"known are {', '.join(fields)}"
        return f"{place}{unknown} is unknown; {suggestion}"
    text = details["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if details["type"] == "string_pattern_mismatch":
        text = f"expected this: {field.description[:-1]}"
    found = "" if is_secret or details["type"] == "value_error" else f", found {details['input']!r:.80}"
    return f"{place.strip()}: {text}{found}" if place else text
