"""Launch each run as a job of a Ray cluster, with the resources of its assets.

A run executes its steps one after the other in one process, as on a workstation: a Ray job for each step would import
everything again. It reserves the largest amount of each resource that one of its assets needs. The module needs the
extra ``cluster``, and is named in ``dagster.yaml`` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

import dagster as dg
from dagster._config.config_schema import UserConfigSchema
from dagster._core.launcher import LaunchRunContext
from dagster_ray import RayRunLauncher

_TAG = "dagster-ray/config"
_RESOURCES = {"num_cpus": float, "num_gpus": float, "memory": int}
"""What a run can reserve: cores, GPUs, bytes."""


class RayLauncher(RayRunLauncher):
    """``RayRunLauncher`` with the key ``assets`` beside ``ray``: resources by the name of an asset.

    Assets without resources need those in ``ray``. A run with a tag ``dagster-ray/config`` reserves what the tag says.
    """

    def __init__(self, assets: Mapping[str, Mapping[str, float]], **ray: Any):
        super().__init__(**ray)
        self.assets = assets

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return the schema of the configuration."""
        resources = dg.Shape({name: dg.Field(kind, is_required=False) for name, kind in _RESOURCES.items()})
        inherited: Any = super().config_type()
        return {**inherited, "assets": dg.Field(dg.Map(str, resources), default_value={})}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:
        """Build the launcher from checked configuration."""
        return cls(config_value["assets"], inst_data=inst_data, **config_value["ray"])

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submit the run as a Ray job."""
        run = context.dagster_run
        resources = {} if _TAG in run.tags else self._resources_of(run)
        if resources:
            run = run.with_tags({**run.tags, _TAG: json.dumps(resources)})
        super().launch_run(LaunchRunContext(run, context.workspace))

    def _resources_of(self, run: dg.DagsterRun) -> dict[str, float]:
        """Return the largest amount of each resource that one of the run's assets needs."""
        needed = [self.assets[name] for name in self._assets_of(run) if name in self.assets]
        amounts = {name: [resources[name] for resources in needed if name in resources] for name in _RESOURCES}
        return {name: max(values) for name, values in amounts.items() if values}

    def _assets_of(self, run: dg.DagsterRun) -> set[str]:
        """Return the names of the assets that a run materialises."""
        plan = self._instance.get_execution_plan_snapshot(dg._check.not_none(run.execution_plan_snapshot_id))
        steps = [step for step in plan.steps if step.key in plan.step_keys_to_execute]
        keys = {output.properties.asset_key for step in steps for output in step.outputs if output.properties}
        return {key.to_user_string() for key in keys if key}
