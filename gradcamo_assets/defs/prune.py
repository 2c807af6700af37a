"""The one place that deletes data, on request: a plate's crops, a version's scores, a whole plate, what nothing names.

A plan is made and shown first. Nothing in the inbox is ever touched, and no other plate or version loses a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from gradcamo_assets.defs.field_results import FIELD
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.names import plate_name
from gradcamo_assets.plates import list_inbox
from gradcamo_assets.plates.plate_records import ENDINGS, known_files
from gradcamo_assets.plates.staging import Staging
from gradcamo_assets.storage import children, read_json, remove
from gradcamo_assets.tables import LAKE_TABLES, Lake
from gradcamo_assets.tables.schema import tables_keyed_by
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry

Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What would go. ``drops``: rows of the lake, by table and keys. ``edits``: what some keys of a table would hold.
    ``paths``: files and folders."""

    home: Home
    lake: Lake
    drops: tuple[tuple[str, Keys], ...] = ()
    edits: tuple[tuple[str, Keys, pl.DataFrame], ...] = ()
    paths: tuple[Path, ...] = ()

    def table(self) -> pl.DataFrame:
        """One row a folder, file or lake table: ``what``, ``files``, ``bytes``, and ``rows`` (NULL for images)."""
        rows: list[tuple[str, int | None, int | None, int | None]] = []
        for name in LAKE_TABLES:
            gone = sum(_count(self.lake, name, keys) for table, keys in self.drops if table == name)
            changed = sum(_lost(self.lake, *edit) for edit in self.edits if edit[0] == name)
            if gone or changed:
                rows.append((f"lake/{name}{'' if gone else ' (rows changed)'}", None, None, gone + changed))
        for path in self.paths:
            sizes = [file.stat().st_size for file in _files(path)]
            rows.append((path.relative_to(self.home.root).as_posix(), len(sizes), sum(sizes), None))
        columns = {"what": pl.String, "files": pl.Int64, "bytes": pl.Int64, "rows": pl.Int64}
        return pl.DataFrame(rows, columns, orient="row")

    def carry_out(self) -> None:
        """Delete it. The lake goes first: what has no rows there is asked for by nobody.

        Raises:
            GradcamoError: for a path that cannot be removed; prune again to go on.
        """
        for table, keys in self.drops:
            self.lake.drop(table, **keys)
        for table, keys, frame in self.edits:
            self.lake.write(table, frame, **keys)
        for path in self.paths:
            try:
                remove(path)
            except OSError as error:
                remedy = "See to its permissions, then prune again."
                raise GradcamoError(f"it cannot be removed: {error.strerror}", remedy, path=path) from error


def plan_crops(home: Home, lake: Lake, plate: str) -> Plan:
    """The crops of a plate. Its cells and scores stay; no version scores it again until ``process_fields`` is launched.

    Raises:
        GradcamoError: where there are none.
    """
    edits: list[tuple[str, Keys, pl.DataFrame]] = []
    for row in (
        lake.partition_versions("crop_versions", plate=plate_name(plate)).filter(pl.col("n") > 0).iter_rows(named=True)
    ):
        keys = {"plate": plate, "site": row["Metadata_Site"]}
        crops, fields = lake.read("crops", **keys), lake.read("field_crops", **keys)
        edits += [
            ("crops", keys, crops.with_columns(crop_index=None, crop_version=None)),
            ("field_crops", keys, fields.with_columns(n_crops=0, crop_version=None)),
            # The version stays: what it was made from has not changed, so that nobody cuts them again by himself.
            (
                "crop_versions",
                keys,
                pl.DataFrame([{**row, "n": 0}], schema=lake.partition_versions("crop_versions").schema),
            ),
        ]
    edits = [
        (table, keys, frame.cast(LAKE_TABLES[table].schema))  # type: ignore[arg-type]
        for table, keys, frame in edits
    ]
    return _checked(Plan(home, lake, edits=tuple(edits), paths=_there([home.crops], plate)), plate)


def plan_scores(home: Home, lake: Lake, registry: ModelRegistry, version: int, plate: str | None = None) -> Plan:
    """All that a version of the model computed, of one plate or of all: scores, embeddings, profiles, audits.

    Raises:
        GradcamoError: for the champion's version, or where there is nothing.
    """
    champion = registry.by_alias(CHAMPION)
    if champion is not None and champion.version == version:
        raise GradcamoError(f"version {version} is the champion", "Promote another version first.", plate=plate)
    runs = {known.run_id: known.version for known in registry.versions()}
    computed = {runs[run] for run in _runs(lake) if run in runs}
    if version not in computed:
        raise GradcamoError(
            f"version {version} has computed nothing that is kept",
            f"There are scores of versions {_listed(computed)}.", plate=plate,
        )  # fmt: skip
    run = next(run for run, number in runs.items() if number == version)
    paths = _there([*children(home.exports, plate or "*")], f"{registry.name}-v{version}")
    if plate is not None:
        tables = tables_keyed_by("plate", "model_run")
        return Plan(home, lake, tuple((t, {"plate": plate_name(plate), "model_run": run}) for t in tables), paths=paths)
    return Plan(home, lake, _drops_of_run(run), paths=paths + _there([home.fitted], run))


