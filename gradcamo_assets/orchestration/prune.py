"""The one place that deletes data, on request: a plate's crops, the scores of a model version, or a whole plate.

A plan is made and shown first. Nothing in the inbox is ever touched, and no other plate or version loses a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from gradcamo_assets.common import GradcamoError, Home, plate_name
from gradcamo_assets.learning.registry import CHAMPION, ModelRegistry
from gradcamo_assets.plates import list_inbox
from gradcamo_assets.plates.staging import Staging
from gradcamo_assets.plates.store import ENDINGS, known_files
from gradcamo_assets.warehouse import LAKE_TABLES, Key, Lake
from gradcamo_assets.warehouse.schema import tables_filed_by

Edit = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class Plan:
    """What would go. ``keys``: lake files dropped whole. ``edits``: lake files of which some rows change or go.
    ``paths``: files and folders."""

    root: Path
    lake: Lake
    keys: tuple[Key, ...] = ()
    edits: tuple[tuple[Key, Edit], ...] = ()
    paths: tuple[Path, ...] = ()

    def table(self) -> pl.DataFrame:
        """One row a folder, file or lake table: ``what``, ``files``, ``bytes``, and ``rows`` (NULL for images)."""
        rows: list[tuple[str, int, int, int | None]] = []
        for name in LAKE_TABLES:
            keys = [key for key in self.keys if key.table == name]
            edited = [(key, edit) for key, edit in self.edits if key.table == name]
            if keys or edited:
                gone = sum(_read(self.lake, key).height for key in keys)
                changed = sum(len(_lost(self.lake, key, edit)) for key, edit in edited)
                sizes = [(self.lake.root / key.path).stat().st_size for key in keys]
                rows.append((f"lake/{name}{'' if keys else ' (rows changed)'}", len(sizes), sum(sizes), gone + changed))
        for path in self.paths:
            sizes = [file.stat().st_size for file in _files(path)]
            rows.append((path.relative_to(self.root).as_posix(), len(sizes), sum(sizes), None))
        return pl.DataFrame(rows, ["what", "files", "bytes", "rows"], orient="row")

    def carry_out(self) -> None:
        """Delete it. The lake goes first: what has no rows there is asked for by nobody.

        Raises:
            GradcamoError: for a path that cannot be removed; prune again to go on.
        """
        for key in self.keys:
            self.lake.drop(key.table, **_given(key))
        for key, edit in self.edits:
            self.lake.write(key.table, edit(_read(self.lake, key)), **_given(key))
        for path in self.paths:
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                remedy = "See to its permissions, then prune again."
                raise GradcamoError(f"it cannot be removed: {error.strerror}", remedy, path=path) from error


def plan_crops(home: Home, lake: Lake, plate: str) -> Plan:
    """The crops of a plate. Its cells and scores stay; no version scores it again until ``process_fields`` is launched.

    Raises:
        GradcamoError: where there are none.
    """

    def uncropped(cells: pl.DataFrame) -> pl.DataFrame:
        return cells.with_columns(crop_index=None, crop_version=None).cast(dict(cells.schema))  # type: ignore[arg-type]

    edits = [(key, uncropped) for key in lake.keys("cells", plate=plate_name(plate))]
    edits = [(key, edit) for key, edit in edits if len(_lost(lake, key, edit))]
    return _checked(Plan(home.root, lake, edits=tuple(edits), paths=_there([home.crops], plate)), plate)


def plan_scores(home: Home, lake: Lake, registry: ModelRegistry, version: int, plate: str | None = None) -> Plan:
    """All that a version of the model computed, of one plate or of all: scores, embeddings, profiles, audits.

    Raises:
        GradcamoError: for the champion's version, or where there is nothing.
    """
    champion = registry.by_alias(CHAMPION)
    if champion is not None and champion.version == version:
        raise GradcamoError(f"version {version} is the champion", "Promote another version first.", plate=plate)
    wanted = {"model_name": registry.name, "model_version": version}
    wanted |= {} if plate is None else {"plate": plate_name(plate)}
    keys = [key for name in tables_filed_by(*wanted) for key in lake.keys(name, **wanted)]
    if not keys:
        there = sorted({key.model_version for key in lake.keys("scores", model_name=registry.name)})  # type: ignore[type-var]
        raise GradcamoError(
            f"version {version} has computed nothing that is kept", f"There are scores of versions {_listed(there)}.",
            plate=plate,
        )  # fmt: skip
    paths = _there([*home.exports.glob(plate or "*")], f"{registry.name}-v{version}")
    if plate is None:
        paths += _there([home.fitted / registry.name], str(version))
    return Plan(home.root, lake, keys=tuple(keys), paths=paths)


def plan_plate(home: Home, lake: Lake, plate: str) -> Plan:
    """All that there is of a plate outside the inbox. Dagster's own record of its runs stays.

    Raises:
        PlateError: where the inbox cannot be listed, so that nobody knows whether the plate still lies there.
        GradcamoError: where it does, or where there is no such plate.
    """
    if any(list_inbox(home.inbox, only=plate_name(plate)).values()):
        remedy = "It would be taken in again: move it out of the inbox first."
        raise GradcamoError("the plate still lies in the inbox", remedy, plate=plate, path=home.inbox)

    def without(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(pl.col("Metadata_Plate").ne_missing(plate))

    keys = [key for name in tables_filed_by("plate") for key in lake.keys(name, plate=plate)]
    tables = [table for table in LAKE_TABLES.values() if table.keys and "plate" not in table.keys]
    shared = [(key, without) for table in tables if "Metadata_Plate" in table.polars for key in lake.keys(table.name)]
    edits = [(key, edit) for key, edit in shared if len(_lost(lake, key, edit))]
    files = [f"{plate}{ending}" for ending in (*ENDINGS, ".zarr")] + [Staging(home.plates, plate).folder.name]
    paths = [
        *known_files(home.plates, plate), *_there([home.plates], *files),
        *_there([home.plates / "failures"], f"{plate}.json"),
        *_there([home.masks, home.crops, home.reports, home.exports, *home.fitted.glob("*/*/sphering")], plate),
    ]  # fmt: skip
    return _checked(Plan(home.root, lake, tuple(keys), tuple(edits), tuple(paths)), plate)


def _there(folders: list[Path], *names: str) -> tuple[Path, ...]:
    """Those that exist. A link is not followed out of its folder."""
    paths = [path for folder in folders for name in names if (path := folder / name).exists()]
    for path in paths:
        if path.resolve().parent != path.parent.resolve():
            raise GradcamoError("it is a link to another place", "Remove it by hand.", path=path)
    return tuple(paths)


def _checked(plan: Plan, plate: str) -> Plan:
    if not (plan.keys or plan.edits or plan.paths):
        there = sorted({key.plate for key in plan.lake.keys("plates") if key.plate})
        raise GradcamoError("there is nothing to prune", f"The plates that are in: {_listed(there)}.", plate=plate)
    return plan


def _listed(names: list) -> str:
    return ", ".join(str(name) for name in names) or "none"


def _given(key: Key) -> dict[str, object]:
    return {name: value for name, value in asdict(key).items() if name != "table" and value is not None}


def _read(lake: Lake, key: Key) -> pl.DataFrame:
    return lake.read(key.table, **_given(key))


def _lost(lake: Lake, key: Key, edit: Edit) -> pl.DataFrame:
    rows = _read(lake, key)
    return rows.join(edit(rows), on=rows.columns, how="anti", nulls_equal=True)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
