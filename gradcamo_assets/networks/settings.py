"""Settings of encoders."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gradcamo_assets.settings import section, setting


@section
class EncodersConfig:
    """Encoders of your own: section ``[encoders]`` of ``gradcamo.toml``.

    The configuration of a registered version names the function that builds its encoder. It is called only if its
    module is listed here, since a version may come from others. Built-in encoders need no entry.
    """

    modules: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")], ...] = setting(
        (), "Full names of modules whose functions may build encoders."
    )
