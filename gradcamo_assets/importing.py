"""A user's own code by import path, ``module:function``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from gradcamo_assets.errors import GradcamoError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def import_function(name: str, what: str, remedy: str, error: type[GradcamoError]) -> Callable[..., Any]:
    """The function that ``name`` names. Its module is imported, so name only code you trust.

    Raises:
        error: for a name of another form, one of Python's own modules, or a function that cannot be import_function.
    """
    # A name may come from a file: os:kill with two small numbers is no encoder.
    if not IMPORT_PATH.fullmatch(name) or re.split(r"[.:]", name)[0] in sys.stdlib_module_names:
        raise error(f"{name!r} is no known {what}", remedy)
    module, function = name.split(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as cause:
        raise error(f"{what} {name!r} cannot be import_function ({cause})", remedy) from cause
