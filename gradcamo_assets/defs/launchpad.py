"""Sections of the settings in Dagster's launchpad, and in the metadata of what was made with them."""

from collections.abc import Callable
from dataclasses import fields, replace
from enum import StrEnum
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model
from pydantic_core import to_jsonable_python

T = TypeVar("T")
C = TypeVar("C", bound=dg.Config)


def offers(kind: type, *but: str) -> Callable[[type[C]], type[C]]:
    """Give a launchpad configuration the fields of a section: optional ones, where None is not given.

    Args:
        but: fields of the section that are left out.
    """

    def add(config: type[C]) -> type[C]:
        given: dict[str, Any] = {}
        for name, known in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
            if name not in but:
                offered = _offered(known.annotation, f"{config.__name__}_{name}")
                given[name] = (offered | None, Field(default=None, description=known.description))
        return create_model(config.__name__, __base__=config, __doc__=config.__doc__, **given)

    return add


def _offered(kind: Any, name: str) -> Any:
    """The type as Dagster understands it: no tuples, no literals."""
    inner = [part for part in get_args(kind) if part not in (NoneType, ...)]
    if get_origin(kind) is Literal:
        return StrEnum(name, [(choice, choice) for choice in inner])
    if get_origin(kind) is tuple:
        return list[_offered(inner[0], name)]  # type: ignore[misc]
    return inner[0] if inner else kind


def overridden(section: T, config: dg.Config) -> T:
    """The section with what the launchpad gives in its place.

    Raises:
        GradcamoError: for a value that the section does not take.
    """
    names = {field.name for field in fields(section)}  # type: ignore[arg-type]
    given = config.model_dump(mode="json", include=names, exclude_none=True)
    return replace(section, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})  # type: ignore[type-var]


def used(**sections: object) -> dict[str, dg.MetadataValue]:
    """Metadata that says with which settings something was made."""
    return {"settings": dg.MetadataValue.json(to_jsonable_python(sections))}
