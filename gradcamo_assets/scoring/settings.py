"""Settings of the scoring pass."""

from __future__ import annotations

from typing import Literal

from gradcamo_assets.settings import section, setting


@section
class ScoringConfig:
    """Settings of the scoring pass: section ``[scoring]`` of ``gradcamo.toml``."""

    batch_size: int | None = setting(None, "Crops per forward pass; by default 64 on a GPU, else 8.", ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "bfloat16 fails if the encoder's logits differ in it; auto uses it if supported and the logits agree.",
    )
    runtime: Literal["auto", "torch", "openvino"] = setting(
        "auto",
        "openvino fails if it cannot run the encoder; auto uses it if installed, on a CPU, if the scores are equal.",
    )
    device: str | None = setting(None, "cuda, cpu, ...; by default the GPU if available.")
