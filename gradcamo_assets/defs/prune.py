"""Delete data on request: the pixels of a plate's crops, a version's scores, a whole plate, or unused results.

No other module deletes data. Each function returns a plan that can be shown before it is executed. Plans never include
the inbox, nor rows of other plates or versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from gradcamo_assets.cells.crop_store import PIXELS
from gradcamo_assets.defs.automation.run_requests import UNFINISHED_STATUSES, partitions_in_progress
from gradcamo_assets.defs.field_results import FIELD
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.names import check_plate_name
from gradcamo_assets.plates import list_inbox, list_known_plates
from gradcamo_assets.plates.plate_records import (
    PLATE_FILE_ENDINGS,
    known_markers,
    plate_folder,
    plate_folders,
    read_plate_record,
)
from gradcamo_assets.plates.staging import Staging
from gradcamo_assets.storage import exists, file_sizes, is_in_bucket, list_scratch, list_visible, read_json, remove
from gradcamo_assets.tables import LAKE_TABLES, Lake
from gradcamo_assets.tables.schema import tables_keyed_by
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry

Keys = Mapping[str, Any]
_FOLDERS_WITH_SCRATCH = (
    ".", "plates", "plates/failures", "masks/*/*", "crops/*/*", "crops/*/*/*", "fitted/*", "fitted/*/sphering/*",
    "exports/*", "reports", "reports/*", "pictures/screen/*", "pictures/plates/*/*", "unfinished", "mlflow/bundles/*",
)  # fmt: skip
"""Where runs write, below the home. Their scratch files are beside what they write."""


@dataclass(frozen=True)
class Plan:
    """The data to delete.

    Attributes:
        home: the installation.
        lake: its lake.
        drops: lake rows to delete, as table and keys.
        edits: lake rows to replace, as table, keys and new rows.
        paths: files and folders to delete.
    """

    home: Home
    lake: Lake
    drops: tuple[tuple[str, Keys], ...] = ()
    edits: tuple[tuple[str, Keys, pl.DataFrame], ...] = ()
    paths: tuple[Path, ...] = ()

    def table(self) -> pl.DataFrame:
        """One row per folder, file or lake table: ``what``, ``files``, ``bytes``, and ``rows`` (NULL for files)."""
        rows: list[tuple[str, int | None, int | None, int | None]] = []
        for name in LAKE_TABLES:
            dropped = sum(_count_rows(self.lake, name, keys) for table, keys in self.drops if table == name)
            changed = sum(_count_lost_rows(self.lake, *edit) for edit in self.edits if edit[0] == name)
            if dropped or changed:
                rows.append((f"lake/{name}{'' if dropped else ' (rows changed)'}", None, None, dropped + changed))
        for path in self.paths:
            sizes = file_sizes(path)
            rows.append((path.relative_to(self.home.root).as_posix(), len(sizes), sum(sizes), None))
        columns = {"what": pl.String, "files": pl.Int64, "bytes": pl.Int64, "rows": pl.Int64}
        return pl.DataFrame(rows, columns, orient="row")

    def execute(self) -> None:
        """Delete the data: first the rows of the lake, so that no reader looks for deleted files.

        Raises:
            GradcamoError: if a path cannot be deleted. Pruning again continues.
        """
        for table, keys in self.drops:
            self.lake.drop(table, **keys)
        for table, keys, frame in self.edits:
            self.lake.write(table, frame, **keys)
        for path in self.paths:
            try:
                remove(path)
            except OSError as error:
                remedy = "Check its permissions, then prune again."
                raise GradcamoError(f"it cannot be deleted: {error.strerror}", remedy, path=path) from error


def plan_crops(home: Home, lake: Lake, plate: str) -> Plan:
    """Plan to delete the stored pixels of a plate's crops. Where they are needed, they are cut from the fields again.

    Raises:
        GradcamoError: if no pixels are stored.
    """
    folders = _existing_paths([home.crops], check_plate_name(plate))
    stored = [path for folder in folders for path in list_visible(folder, f"*/*/{PIXELS}")]
    return _require_content(Plan(home, lake, paths=tuple(stored)), plate)


def plan_scores(home: Home, lake: Lake, registry: ModelRegistry, version: int, plate: str | None = None) -> Plan:
    """Plan to delete all results of a model version, of one plate or all: scores, embeddings, profiles, audits.

    Raises:
        GradcamoError: if the version is the champion or has no results.
    """
    champion = registry.by_alias(CHAMPION)
    if champion is not None and champion.version == version:
        raise GradcamoError(f"version {version} is the champion", "Promote another version first.", plate=plate)
    runs = {known.run_id: known.version for known in registry.versions()}
    with_results = {runs[run] for run in _runs_with_results(lake) if run in runs}
    if version not in with_results:
        raise GradcamoError(
            f"version {version} has no results",
            f"Versions with results: {_join_names(with_results)}.", plate=plate,
        )  # fmt: skip
    run = next(run for run, number in runs.items() if number == version)
    paths = _existing_paths(list_visible(home.exports, plate or "*"), f"{registry.name}-v{version}")
    if plate is not None:
        tables = tables_keyed_by("plate", "model_run")
        drops = tuple((table, {"plate": check_plate_name(plate), "model_run": run}) for table in tables)
        return Plan(home, lake, drops, paths=paths)
    return Plan(home, lake, _drops_of_run(run), paths=paths + _existing_paths([home.fitted], run))


def plan_plate(home: Home, lake: Lake, plate: str) -> Plan:
    """Plan to delete all data of a plate. Dagster's records of its runs remain.

    Raises:
        PlateError: if the inbox cannot be listed, so that it is unknown whether it contains the plate.
        GradcamoError: if the plate is in the inbox or unknown.
    """
    found = list_inbox(home.inbox, only=check_plate_name(plate)).values()
    if any(snapshot is not None and snapshot.is_plate for snapshot in found):
        remedy = "Move it out of the inbox first, or it is ingested again."
        raise GradcamoError("the plate is still in the inbox", remedy, plate=plate, path=home.inbox)
    drops = tuple((table, {"plate": plate}) for table in tables_keyed_by("plate"))
    drops = tuple(drop for drop in drops if _count_rows(lake, *drop))
    edits: list[tuple[str, Keys, pl.DataFrame]] = []
    for table in LAKE_TABLES.values():
        if table.keys == ("model_run",) and "Metadata_Plate" in table.schema:
            rows = lake.read(table.name)
            for run in rows.filter(Metadata_Plate=plate)["model_run"].unique().sort():
                others = rows.filter(pl.col("Metadata_Plate").ne_missing(plate), model_run=run)
                edits.append((table.name, {"model_run": run}, others))
    files = [folder.name for folder in (*plate_folders(home.plates, plate), Staging(home.plates, plate).folder)]
    files += [f"{plate}{ending}" for ending in PLATE_FILE_ENDINGS]
    paths = [
        *known_markers(home.plates, plate), *_existing_paths([home.plates], *files),
        *_existing_paths([home.plates / "failures"], f"{plate}.json"),
        *_existing_paths([home.masks, home.crops, home.reports, home.exports, home.pictures / "plates"], plate),
        *_existing_paths(list_visible(home.fitted, "*/sphering"), plate),
    ]  # fmt: skip
    return _require_content(Plan(home, lake, drops, tuple(edits), tuple(paths)), plate)


def plan_unused(home: Home, lake: Lake, registry: ModelRegistry, instance: dg.DagsterInstance) -> Plan:
    """Plan to delete unused data: earlier versions of masks and crops, and results of models deleted from MLflow.

    What killed runs left behind is deleted too. Files that unfinished runs have announced remain, and while a run is
    unfinished, so do all scratch files.
    """
    unregistered = _unregistered_runs(lake, registry)
    drops = tuple(drop for run in unregistered for drop in _drops_of_run(run))
    busy, ended = set(), []
    for file in list_visible(home.unfinished, "*.json"):
        announcement = read_json(file)
        if _has_ended(instance, announcement["run"]):
            ended.append(file)
        else:
            busy.add((announcement["store"], announcement["plate"], str(announcement["site"])))
    unused: list[Path] = []
    scores = lake.scan("scores").filter(~pl.col("model_run").is_in(unregistered))
    for store, table, column in ((home.masks, "masks", "mask_version"), (home.crops, "field_crops", "crop_version")):
        rows = pl.concat([rows.select(*FIELD, column) for rows in (lake.scan(table), scores)]).drop_nulls().unique()
        keep = {(plate, f"{well}_s{site}", version) for plate, well, site, version in rows.collect().iter_rows()}
        for folder in list_visible(store, "*/*/*"):
            plate, field, version = folder.parts[-3:]
            if (plate, field, version) not in keep and (store.name, plate, field.rpartition("_s")[2]) not in busy:
                unused += _existing_paths([folder.parent], version)
    fitted = (path for run in unregistered for path in _existing_paths([home.fitted], run))
    ended += (folder for folder in list_visible(home.training) if _has_ended(instance, folder.name))
    if not home.in_bucket and not instance.get_run_ids(dg.RunsFilter(statuses=UNFINISHED_STATUSES), limit=1):
        ended += (path for folder in _FOLDERS_WITH_SCRATCH for path in list_scratch(home.root, folder))
    paths = (*unused, *ended, *fitted, *abandoned_plates(home, instance))
    return Plan(home, lake, drops, paths=paths)


def abandoned_plates(home: Home, instance: dg.DagsterInstance) -> list[Path]:
    """The plate folders of ingestions that were killed, in a bucket; elsewhere the next ingestion continues them."""
    if not home.in_bucket:
        return []
    folders = list_visible(home.plates, "*.zarr")
    # A run that starts after the folders were listed is not concerned, and one that ended has written its record.
    busy = partitions_in_progress(instance)
    records = (read_plate_record(home.plates, name) for name in list_known_plates(home.plates))
    current = {plate_folder(home.plates, record["name"], record) for record in records if record is not None}
    return [path for path in folders if path not in current and path.name.rsplit(".", 2)[0] not in busy]


def _has_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _drops_of_run(run: str) -> tuple[tuple[str, Keys], ...]:
    return tuple((table, {"model_run": run}) for table in tables_keyed_by("model_run"))


def _unregistered_runs(lake: Lake, registry: ModelRegistry) -> list[str]:
    """The MLflow runs of this model that have results but no registered version."""
    tables = [name for name in tables_keyed_by("model_run") if "model_name" in LAKE_TABLES[name].schema]
    rows = pl.concat([lake.scan(name).select("model_name", "model_run") for name in tables]).unique().collect()
    with_results = set(rows.filter(model_name=registry.name)["model_run"])
    return sorted(with_results - {version.run_id for version in registry.versions()})


def _runs_with_results(lake: Lake) -> set[str]:
    """The MLflow runs that have results."""
    return set(lake.partition_versions("score_versions")["model_run"]) | set(lake.read("unscored")["model_run"])


def _existing_paths(folders: list[Path], *names: str) -> tuple[Path, ...]:
    """The existing paths among ``names`` in ``folders``. Links to other folders are refused."""
    paths = [path for folder in folders for name in names if exists(path := folder / name)]
    for path in paths:
        if not is_in_bucket(path) and path.resolve().parent != path.parent.resolve():
            raise GradcamoError("it is a link to another folder", "Delete it by hand.", path=path)
    return tuple(paths)


def _require_content(plan: Plan, plate: str) -> Plan:
    if not (plan.drops or plan.edits or plan.paths):
        plates = plan.lake.read("plates")["Metadata_Plate"]
        raise GradcamoError("there is nothing to prune", f"Ingested plates: {_join_names(plates)}.", plate=plate)
    return plan


def _join_names(names: Any) -> str:
    return ", ".join(map(str, sorted(names))) or "none"


def _count_rows(lake: Lake, table: str, keys: Keys) -> int:
    return int(lake.scan(table, **keys).select(pl.len()).collect().item())


def _count_lost_rows(lake: Lake, table: str, keys: Keys, after: pl.DataFrame) -> int:
    before = lake.read(table, **keys)
    return len(before.join(after, on=before.columns, how="anti", nulls_equal=True))
