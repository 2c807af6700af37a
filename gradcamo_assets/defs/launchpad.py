"""Offer settings in Dagster's launchpad, and record the settings used as metadata of materializations."""

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


def with_section_fields(kind: type, *excluded: str) -> Callable[[type[C]], type[C]]:
    """Class decorator that adds the fields of a settings section to a launchpad configuration.

    The fields are optional; None: not given.

    Args:
        kind: the class of the section.
        excluded: fields of the section to leave out.
    """

    def add(config: type[C]) -> type[C]:
        added: dict[str, Any] = {}
        for name, field in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
            if name not in excluded:
                offered = _launchpad_type(field.annotation, f"{config.__name__}_{name}")
                added[name] = (offered | None, Field(default=None, description=field.description))
        return create_model(config.__name__, __base__=config, __doc__=config.__doc__, **added)

    return add


def _launchpad_type(kind: Any, name: str) -> Any:
    """Convert a type for Dagster, which supports neither tuples nor literals."""
    inner = [part for part in get_args(kind) if part not in (NoneType, ...)]
    if get_origin(kind) is Literal:
        return StrEnum(name, [(choice, choice) for choice in inner])
    if get_origin(kind) is tuple:
        return list[_launchpad_type(inner[0], name)]  # type: ignore[misc]
    return inner[0] if inner else kind


def override_settings(section: T, config: dg.Config) -> T:
    """Return the section with the values given in the launchpad.

    Raises:
        GradcamoError: for values that the section does not accept.
    """
    names = {field.name for field in fields(section)}  # type: ignore[arg-type]
    values = config.model_dump(mode="json", include=names, exclude_none=True)
    return replace(section, **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})  # type: ignore[type-var]


def settings_metadata(**sections: object) -> dict[str, dg.MetadataValue]:
    """Metadata with the settings that a materialization used."""
    return {"settings": dg.MetadataValue.json(to_jsonable_python(sections))}
