"""What there is against what there should be: versions compared. Each question is asked by one mechanism only.

The answers come from the lake's version tables, so that they cost the same whatever the plates hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, pairwise
from pathlib import Path

import polars as pl

from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.settings import read_settings
from gradcamo_assets.errors import BundleError
from gradcamo_assets.home import Home
from gradcamo_assets.networks.bundle import read_config
from gradcamo_assets.plates import PlateState, known_plates, list_inbox, plate_states
from gradcamo_assets.plates.failures import Failures, read_failures
from gradcamo_assets.plates.inbox import Depth, Look, plate_names
from gradcamo_assets.plates.staging import ingesting
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables import Lake, lake_table
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion

Partition = tuple[str, int]
"""A plate and a site."""
_STAGES = ("image", "mask", "cell", "crop")
"""Each is made from the one before."""


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
    depth: Depth = "new",
    only: str | None = None,
) -> Inbox:
    """The state of every plate in the inbox. Known plates cost nothing by themselves, but for what ``depth`` says.

    Args:
        before: ``Look.token`` at the previous look, and since when it has been that, by name.
        depth: how closely known plates are looked at.
        only: a plate's name, to look at all of it and at no other.

    Raises:
        PlateError: where the inbox cannot be listed.
    """
    settings = read_settings(home).inbox
    known, failures = known_plates(home.plates), read_failures(home.plates)
    # A plate that is known, but whose last attempt did not come to its end, is looked at like a new one.
    done = {name: signature for name, signature in known.items() if only is None and name not in failures}
    found = list_inbox(home.inbox, settings, done, depth, only=only)
    names = {name for name in plate_names(found).values() if isinstance(name, str)} - done.keys()
    busy = {name: progress for name in names if (progress := ingesting(home.plates, name)) is not None}
    return Inbox(found, plate_states(found, known, failures, before or {}, now, settings, busy), failures)


def partitions_to_process(lake: Lake) -> dict[Partition, str]:
    """Plate x site partitions whose masks, cells or crops are not made from what stands before them now, sorted.

    To each a digest of its images and masks: with others, attempts begin anew.
    """
    keys = ["Metadata_Plate", "Metadata_Site"]
    chained = lake.partition_versions("image_versions").filter(pl.col("n") > 0).select(*keys, image="version")
    for stage in _STAGES[1:]:
        made = lake.partition_versions(f"{stage}_versions").drop_nulls("made_from").drop("n")
        made = made.rename({"version": stage, "made_from": f"{stage}_from"})
        chained = chained.join(made, on=keys, how="left")
    links = (pl.col(f"{stage}_from").eq_missing(pl.col(before)) for before, stage in pairwise(_STAGES))
    waiting = chained.filter(~pl.all_horizontal(links)).sort(keys)
    rows = waiting.select(*keys, "image", "mask").iter_rows()
    return {(plate, site): digest(made_from) for plate, site, *made_from in rows}


@dataclass(frozen=True)
class Scoring:
    """What the champion has yet to score, by the version of the crops, and what it does not fit, with the reason."""

    todo: dict[Partition, str]
    refused: dict[Partition, str]


def partitions_to_score(lake: Lake, champion: ModelVersion) -> dict[Partition, str]:
    """Plate x site partitions whose crops are others than those the champion has scored, with their version, sorted.

    New plates, promotions, rollbacks and new masks are all the same case. Where no cell is kept any more, the scores
    that are still there have to go.
    """
    keys = ["Metadata_Plate", "Metadata_Site"]
    scored = lake.partition_versions("score_versions", model_run=champion.run_id).select(*keys, "made_from", scored="n")
    # Crops that are made from nothing are being written, or their writer was killed.
    crops = lake.partition_versions("crop_versions").drop_nulls("made_from").drop("made_from")
    both = crops.join(scored, on=keys, how="left").sort(keys)
    todo = both.filter(pl.col("made_from").ne_missing(pl.col("version")) & ((pl.col("n") > 0) | (pl.col("scored") > 0)))
    return {(plate, site): version for plate, site, version in todo.select(*keys, "version").iter_rows()}


def scoring_state(lake: Lake, registry: ModelRegistry, champion: ModelVersion) -> Scoring:
    """What is to be scored, less the plates that the champion's bundle does not fit.

    Raises:
        BundleError: if something waits and the champion's bundle cannot be read.
    """
    todo = partitions_to_score(lake, champion)
    if not todo:
        return Scoring({}, {})
    config = read_config(registry.fetch(champion))
    waiting = {plate for plate, _ in todo}
    reasons = {}
    for plate in lake.read("plates").filter(pl.col("Metadata_Plate").is_in(waiting)).iter_rows(named=True):
        if reason := config.misfit(plate["channels"], [plate[f"voxel_{axis}_um"] for axis in "zyx"]):
            reasons[plate["Metadata_Plate"]] = reason
    refused = {partition: reasons[partition[0]] for partition in todo if partition[0] in reasons}
    return Scoring({key: version for key, version in todo.items() if key not in refused}, refused)


def record_refusals(lake: Lake, champion: ModelVersion, refused: Mapping[Partition, str]) -> bool:
    """Keep the ``unscored`` table equal to what this version leaves unscored. Whether anything changed."""
    known = lake.read("unscored", model_run=champion.run_id)
    there = {(row["Metadata_Plate"], row["Metadata_Site"]): row["reason"] for row in known.iter_rows(named=True)}
    if there == refused:
        return False
    model = {"model_name": champion.name, "model_version": champion.version, "model_run": champion.run_id}
    rows = [
        {"Metadata_Plate": plate, "Metadata_Site": site, **model, "reason": reason}
        for (plate, site), reason in sorted(refused.items())
    ]
    lake.write("unscored", pl.DataFrame(rows, schema=lake_table("unscored").schema), model_run=champion.run_id)
    return True


def unlearned_plates(lake: Lake, registry: ModelRegistry) -> list[str]:
    """Plates with crops of which no registered version was given a well, to learn or to test, sorted."""
    seen = set()
    for version in registry.versions():
        with suppress(BundleError):  # Whatever a damaged version was trained on, it can be trained on again.
            wells = chain.from_iterable(read_config(registry.fetch(version)).split.values())
            seen |= {well.split("/")[0] for well in wells}
    cropped = lake.partition_versions("crop_versions").filter(pl.col("n") > 0)["Metadata_Plate"].unique()
    return sorted(set(cropped) - seen)


def has_classes(lake: Lake, plate: str) -> bool:
    """Whether any crop of a plate is of a known treatment."""
    usable = pl.col("crop_index").is_not_null() & pl.col("treatment_class").is_not_null()
    return not cells_with_crops(lake, plate=plate).filter(usable).head(1).collect().is_empty()
