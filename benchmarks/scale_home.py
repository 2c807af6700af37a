"""A synthetic home of many plates with nothing left to do, written in bulk for ``scale``.

Every table of the lake has one file per key, as before files are merged. Dagster's history has a run of every job for
each plate or plate x site, with its materialisations.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from benchmarks.warehouse import fitted, plate_map
from gradcamo_assets.defs.partitions import plate_site_key
from gradcamo_assets.defs.serve import open_instance
from gradcamo_assets.home import Home
from gradcamo_assets.plates.plate_records import RECORD_ENDING, mark_known
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables import Lake, lake_table
from gradcamo_assets.tables.columns import DOSE_NAMES, KEY_COLUMNS
from gradcamo_assets.tables.delta_table import commit
from gradcamo_assets.tables.schema_scores import REGIONS
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion
from gradcamo_assets.training.promotion import record_champion, record_versions

SITES = 9
WELLS = plate_map().with_columns(treatment_class=pl.format("{}_{}", "Metadata_Compound", "Metadata_Dose_Rank"))
_CLASSES = WELLS["treatment_class"].unique(maintain_order=True).to_list()
_CHANNELS, _VOXEL, _SHAPE = ["DNA", "ER", "RNA", "AGP", "Mito"], [1.0, 0.5, 0.5], [21, 128, 128]
_DIMENSIONS = 64
_NOT_LEARNED = 4
"""Plates ingested after the training: one too few for the next."""
_SETTINGS = f"[retraining]\nafter_plates = {_NOT_LEARNED + 1}\n"
_ROWS_AT_ONCE = 500_000
_STAGES = ("image", "mask", "cell", "crop")
_NOW = datetime(2026, 1, 1)
# The assets of each job, and whether it is run for a plate, or for each of its sites.
_JOBS = {
    "ingest_plates": (("plate_images",), False),
    "process_fields": (("masks", "cells", "crops"), True),
    "rescore": (("embeddings", "gradcamo_scores"), True),
    "audit_plates": (("audit", "channel_correlation"), False),
    "report_plates": (("qc_report",), False),
}
_WHOLE = ("data_split", "trained_model", "profiles", "umap", "replicability", "confounder_audit", "model_comparison")


def plate_names(plates: int) -> list[str]:
    """Return names with a common prefix, as in a real screen."""
    return [f"2026-HepG2-screen-{number:04d}" for number in range(plates)]


def make_home(root: Path, plates: int, cells: int) -> ModelVersion:
    """Write a home with ``cells`` cells per plate x site, a champion, and a challenger without scores.

    Returns:
        The challenger.
    """
    home, names = Home(root).create(), plate_names(plates)
    home.settings_file.write_text(_SETTINGS)
    lake, registry = Lake(home.lake), ModelRegistry(home.mlflow)
    champion = _register(registry, names)
    registry.promote(champion.version)
    record_champion(lake, registry, by="benchmark")
    challenger = _register(registry, names)
    record_versions(lake, registry)
    _add_plates(home, names)
    _add_tables(lake, names, champion)
    for some in _portions(names, cells):
        for site in range(1, SITES + 1):
            _add_site(lake, some, site, cells, champion)
    _lengthen_logs(lake)
    _add_history(home, names)
    return challenger


def rescore(lake: Lake, plate: str, site: int, champion: ModelVersion) -> None:
    """Write the scores of one partition again, as the asset does."""
    keys: dict[str, Any] = {"plate": plate, "site": site, "model_run": champion.run_id}
    made_from = lake.partition_versions("crop_versions", plate=plate, site=site)["version"].item()
    scores = lake.read("scores", **keys).with_columns(scored_at=pl.col("scored_at") + timedelta(days=1))
    lake.write("embeddings", lake.read("embeddings", **keys), **keys)
    lake.write("scores", scores, **keys)
    lake.record_version("score_versions", digest([made_from, champion.run_id]), made_from, len(scores), **keys)


def _register(registry: ModelRegistry, plates: list[str]) -> ModelVersion:
    """Register a tiny encoder whose training set is all wells but those of the newest plates."""
    from torch import nn

    from gradcamo_assets.networks.bundle import BundleConfig

    model = nn.Sequential(
        nn.Conv3d(len(_CHANNELS), 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, len(_CLASSES))
    )
    wells = [f"{plate}/{well}" for plate, well in product(plates[:-_NOT_LEARNED], WELLS["Metadata_Well"])]
    config = BundleConfig("tiny", "1", _CLASSES, _CHANNELS, _SHAPE, _VOXEL, split={"train": wells})
    return registry.register(model, config)


def _add_plates(home: Home, plates: list[str]) -> None:
    """Write the records of plates, the list of known plates, and their folders in the inbox."""
    fields = [
        {"well": well, "site": site, "path": f"{well[0]}/{well[1:]}/{site}", "reason": None, "image_version": "0" * 16}
        for well, site in product(WELLS["Metadata_Well"], range(1, SITES + 1))
    ]
    record = {
        "fields": fields, "channels": _CHANNELS, "voxel_size": _VOXEL, "camera_offset": 0.0, "by_reference": True,
        "statistics": {channel: {"center": 100.0, "scale": 10.0} for channel in _CHANNELS}, "ngff_version": "0.4",
    }  # fmt: skip
    text = json.dumps({"name": "PLATE", "source": "inbox/PLATE", **record}, indent=2)
    for plate in plates:
        (home.inbox / plate).mkdir()
        (home.plates / f"{plate}{RECORD_ENDING}").write_text(text.replace("PLATE", plate))
        mark_known(home.plates, plate, digest(plate))


def add(lake: Lake, table: str, frame: pl.DataFrame) -> None:
    """Add rows with new keys in one commit, one file per key, with the log entries that the lake makes."""
    import pyarrow.parquet as pq
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

    description = lake_table(table)
    keys = [KEY_COLUMNS[key] for key in description.keys]
    folders = [KEY_COLUMNS[key] for key in description.partitioned_by]
    frame = frame.sort(keys, maintain_order=True)
    # Columns with statistics have one value per key.
    firsts = frame.group_by(keys, maintain_order=True).agg(
        pl.len(), pl.col(description.statistics_columns).exclude(keys).first()
    )
    rows = frame.drop(folders).to_arrow()

    def write(first: dict[str, Any], start: int) -> AddAction:
        at = {name: str(first[name]) for name in folders}
        path = "/".join([*(f"{name}={value}" for name, value in at.items()), f"{uuid.uuid4()}.parquet"])
        file = lake.root / table / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.slice(start, first["len"]), file)
        statistics = {name: first[name] for name in description.statistics_columns}
        counts = json.dumps({"numRecords": first["len"], "minValues": statistics, "maxValues": statistics})
        return AddAction(path, file.stat().st_size, at, int(time.time() * 1000), True, counts)

    def append(delta: DeltaTable) -> None:
        starts = firsts["len"].cum_sum() - firsts["len"]
        with ThreadPoolExecutor() as pool:
            actions = list(pool.map(write, firsts.iter_rows(named=True), starts))
        delta.create_write_transaction(actions, "append", delta.schema(), folders or None)

    # The public methods would need one commit per key.
    commit(lake.root, description, append)


def _lengthen_logs(lake: Lake) -> None:
    """Give each table as many commits as files, as if each key had been written alone; added commits are empty."""
    from deltalake import DeltaTable

    commit = json.dumps({"commitInfo": {"timestamp": int(time.time() * 1000), "operation": "WRITE"}})
    for folder in filter(Path.is_dir, lake.root.iterdir()):
        last, files = lake.delta_version(folder.name), len(lake.snapshot(folder.name).files)
        # Hard links to one empty commit save disk space.
        empty = folder / ".commit.json"
        empty.write_text(commit)
        for number in range(last + 1, files):
            os.link(empty, folder / "_delta_log" / f"{number:020}.json")
        # Delta makes a checkpoint every hundred commits.
        DeltaTable(folder, version=max(last, files - 50)).create_checkpoint()


def _portions(plates: list[str], cells: int) -> Iterator[list[str]]:
    """Split plates into groups that fit into memory."""
    size = max(1, _ROWS_AT_ONCE // max(cells, len(WELLS)))
    yield from (plates[start : start + size] for start in range(0, len(plates), size))


def _complete(table: str, known: pl.DataFrame, **columns: Any) -> pl.DataFrame:
    """Return all columns of a table: those known, those given, and random numbers in the others."""
    constant = [pl.lit(value).alias(name) for name, value in columns.items()]
    return fitted(lake_table(table), known.with_columns(constant), np.random.default_rng(0))


def _each(plates: Sequence[str], rows: pl.DataFrame) -> pl.DataFrame:
    """Repeat the same rows for every plate."""
    return pl.DataFrame({"Metadata_Plate": plates}).join(rows, how="cross")


def _model(version: ModelVersion) -> dict[str, Any]:
    return {"model_name": version.name, "model_version": version.version, "model_run": version.run_id}


def _versions(stage: str, plates: Iterable[str], sites: Iterable[int], n: int, champion: ModelVersion) -> pl.DataFrame:
    """Return the versions of a stage, each made from the version of the stage before."""
    source = dict(zip(_STAGES[1:], _STAGES, strict=False)) | {"score": "crop"}
    rows = [
        {
            "Metadata_Plate": plate, "Metadata_Site": site, "model_run": champion.run_id, "n": n,
            "version": digest([stage, plate, site]),
            "made_from": digest([source[stage], plate, site]) if stage in source else None,
        }
        for plate, site in product(plates, sites)
    ]  # fmt: skip
    table = lake_table(f"{stage}_versions")
    return pl.DataFrame(rows, schema_overrides={"made_from": pl.String}).select(
        pl.col(name).cast(dtype) for name, dtype in table.schema.items()
    )


def _add_tables(lake: Lake, plates: list[str], champion: ModelVersion) -> None:
    """Write the tables with rows by plate, or by model alone."""
    model, names = _model(champion), pl.DataFrame({"Metadata_Plate": plates})
    voxels = {f"voxel_{axis}_um": um for axis, um in zip("zyx", _VOXEL, strict=True)}
    ingested = names.with_columns(ingested_at=_NOW + pl.duration(days=pl.int_range(pl.len())), channels=_CHANNELS)
    add(lake, "plates", _complete("plates", ingested, **voxels))
    add(lake, "wells", _complete("wells", _each(plates, WELLS)))
    stains = pl.DataFrame({"channel_a": _CHANNELS}).join(pl.DataFrame({"channel_b": _CHANNELS}), how="cross")
    stains = stains.filter(pl.col("channel_a") < pl.col("channel_b"))
    add(lake, "channel_correlation", _complete("channel_correlation", _each(plates, stains)))
    vectors = pl.Series("profile", np.random.default_rng(0).random((len(plates) * len(WELLS), _DIMENSIONS), np.float32))
    add(lake, "profiles", _complete("profiles", _each(plates, WELLS).with_columns(vectors), population="all", **model))
    for table in ("audit", "profile", "umap", "confounder"):
        add(lake, f"{table}_versions", _versions(table, plates, [0], len(WELLS), champion))
    doses = WELLS.select(DOSE_NAMES).unique(maintain_order=True)
    lake.write("replicability", _complete("replicability", doses, population="all", **model), model_run=champion.run_id)
    probes = pl.DataFrame({"target": ["treatment", "dose", "site", "well_row", "well_column"]})
    probed = _complete("confounder_audit", _each(plates, probes), representation="embedding", population="all", **model)
    lake.write("confounder_audit", probed, model_run=champion.run_id)


def _add_site(lake: Lake, plates: list[str], site: int, n: int, champion: ModelVersion) -> None:
    """Write the tables with rows by plate x site, for one site of some plates."""
    rng = np.random.default_rng(site)
    fields = _each(plates, WELLS.select("Metadata_Well")).with_columns(Metadata_Site=site, path=pl.lit("A/1/0"))
    lists = {name: None for name, dtype in lake_table("fields").schema.items() if isinstance(dtype, pl.List)}
    add(lake, "fields", _complete("fields", fields, image_version="i", **lists))
    for table in ("masks", "field_verdicts", "field_crops"):
        add(lake, table, _complete(table, fields, image_version="i", mask_version="m", crop_version="c"))
    wells = np.sort(rng.integers(0, len(WELLS), (len(plates), n)), axis=1)
    cells = WELLS[wells.ravel()].with_columns(Metadata_Plate=pl.Series(np.repeat(plates, n)), Metadata_Site=site)
    cells = cells.with_columns(
        label=pl.int_range(1, pl.len() + 1).over("Metadata_Plate", "Metadata_Well"),
        mask_version=pl.format("m-{}-{}", "Metadata_Plate", "Metadata_Site"),
        crop_version=pl.format("c-{}-{}", "Metadata_Plate", "Metadata_Site"),
    ).with_columns(
        Metadata_CellID=pl.format("{}/{}/{}/{}", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "label"),
        crop_index=pl.col("label") - 1,
    )
    add(lake, "cells", _complete("cells", cells.drop("crop_version", "crop_index")))
    add(lake, "crops", _complete("crops", cells.select(name for name in lake_table("crops").schema if name in cells)))
    scores = _scores(rng, cells, champion)
    add(lake, "scores", scores)
    vectors = pl.Series("embedding", rng.random((len(cells), _DIMENSIONS), np.float32))
    keys = [name for name in lake_table("embeddings").schema if name in scores]
    add(lake, "embeddings", _complete("embeddings", scores.select(keys).with_columns(vectors)))
    if site == 1:
        add(
            lake, "umap", _complete("umap", scores.select(name for name in lake_table("umap").schema if name in scores))
        )
        add(lake, "audit", _complete("audit", scores.group_by("Metadata_Plate").head(32)))
    for stage in (*_STAGES, "score"):
        add(lake, f"{stage}_versions", _versions(stage, plates, [site], n, champion))


def _scores(rng: np.random.Generator, cells: pl.DataFrame, champion: ModelVersion) -> pl.DataFrame:
    """Return scores that satisfy the constraints of the table: shares add up to one, evidence to the logit."""
    n = len(cells)
    shares, evidence = rng.dirichlet([2, 1, 2], n), rng.normal(size=(n, 3))
    known = cells.with_columns(
        true_class="treatment_class",
        predicted_class=cells["treatment_class"].shuffle(seed=1),
        gradcamo=shares[:, 0],
        gradcamo_adjusted=(shares[:, 0] - 0.1) / 0.9,
        neighbour_share=shares[:, 1],
        background_share=shares[:, 2],
        looks_at=pl.Series(np.array(REGIONS)[rng.integers(0, len(REGIONS), n)]),
        on_target=shares[:, 0] > 0.5,
        logit=evidence.sum(axis=1) + 0.25,
        **{f"evidence_{region}": evidence[:, index] for index, region in enumerate(REGIONS[:3])},
    )
    constant = {"gradcamo_max": 1.0, "mask_fraction": 0.1, "logit_bias": 0.25, "split": "unseen", "scored_at": _NOW}
    return _complete("scores", known, run_id=digest("run"), **constant, **_model(champion))


def _add_history(home: Home, plates: list[str]) -> None:
    """Write Dagster's history: partitions, a run of every job, and the materialisations."""
    with open_instance(home) as instance:
        instance.add_dynamic_partitions("plates", plates)
        instance.add_dynamic_partitions("sites", [str(site) for site in range(1, SITES + 1)])
        for asset in _WHOLE:
            instance.report_runless_asset_event(dg.AssetMaterialization(asset))
        for job, (assets, by_site) in _JOBS.items():
            keys = [plate_site_key(*key) for key in product(plates, range(1, SITES + 1))] if by_site else plates
            runs = add_runs(instance, job, keys, dg.DagsterRunStatus.SUCCESS)
            for asset in assets:
                _add_materialisations(instance, asset, job, dict(zip(runs, keys, strict=True)))


