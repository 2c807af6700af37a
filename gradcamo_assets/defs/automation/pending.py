"""Find the plates and partitions that are out of date by comparing versions.

Only the lake's version tables are read, so that the cost does not depend on the size of the plates. One sensor or
schedule requests each kind of work.
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
from gradcamo_assets.plates import PlateState, list_inbox, list_known_plates, plate_states
from gradcamo_assets.plates.failures import Failures, read_failures
from gradcamo_assets.plates.inbox import Depth, FolderSnapshot, plate_names
from gradcamo_assets.plates.staging import ingestion_progress
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables import Lake, lake_table
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion

Partition = tuple[str, int]
"""A plate and a site."""
_STAGES = ("image", "mask", "cell", "crop")
"""Each stage is made from the previous one."""


@dataclass(frozen=True)
class Inbox:
    """The content of the inbox (``list_inbox``), the states of its plates and the failed attempts to ingest them."""

    found: dict[Path, FolderSnapshot | None]
    states: list[PlateState]
    failures: dict[str, Failures]

    def signature(self, state: PlateState) -> str:
        """The signature of a plate as found in the inbox; empty if it could not be computed."""
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
    """Find the state of every plate in the inbox.

    Args:
        before: by plate name, the ``FolderSnapshot.token`` of the previous call and since when it is unchanged.
        depth: how thoroughly plates that are already known are inspected; by default not at all.
        only: name of a single plate to inspect completely; None: all plates.

    Raises:
        PlateError: if the inbox cannot be listed.
    """
    settings = read_settings(home).inbox
    known, failures = list_known_plates(home.plates), read_failures(home.plates)
    # A known plate whose last ingestion failed is inspected like a new one.
    done = {name: signature for name, signature in known.items() if only is None and name not in failures}
    found = list_inbox(home.inbox, settings, done, depth, only=only)
    names = {name for name in plate_names(found).values() if isinstance(name, str)} - done.keys()
    busy = {name: progress for name in names if (progress := ingestion_progress(home.plates, name)) is not None}
    return Inbox(found, plate_states(found, known, failures, before or {}, now, settings, busy), failures)


def partitions_to_process(lake: Lake) -> dict[Partition, str]:
    """Find the plate x site partitions whose masks, cells or crops are out of date, sorted.

    Returns:
        By partition, a digest of the versions of its images and masks. The number of attempts is counted per digest.
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
class ScoringState:
    """Partitions to score, with the version of their crops, and those the champion does not fit, with the reason."""

    todo: dict[Partition, str]
    refused: dict[Partition, str]


def partitions_to_score(lake: Lake, champion: ModelVersion) -> dict[Partition, str]:
    """Find the plate x site partitions whose current crops the champion has not scored, sorted.

    This covers new plates, promotions, rollbacks and new masks. Partitions that have scores but no crops any more are
    included, so that their scores are removed.

    Returns:
        By partition, the version of its crops.
    """
    keys = ["Metadata_Plate", "Metadata_Site"]
    scored = lake.partition_versions("score_versions", model_run=champion.run_id).select(*keys, "made_from", scored="n")
    # Crops without made_from are being written, or their writer was killed.
    crops = lake.partition_versions("crop_versions").drop_nulls("made_from").drop("made_from")
    both = crops.join(scored, on=keys, how="left").sort(keys)
    todo = both.filter(pl.col("made_from").ne_missing(pl.col("version")) & ((pl.col("n") > 0) | (pl.col("scored") > 0)))
    return {(plate, site): version for plate, site, version in todo.select(*keys, "version").iter_rows()}


def scoring_state(lake: Lake, registry: ModelRegistry, champion: ModelVersion) -> ScoringState:
    """Find the partitions to score, and those of plates that the champion does not fit.

    Raises:
        BundleError: if there are partitions to score and the champion's bundle cannot be read.
    """
    todo = partitions_to_score(lake, champion)
    if not todo:
        return ScoringState({}, {})
    config = read_config(registry.fetch(champion))
    waiting = {plate for plate, _ in todo}
    reasons = {}
    for plate in lake.read("plates").filter(pl.col("Metadata_Plate").is_in(waiting)).iter_rows(named=True):
        if reason := config.find_mismatch(plate["channels"], [plate[f"voxel_{axis}_um"] for axis in "zyx"]):
            reasons[plate["Metadata_Plate"]] = reason
    refused = {partition: reasons[partition[0]] for partition in todo if partition[0] in reasons}
    return ScoringState({key: version for key, version in todo.items() if key not in refused}, refused)


def record_refusals(lake: Lake, champion: ModelVersion, refused: Mapping[Partition, str]) -> bool:
    """Update the rows of ``unscored`` of a model version. Returns whether they changed."""
    rows = lake.read("unscored", model_run=champion.run_id).iter_rows(named=True)
    recorded = {(row["Metadata_Plate"], row["Metadata_Site"]): row["reason"] for row in rows}
    if recorded == refused:
        return False
    model = {"model_name": champion.name, "model_version": champion.version, "model_run": champion.run_id}
    new_rows = [
        {"Metadata_Plate": plate, "Metadata_Site": site, **model, "reason": reason}
        for (plate, site), reason in sorted(refused.items())
    ]
    lake.write("unscored", pl.DataFrame(new_rows, schema=lake_table("unscored").schema), model_run=champion.run_id)
    return True


def plates_unknown_to_models(lake: Lake, registry: ModelRegistry) -> list[str]:
    """Find the plates with crops that are not in the data split of any registered version, sorted."""
    used_plates = set()
    for version in registry.versions():
        with suppress(BundleError):  # The plates of a damaged version may be used again.
            wells = chain.from_iterable(read_config(registry.fetch(version)).split.values())
            used_plates |= {well.split("/")[0] for well in wells}
    cropped = lake.partition_versions("crop_versions").filter(pl.col("n") > 0)["Metadata_Plate"].unique()
    return sorted(set(cropped) - used_plates)


def has_classes(lake: Lake, plate: str) -> bool:
    """Whether any crop of a plate has a known treatment class."""
    usable = pl.col("crop_index").is_not_null() & pl.col("treatment_class").is_not_null()
    return not cells_with_crops(lake, plate=plate).filter(usable).head(1).collect().is_empty()
