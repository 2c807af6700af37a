"""The code location: builds Definitions, nothing else."""

from __future__ import annotations

from gradcamo_assets.defs.build import build_definitions

defs = build_definitions()
