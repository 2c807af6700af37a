"""All definitions on one platform."""

from __future__ import annotations

import dagster as dg

from gradcamo_assets.defs.assets import ASSETS
from gradcamo_assets.defs.automation.jobs_and_sensors import JOBS, SCHEDULES, SENSORS
from gradcamo_assets.defs.catalogue import catalogued
from gradcamo_assets.defs.resources import Platform


def build_definitions(platform: Platform | None = None) -> dg.Definitions:
    """All assets, jobs, schedules and sensors; tests and the demo pass a platform of their own."""
    return dg.Definitions(
        assets=dg.map_asset_specs(catalogued, ASSETS),
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources={"platform": platform or Platform()},
    )