def plan_plate(home: Home, lake: Lake, plate: str) -> Plan:
    """All that there is of a plate outside the inbox. Dagster's own record of its runs stays.

    Raises:
        PlateError: where the inbox cannot be listed, so that nobody knows whether the plate still lies there.
        GradcamoError: where it does, or where there is no such plate.
    """
    if any(list_inbox(home.inbox, only=plate_name(plate)).values()):
        remedy = "It would be taken in again: move it out of the inbox first."
        raise GradcamoError("the plate still lies in the inbox", remedy, plate=plate, path=home.inbox)
    drops = tuple((table, {"plate": plate}) for table in tables_keyed_by("plate"))
    drops = tuple(drop for drop in drops if _count(lake, *drop))
    edits: list[tuple[str, Keys, pl.DataFrame]] = []
    for table in LAKE_TABLES.values():
        if table.keys == ("model_run",) and "Metadata_Plate" in table.schema:
            rows = lake.read(table.name)
            for run in rows.filter(Metadata_Plate=plate)["model_run"].unique().sort():
                others = rows.filter(pl.col("Metadata_Plate").ne_missing(plate), model_run=run)
                edits.append((table.name, {"model_run": run}, others))
    files = [f"{plate}{ending}" for ending in (*ENDINGS, ".zarr")] + [Staging(home.plates, plate).folder.name]
    paths = [
        *known_files(home.plates, plate), *_there([home.plates], *files),
        *_there([home.plates / "failures"], f"{plate}.json"),
        *_there([home.masks, home.crops, home.reports, home.exports, *children(home.fitted, "*/sphering")], plate),
    ]  # fmt: skip
    return _checked(Plan(home, lake, drops, tuple(edits), tuple(paths)), plate)


def plan_unused(home: Home, lake: Lake, registry: ModelRegistry, instance: dg.DagsterInstance) -> Plan:
    """What nothing names any more: masks and crops of earlier versions, and what models computed that MLflow has lost.

    What an unfinished run is about to name stays.
    """
    lost = _lost_runs(lake, registry)
    drops = tuple(drop for run in lost for drop in _drops_of_run(run))
    busy, ended = set(), []
    for file in children(home.unfinished, "*.json"):
        said = read_json(file)
        run = instance.get_run_by_id(said["run"])
        if run is None or run.is_finished:
            ended.append(file)
        else:
            busy.add((said["store"], said["plate"], str(said["site"])))
    unnamed: list[Path] = []
    for store, table, column in ((home.masks, "masks", "mask_version"), (home.crops, "field_crops", "crop_version")):
        scores = lake.scan("scores").filter(~pl.col("model_run").is_in(lost))
        rows = pl.concat([rows.select(*FIELD, column) for rows in (lake.scan(table), scores)]).drop_nulls().unique()
        keep = {(plate, f"{well}_s{site}", version) for plate, well, site, version in rows.collect().iter_rows()}
        for folder in children(store, "*/*/*"):
            plate, field, version = folder.parts[-3:]
            if (plate, field, version) not in keep and (store.name, plate, field.rpartition("_s")[2]) not in busy:
                unnamed += _there([folder.parent], version)
    paths = (*unnamed, *ended, *(path for run in lost for path in _there([home.fitted], run)))
    return Plan(home, lake, drops, paths=paths)


def _drops_of_run(run: str) -> tuple[tuple[str, Keys], ...]:
    return tuple((table, {"model_run": run}) for table in tables_keyed_by("model_run"))


def _lost_runs(lake: Lake, registry: ModelRegistry) -> list[str]:
    """The MLflow runs of this model that computed something, and that no registered version names any more."""
    tables = [name for name in tables_keyed_by("model_run") if "model_name" in LAKE_TABLES[name].schema]
    rows = pl.concat([lake.scan(name).select("model_name", "model_run") for name in tables]).unique().collect()
    computed = set(rows.filter(model_name=registry.name)["model_run"])
    return sorted(computed - {version.run_id for version in registry.versions()})


def _runs(lake: Lake) -> set[str]:
    """The MLflow runs whose models have computed something."""
    return set(lake.partition_versions("score_versions")["model_run"]) | set(lake.read("unscored")["model_run"])


def _there(folders: list[Path], *names: str) -> tuple[Path, ...]:
    """Those that exist. A link is not followed out of its folder."""
    paths = [path for folder in folders for name in names if (path := folder / name).exists()]
    for path in paths:
        if path.resolve().parent != path.parent.resolve():
            raise GradcamoError("it is a link to another place", "Remove it by hand.", path=path)
    return tuple(paths)


def _checked(plan: Plan, plate: str) -> Plan:
    if not (plan.drops or plan.edits or plan.paths):
        there = plan.lake.read("plates")["Metadata_Plate"]
        raise GradcamoError("there is nothing to prune", f"The plates that are in: {_listed(there)}.", plate=plate)
    return plan


def _listed(names: Any) -> str:
    return ", ".join(map(str, sorted(names))) or "none"


def _count(lake: Lake, table: str, keys: Keys) -> int:
    return int(lake.scan(table, **keys).select(pl.len()).collect().item())


def _lost(lake: Lake, table: str, keys: Keys, after: pl.DataFrame) -> int:
    before = lake.read(table, **keys)
    return len(before.join(after, on=before.columns, how="anti", nulls_equal=True))


def _files(path: Path) -> Iterator[Path]:
    return (file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
