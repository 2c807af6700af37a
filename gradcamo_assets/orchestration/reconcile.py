"""What there is against what there should be, read from the stores. Each question is asked by one mechanism only.

The decisions are pure functions of the floors below (``plate_states``, ``partitions_to_score``); here they are fed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from gradcamo_assets.common import Home
from gradcamo_assets.common.errors import BundleError
from gradcamo_assets.learning.registry import ModelRegistry, ModelVersion
from gradcamo_assets.networks.bundle import read_config
from gradcamo_assets.orchestration.settings import read_settings
from gradcamo_assets.plates import PlateState, known_plates, list_inbox, plate_states
from gradcamo_assets.plates.failures import Failures, read_failures
from gradcamo_assets.plates.inbox import Look
from gradcamo_assets.scoring.reconcile import Partition, partitions_to_score
from gradcamo_assets.warehouse import Lake, lake_table


@dataclass(frozen=True)
class Inbox:
    """What lies in the inbox (``list_inbox``), what is to become of it, and the attempts that failed."""

    found: dict[Path, Look | None]
    states: list[PlateState]
    failures: dict[str, Failures]

    def signature(self, state: PlateState) -> str:
        """Of the plate as it was found; empty where there is none."""
        look = self.found[state.path]
        return look.signature if look else ""


def read_inbox(
    home: Home,
    now: datetime,
    before: Mapping[str, tuple[str, float]] | None = None,
    *,
    full: bool = False,
    only: str | None = None,
) -> Inbox:
    """The state of every plate in the inbox.

    Args:
        before: ``Look.token`` at the previous look, and since when it has been that, by name.
        full: look at every file of known plates too.
        only: a plate's name, to look at no other.

    Raises:
        PlateError: where the inbox cannot be listed.
    """
    settings = read_settings(home).inbox
    known, failures = known_plates(home.plates), read_failures(home.plates)
    found = list_inbox(home.inbox, {} if full else known, settings, only=only)
    return Inbox(found, plate_states(found, known, failures, before or {}, now, settings), failures)


def partitions_without_crops(lake: Lake, failed: Mapping[Partition, float] | None = None) -> dict[Partition, datetime]:
    """Plate x site partitions of ingested plates whose cells were not tabulated and cropped since, sorted.

    To each, when its plate was ingested (UTC): a plate that was taken in again gets new masks and crops.

    Args:
        failed: when the last run failed (seconds since 1970), by partition: it may have tabulated its cells before.
    """
    failed = failed or {}
    times = lake.scan("plates").select("Metadata_Plate", "ingested_at").collect().iter_rows()
    ingested = {plate: time.replace(tzinfo=UTC) for plate, time in times}
    fields = lake.scan("fields").select("Metadata_Plate", "Metadata_Site", "qc_flag").collect()
    # A field that failed at a later stage was readable once, and is tried again with its partition.
    readable = fields.filter(pl.col("qc_flag").is_null() | pl.col("qc_flag").str.starts_with("not "))
    done = {(key.plate, key.site): (lake.root / key.path).stat().st_mtime for key in lake.keys("cells")}
    there = readable.select("Metadata_Plate", "Metadata_Site").unique().iter_rows()
    return {
        (plate, site): ingested[plate]
        for plate, site in sorted(there)
        if plate in ingested
        and done.get((plate, site), 0) < max(ingested[plate].timestamp(), failed.get((plate, site), 0))
    }


def crop_versions(lake: Lake, table: str, **keys: object) -> dict[Partition, frozenset[str]]:
    """The crop versions that stand in a table, by partition; partitions without any are there with an empty set."""
    found = {}
    for key in lake.keys(table, **keys):
        if key.plate is not None and key.site is not None:
            path = lake.root / key.path
            stat = path.stat()
            found[key.plate, key.site] = _versions_in(path, stat.st_mtime_ns, stat.st_ino)
    return found


@lru_cache(maxsize=1 << 16)
def _versions_in(path: Path, mtime: int, inode: int) -> frozenset[str]:
    """Of one file, read once: files of the lake are replaced, never edited."""
    return frozenset(pl.read_parquet(path, columns=["crop_version"])["crop_version"].drop_nulls().unique())


@dataclass(frozen=True)
class Scoring:
    """What the champion has yet to score, and what it does not fit, with the reason."""

    todo: list[Partition]
    refused: dict[Partition, str]
    crops: dict[Partition, frozenset[str]]


def scoring_state(home: Home, lake: Lake, registry: ModelRegistry, champion: ModelVersion) -> Scoring:
    """Compare the crops there are with what the champion has scored, and its bundle with the plates.

    Raises:
        BundleError: if the champion's bundle cannot be read.
    """
    config = read_config(registry.fetch(champion))
    crops = crop_versions(lake, "cells")
    scored = crop_versions(lake, "scores", model_name=champion.name, model_version=champion.version)
    plates = {row["Metadata_Plate"]: row for row in lake.read("plates").iter_rows(named=True)}
    refused: dict[Partition, str] = {}
    for partition in crops:
        plate = plates.get(partition[0])
        if plate is None:
            continue
        voxels = [plate[f"voxel_{axis}_um"] for axis in "zyx"]
        reason = config.misfit(plate["channels"], voxels)
        if reason:
            refused[partition] = reason
    return Scoring(partitions_to_score(crops, scored, refused), refused, crops)


def record_refusals(lake: Lake, champion: ModelVersion, refused: dict[Partition, str]) -> bool:
    """Keep the ``unscored`` table equal to what this version leaves unscored. Whether anything changed."""
    keys: dict[str, Any] = {"model_name": champion.name, "model_version": champion.version}
    known = {
        (row["Metadata_Plate"], row["Metadata_Site"]): row["reason"]
        for row in lake.read("unscored", **keys).iter_rows(named=True)
    }
    for (plate, site), reason in refused.items():
        if known.get((plate, site)) != reason:
            row = {"Metadata_Plate": plate, "Metadata_Site": site, **keys, "reason": reason}
            frame = pl.DataFrame([row], schema=lake_table("unscored").polars)
            lake.write("unscored", frame, plate=plate, site=site, **keys)
    for plate, site in known.keys() - refused.keys():
        lake.drop("unscored", plate=plate, site=site, **keys)
    return known != refused


def unlearned_plates(lake: Lake, registry: ModelRegistry) -> list[str]:
    """Plates with crops of known treatment of which no registered version was given a well, to learn or to test."""
    seen = set()
    for version in registry.versions():
        with suppress(BundleError):  # Whatever a damaged version was trained on, it can be trained on again.
            wells = chain.from_iterable(read_config(registry.fetch(version)).split.values())
            seen |= {well.split("/")[0] for well in wells}
    usable = pl.col("crop_index").is_not_null() & pl.col("treatment_class").is_not_null()
    plates = lake.scan("cells").filter(usable).select("Metadata_Plate").unique().collect().to_series()
    return sorted(set(plates) - seen)