def add_runs(
    instance: dg.DagsterInstance, job: str, partitions: Sequence[str], status: dg.DagsterRunStatus
) -> list[str]:
    """Add runs of a job, one per partition. Returns their identifiers."""
    from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
    from dagster_shared.serdes import serialize_value

    runs = [
        dg.DagsterRun(
            job, str(uuid.uuid4()), status=status,
            tags={"dagster/partition": str(key), "gradcamo/made_from": digest([job, str(key)])},
        )
        for key in partitions
    ]  # fmt: skip
    times = {"start_time": time.time(), "end_time": time.time()}
    rows = [
        {"run_id": run.run_id, "pipeline_name": job, "status": status.value, "run_body": serialize_value(run), **times}
        for run in runs
    ]
    tags = [
        {"run_id": run.run_id, "key": key, "value": value}
        for run in runs
        for key, value in run.tags_for_storage().items()
    ]
    storage: Any = instance.run_storage
    with storage.connect() as connection:
        connection.execute(RunsTable.insert(), rows)
        connection.execute(RunTagsTable.insert(), tags)
    return [run.run_id for run in runs]


def _add_materialisations(instance: dg.DagsterInstance, asset: str, job: str, runs: dict[str, str]) -> None:
    """Add materialisations of an asset in one transaction. ``runs`` maps run identifiers to partitions."""
    from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    storage: Any = instance.event_log_storage
    events = [
        dg.EventLogEntry(
            error_info=None, level="debug", user_message="", run_id=run, timestamp=time.time(), job_name=job,
            step_key=asset,
            dagster_event=DagsterEvent(
                DagsterEventType.ASSET_MATERIALIZATION.value, job, step_key=asset,
                event_specific_data=StepMaterializationData(
                    dg.AssetMaterialization(
                        asset, partition=partition, tags={"dagster/data_version": digest([asset, str(partition)])}
                    )
                ),
            ),
        )
        for run, partition in runs.items()
    ]  # fmt: skip
    with storage.index_transaction() as connection:
        last = connection.exec_driver_sql("SELECT coalesce(max(id), 0) FROM event_logs").scalar()
        ids = range(last + 1, last + 1 + len(events))
        rows = [{"id": number, **storage._event_to_row(event)} for number, event in zip(ids, events, strict=True)]
        connection.execute(SqlEventLogStorageTable.insert(), rows)
        storage._store_asset_event_tags(connection, events, ids)
        storage._store_asset_event(connection, events[-1], ids[-1])
