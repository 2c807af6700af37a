"""One process that brings a home up to date: it runs what the sensors request and what a user launches, and then ends.

If it is killed, the next process repeats runs that a user launched, and reports, which are requested once. All other
work must be found by the sensors again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import EventLogEntry

from gradcamo_assets.defs.automation.inbox_automation import inbox_sensor
from gradcamo_assets.defs.automation.jobs_and_sensors import champion_model_sensor, publication_sensor, report_sensor
from gradcamo_assets.defs.build import build_definitions
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.prune import plan_unused
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.run_jobs import end_killed_runs, run_job
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.plates.failures import forget_failures, read_failures
from gradcamo_assets.report import png
from gradcamo_assets.report.style import new_figure
from gradcamo_assets.storage import read_json, write_json
from gradcamo_assets_tests.two_plates import NAMES

BETWEEN = "between steps"
PRUNE = "prune"
STEPS = (
    "plate_images", "masks", "cells", "crops", "scores_and_embeddings", "audit", "channel_correlation", "qc_database",
    "model_comparison", "profiles", "umap", "replicability", "confounder_audit", "qc_report", "merge_and_vacuum",
)  # fmt: skip
STAGES = (*STEPS, PRUNE, BETWEEN)
PRELOADED = [
    "gradcamo_assets.definitions", "cellpose.models", "dagster", "deltalake", "duckdb", "matplotlib.figure", "mlflow",
    "openvino", "polars", "scipy.ndimage", "sklearn", "torch", "zarr", __name__,
]  # fmt: skip
"""Modules that take seconds to import; a process is a fork of one that has imported them and done nothing else.

Scores computed before and after the import of Cellpose differ in their last digits, by which audits rank voxels. All
processes compute alike if they have imported it from the start.
"""

_ONE_PIXEL = png.to_png(new_figure(0.1, 0.1), width_px=1)
_SENSORS = (inbox_sensor, champion_model_sensor, publication_sensor, report_sensor)
_AFTER_SCORING: list[list[list[str | None]]] = [
    # What automation conditions request once scores have changed.
    [*(["audit_plates", plate] for plate in NAMES), ["refresh_qc", None]],
    [["tidy_lake", None]],
    [[PRUNE, None]],
]


def write_agenda(file: Path, *launched: list[str | None]) -> None:
    """Begin a round: runs that a user launches, then what is out of date. The cursors of sensors remain."""
    cursors = (read_json(file) or {}).get("cursors", {})
    write_json(file, {"cursors": cursors, "runs": launched, "later": _AFTER_SCORING})


def bring_up_to_date(root: Path, agenda_file: Path, messages: Connection) -> None:
    """Work until nothing is left to do. Every stage that begins is sent as a message.

    Raises:
        GradcamoError: if a run fails.
    """
    os.setsid()
    say: Callable[[str], None] = lambda stage: messages.send_bytes(stage.encode())  # noqa: E731
    say(BETWEEN)
    # Drawing takes half of a round, and is no moment of its own for a kill.
    png.to_png = lambda *_arguments, **_options: _ONE_PIXEL
    platform, instance = Platform(root=str(root)), open_instance(Home(root))
    definitions = build_definitions(platform)
    _announce_steps(instance, say)
    end_killed_runs(instance)
    agenda: dict[str, Any] = read_json(agenda_file)
    while True:
        if not agenda["runs"]:
            found = _tick(platform, instance, definitions, agenda["cursors"])
            agenda["runs"] = [run for run in found if run[0] == "report_plates"]
            for run in found:
                if run not in agenda["runs"]:
                    _run(platform, instance, definitions, say, *run)
            if not found and agenda["later"]:
                agenda["runs"] = agenda["later"].pop(0)
            write_json(agenda_file, agenda)
            if not found and not agenda["runs"]:
                return
        while agenda["runs"]:
            _run(platform, instance, definitions, say, *agenda["runs"][0])
            agenda["runs"].pop(0)
            write_json(agenda_file, agenda)


def _run(
    platform: Platform, instance: dg.DagsterInstance, definitions: dg.Definitions, say: Callable[[str], None],
    job: str, partition: str | None, *only: str,
) -> None:  # fmt: skip
    if job == PRUNE:
        say(PRUNE)
        plan_unused(platform.home, platform.lake, platform.registry, instance).execute()
        say(BETWEEN)
    else:
        plate, _, site = (partition or "").partition("|")
        run_job(definitions, instance, job, plate_site_key(plate, int(site)) if site else partition, only)


def _tick(
    platform: Platform, instance: dg.DagsterInstance, definitions: dg.Definitions, cursors: dict[str, str | None]
) -> list[list[Any]]:
    """Evaluate the sensors once and update their cursors. Returns job, partition and assets of each request."""
    requests = []
    # Instead of waiting ten minutes after a failure: ``gradcamo inbox --retry``, and no earlier publication.
    for plate in read_failures(platform.home.plates):
        forget_failures(platform.home.plates, plate)
    cursors[publication_sensor.name] = None
    for sensor in _SENSORS:
        with dg.build_sensor_context(
            instance=instance, cursor=cursors.get(sensor.name), resources={"platform": platform},
            definitions=definitions,
        ) as context:  # fmt: skip
            result = sensor(context)
        if not isinstance(result, dg.SensorResult):
            continue
        for added in result.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions(added.partitions_def_name, list(added.partition_keys))
        for event in result.asset_events:
            instance.report_runless_asset_event(event)  # type: ignore[arg-type]
        cursors[sensor.name] = result.cursor
        for request in result.run_requests or []:
            only = [key.to_user_string() for key in request.asset_selection or []]
            partition = request.partition_key and str(request.partition_key)
            requests.append([request.job_name or sensor.job_name, partition, *only])
    return requests


def _announce_steps(instance: dg.DagsterInstance, say: Callable[[str], None]) -> None:
    """Say the name of each step when it starts."""
    handle = instance.handle_new_event

    def announce(entry: EventLogEntry, **options: Any) -> None:
        event = entry.dagster_event
        if event is not None and event.is_step_start:
            say(str(event.step_key))
        handle(entry, **options)
        if event is not None and (event.is_step_success or event.is_step_failure):
            say(BETWEEN)

    instance.handle_new_event = announce  # type: ignore[method-assign]
