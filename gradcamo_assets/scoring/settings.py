"""How the scoring pass runs."""

from __future__ import annotations

from typing import Literal

from gradcamo_assets.settings import section, setting


@section
class ScoringConfig:
    """How the scoring pass runs: section ``[scoring]`` of ``gradcamo.toml``."""

    batch_size: int | None = setting(None, "Crops a forward pass; else 8, and 64 on a GPU.", ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "bfloat16: where the encoder's logits agree in it; auto: that, on machines that compute in it."
    )
    device: str | None = setting(None, "cuda, cpu, ...; else the GPU if there is one.")
