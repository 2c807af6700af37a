"""Evaluate sensors, read their requests, and register a version to which they react."""

from __future__ import annotations

import dagster as dg

from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.training.model_registry import ModelVersion
from gradcamo_assets_tests.defs.conftest import Bench


def tick(bench: Bench, sensor: dg.SensorDefinition, cursor: str | None = None) -> dg.SensorResult:
    """One evaluation of a sensor."""
    with dg.build_sensor_context(
        instance=bench.instance, cursor=cursor, resources={"platform": bench.platform}, definitions=bench.definitions
    ) as context:
        result = sensor(context)
    if isinstance(result, dg.RunRequest):
        return dg.SensorResult(run_requests=[result])
    return result if isinstance(result, dg.SensorResult) else dg.SensorResult(skip_reason=result)


def requested(result: dg.SensorResult) -> list[tuple[str | None, str | None]]:
    """Job and partition of each request."""
    return [(request.job_name, request.partition_key) for request in result.run_requests or []]


def another_version(bench: Bench, promote: bool = True) -> ModelVersion:
    """Register the champion's weights once more, as the next version."""
    registry = bench.platform.registry
    champion = registry.by_alias()
    assert champion is not None
    model, config = load_bundle(registry.fetch(champion))
    version = registry.register(model, config)
    if promote:
        registry.promote(version.version)
    return version
