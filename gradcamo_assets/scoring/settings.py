"""How the scoring pass runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gradcamo_assets.common.sections import section


@section
class ScoringConfig:
    """How the scoring pass runs: section ``[scoring]`` of ``gradcamo.toml``."""

    batch_size: int | None = Field(default=None, ge=1, description="Crops a forward pass; else 8, and 64 on a GPU.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="float32; bfloat16, where the encoder's logits agree in it; auto: the latter on machines that "
        "compute in it.",
    )
    device: str | None = Field(default=None, description="cuda, cpu, ...; else the GPU if there is one.")
