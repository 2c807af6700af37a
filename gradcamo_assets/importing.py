"""Import functions of users by import path, ``module:function``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from gradcamo_assets.errors import GradcamoError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def import_function(name: str, what: str, remedy: str, error: type[GradcamoError]) -> Callable[..., Any]:
    """Import a function by its import path. This runs the module, so use only code you trust.

    Args:
        name: ``module:function``.
        what: kind of function, for error messages.
        remedy: remedy of the error.
        error: type of the error.

    Raises:
        error: if the name has another form, belongs to Python's standard library, or cannot be imported.
    """
    # Names may come from untrusted files, so the standard library (os:kill) is excluded.
    if not IMPORT_PATH.fullmatch(name) or re.split(r"[.:]", name)[0] in sys.stdlib_module_names:
        raise error(f"unknown {what} {name!r}", remedy)
    module, function = name.split(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as cause:
        raise error(f"{what} {name!r} cannot be imported ({cause})", remedy) from cause
