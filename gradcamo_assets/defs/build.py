"""Build the Dagster definitions."""

from __future__ import annotations

import dagster as dg

from gradcamo_assets.defs.assets import ASSETS
from gradcamo_assets.defs.automation.jobs_and_sensors import JOBS, SCHEDULES, SENSORS
from gradcamo_assets.defs.catalogue import add_column_schema
from gradcamo_assets.defs.resources import Platform


def build_definitions(platform: Platform | None = None) -> dg.Definitions:
    """All assets, jobs, schedules and sensors, with the given ``platform`` (tests, demo) or the default one."""
    return dg.Definitions(
        assets=dg.map_asset_specs(add_column_schema, ASSETS),
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources={"platform": platform or Platform()},
        # A process for each step would import everything again, which takes longer than many steps.
        executor=dg.in_process_executor,
    )
