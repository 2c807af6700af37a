"""What runs reserve on a Ray cluster."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest
from dagster._config import EvaluateValueResult, process_config
from dagster._core.launcher import LaunchRunContext

pytest.importorskip("dagster_ray", reason="the extra cluster is not installed")

from dagster_ray import RayRunLauncher

from gradcamo_assets.defs.ray_launcher import RayLauncher

pytestmark = pytest.mark.cluster

CONFIG = {
    "ray": {"num_cpus": 1, "address": "http://127.0.0.2:8265"},
    "assets": {"first": {"num_cpus": 4, "memory": 10}, "second": {"num_gpus": 0.5, "memory": 20}},
}


@dg.asset
def first() -> None: ...


@dg.asset(deps=[first])
def second() -> None: ...


@dg.asset
def third() -> None: ...


def check_config(config: dict[str, Any]) -> EvaluateValueResult:
    return process_config(RayLauncher.config_type(), config)


@pytest.mark.parametrize(
    ("assets", "tags", "reserved"),
    [
        (["first", "second"], {}, {"num_cpus": 4, "num_gpus": 0.5, "memory": 20}),
        (["second", "third"], {}, {"num_gpus": 0.5, "memory": 20}),
        (["third"], {}, None),
        (["first"], {"dagster-ray/config": '{"num_cpus": 2}'}, {"num_cpus": 2}),
    ],
)
def test_a_run_reserves_the_largest_amounts_of_its_assets(
    assets: list[str], tags: dict[str, str], reserved: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[dg.DagsterRun] = []
    monkeypatch.setattr(RayRunLauncher, "launch_run", lambda self, context: launched.append(context.dagster_run))
    definitions = dg.Definitions(assets=[first, second, third])
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = RayLauncher.from_config_value(None, check_config(CONFIG).value)
        launcher.register_instance(instance)
        keys = frozenset(dg.AssetKey(name) for name in assets)
        run = instance.create_run_for_job(job.get_subset(asset_selection=keys), asset_selection=keys, tags=tags)
        launcher.launch_run(LaunchRunContext(run, None))
    found = launched[0].tags.get("dagster-ray/config")
    assert (json.loads(found) if found else None) == reserved


def test_unknown_resources_are_refused() -> None:
    assert not check_config({**CONFIG, "assets": {"masks": {"gpus": 1}}}).success
