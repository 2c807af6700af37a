"""Assets ``profiles``, ``umap``, ``replicability`` and ``confounder_audit`` from the champion's embeddings."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field as Setting

from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.cell_rows import sample_cells
from gradcamo_assets.defs.automation.pending import scoring_state
from gradcamo_assets.defs.field_results import FIELD, crop_folder
from gradcamo_assets.defs.launchpad import override_settings, settings_metadata, with_section_fields
from gradcamo_assets.defs.partitions import ON_INPUT_CHANGE
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.names import check_name
from gradcamo_assets.profiles import ProfilesConfig
from gradcamo_assets.provenance import digest
from gradcamo_assets.report import map_by_epoch, to_gif, umap_scatter
from gradcamo_assets.storage import exists, folder_exists, read_bytes, write_bytes
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.training.model_registry import ModelVersion

_MAX_MAP_CELLS = 20_000
_SCORE_COLUMNS = ("Metadata_CellID", "gradcamo_adjusted", "on_target", "looks_at", "split", "crop_version")


@with_section_fields(ProfilesConfig, "audit_cells", "background")
class ProfilesLaunch(dg.Config):
    """Settings of the profiles. Empty fields have the values of [profiles] in gradcamo.toml, or their defaults."""

    refit: bool = Setting(
        default=False, description="Fit the screen's sphering again and compute the profiles of all plates."
    )


class MapLaunch(dg.Config):
    """Options of the UMAP."""

    refit: bool = Setting(
        default=False, description="Fit the map of this model version again; the coordinates of all cells change."
    )


def _run_key(champion: ModelVersion) -> dict[str, Any]:
    return {"model_run": champion.run_id}


def _fitted_folder(platform: Platform, champion: ModelVersion) -> Path:
    """The folder of transforms that are fitted once per model version."""
    return platform.home.fitted / check_name(champion.run_id, "MLflow run")


def _plates_to_update(
    platform: Platform, champion: ModelVersion, table: str, *inputs: object
) -> tuple[dict[str, str], list[str]]:
    """Find the plates that the champion has embedded, and those whose results are out of date.

    Args:
        table: version table of the results.
        inputs: further inputs of the results, such as settings.

    Returns:
        By plate, the version of the results' input: a digest of the plate's scores and of ``inputs``. And the plates
        whose results were made from another version.

    Raises:
        GradcamoError: if the champion has embedded no cell.
    """
    lake = platform.lake
    scored = lake.partition_versions("score_versions", **_run_key(champion)).sort("Metadata_Plate", "Metadata_Site")
    if scored.is_empty():
        raise GradcamoError(f"{champion} has not embedded any cell", "Materialise embeddings first.")
    input_versions = {
        str(plate): digest([rows.select("Metadata_Site", "version").rows(), *inputs])
        for (plate,), rows in scored.group_by("Metadata_Plate", maintain_order=True)
    }
    made = dict(lake.partition_versions(table, **_run_key(champion)).select("Metadata_Plate", "made_from").iter_rows())
    return input_versions, [plate for plate, version in input_versions.items() if made.get(plate) != version]


def _write_plate(
    platform: Platform, champion: ModelVersion, table: str, frames: dict[str, pl.DataFrame], plate: str, made_from: str
) -> None:
    version, n = digest([made_from, champion.run_id]), sum(map(len, frames.values()))
    keys = {"plate": plate, **_run_key(champion)}
    platform.lake.write_stage(table, frames, version=version, made_from=made_from, n=n, **keys)


def _embedded_cells(platform: Platform, champion: ModelVersion, plate: str) -> pl.DataFrame:
    """The embeddings of a plate with the scores of their cells."""
    keys = _run_key(champion)
    scores = platform.lake.scan("scores", plate=plate, **keys).select(_SCORE_COLUMNS).collect()
    cells = platform.lake.read("embeddings", plate=plate, **keys).join(scores, on="Metadata_CellID", how="left")
    # Cells without scores have the split of their well.
    return cells.with_columns(pl.col("split").max().over("Metadata_Well"))


def _with_background(
    context: dg.AssetExecutionContext, platform: Platform, champion: ModelVersion, cells: pl.DataFrame
) -> pl.DataFrame:
    """Add the background embeddings of those cells of population ``all`` whose crops exist."""
    from gradcamo_assets.scoring.background import compute_background_embeddings
    from gradcamo_assets.scoring.scorer import Scorer

    shuffled = (
        cells.filter(population="all").drop_nulls("crop_version").select("Metadata_CellID", *FIELD, "crop_version")
    )
    shuffled = shuffled.sample(fraction=1, shuffle=True, seed=0)
    fields = {
        "/".join(map(str, (row[name] for name in FIELD))): open_crops(folder)
        for row in shuffled.select(*FIELD, "crop_version").unique().to_dicts()
        if folder_exists(folder := crop_folder(platform.home, row))
    }
    available = {cell for field in fields.values() for cell in field.cell_ids}
    ids = [cell for cell in shuffled["Metadata_CellID"] if cell in available]
    if len(ids) < 2:
        return cells
    settings = platform.settings
    scorer = Scorer(platform.registry.fetch(champion), settings.scoring, settings.encoders.modules)
    embeddings, damaged = compute_background_embeddings(scorer, fields, ids)
    for name, reason in damaged.items():
        context.log.warning(f"{name} has no background baseline: {reason}")
    background = pl.DataFrame(
        [*embeddings.items()], {"Metadata_CellID": pl.String, "background": pl.List(pl.Float64)}, orient="row"
    ).with_columns(population=pl.lit("all"))
    return cells.join(background, on=["Metadata_CellID", "population"], how="left")


def _all_scored(platform: Platform, champion: ModelVersion) -> bool:
    """Whether the champion has scored all crops. Only then are fitted transforms stored."""
    return not scoring_state(platform.lake, platform.registry, champion).todo


@dg.asset(deps=["embeddings"], group_name="profiles", kinds={"polars"}, automation_condition=ON_INPUT_CHANGE)
@explain_storage_errors
def profiles(context: dg.AssetExecutionContext, platform: Platform, config: ProfilesLaunch) -> dg.MaterializeResult:
    """Well profiles per cell population: median per site, mean over sites, sphered; and their exports."""
    from gradcamo_assets.profiles import (
        Sphering,
        export_profiles,
        load_fitted,
        save_fitted,
        select_population,
        sphered_profiles,
        well_profiles,
    )
    from gradcamo_assets.profiles.sphered_profiles import SCREEN

    champion, home = platform.champion(), platform.home
    settings = override_settings(platform.settings.profiles, config)

    def sphering_path(population: str, place: str) -> Path:
        name = place if place != SCREEN else f"{SCREEN}-{settings.fit_on}-{settings.regularisation:g}"
        return _fitted_folder(platform, champion) / "sphering" / name / f"{population}.safetensors"

    known: dict[str, Sphering] = {}
    if settings.scope == "screen" and not config.refit:
        paths = {name: sphering_path(name, SCREEN) for name in settings.populations}
        known = {name: Sphering.from_fitted(*load_fitted(path)) for name, path in paths.items() if exists(path)}
    plates, todo = _plates_to_update(platform, champion, "profile_versions", asdict(settings))
    if config.refit or (settings.scope == "screen" and len(known) < len(settings.populations)):
        todo = list(plates)
    raw = [
        well_profiles(select_population(cells, name))
        for cells in (_embedded_cells(platform, champion, plate) for plate in todo)
        for name in settings.populations
    ]
    made = sphered_profiles(pl.concat(raw), settings, known) if raw else None
    if made is not None:
        for note in made.notes:
            context.log.warning(note)
        for (name, place), sphering in made.fitted.items():
            if place != SCREEN or _all_scored(platform, champion):
                save_fitted(sphering_path(name, place), sphering.arrays, sphering.notes)
        for plate in todo:
            part = made.table.filter(Metadata_Plate=plate)
            if len(part) and settings.formats:
                folder = home.exports / plate / f"{champion.name}-v{champion.version}"
                export_profiles(part, folder, settings.formats)
            _write_plate(platform, champion, "profile_versions", {"profiles": part}, plate, plates[plate])
    counts = platform.lake.read("profiles", **_run_key(champion))["population"].value_counts(sort=True).iter_rows()
    return dg.MaterializeResult(
        metadata={
            **{f"profiles_{name}": n for name, n in counts},
            **settings_metadata(profiles=settings),
            "plates_made": len(todo),
            "model_version": champion.version,
            "notes": " ".join(made.notes if made else []) or "none",
            "exports": dg.MetadataValue.path(home.exports.relative_to(home.root)),
        }
    )


@dg.asset(deps=["embeddings"], group_name="profiles", kinds={"umap"}, automation_condition=ON_INPUT_CHANGE)
@explain_storage_errors
def umap(context: dg.AssetExecutionContext, platform: Platform, config: MapLaunch) -> dg.MaterializeResult:
    """UMAP coordinates of the cells. The map is fitted once per model version; later plates are placed on it."""
    from gradcamo_assets.profiles import CellMap, fitted_digest, load_fitted, save_fitted
    from gradcamo_assets.profiles.well_profiles import stack_vectors

    home, champion = platform.home, platform.champion()
    path = _fitted_folder(platform, champion) / "umap.safetensors"
    cell_map = CellMap(**load_fitted(path)[0]) if exists(path) and not config.refit else None
    plates, todo = _plates_to_update(
        platform, champion, "umap_versions", cell_map and fitted_digest(cell_map.arrays, {})
    )
    frames = {
        plate: sample_cells(platform.lake.read("embeddings", plate=plate, **_run_key(champion)), _MAX_MAP_CELLS)
        for plate in (todo if cell_map else plates)
    }
    if cell_map is None:
        share = -(-_MAX_MAP_CELLS // len(plates))
        fitted = pl.concat(sample_cells(frame, share) for frame in frames.values())
        cell_map = CellMap.fit(stack_vectors(fitted["embedding"]))
        if _all_scored(platform, champion):
            save_fitted(path, cell_map.arrays, {})
            plates, _ = _plates_to_update(platform, champion, "umap_versions", fitted_digest(cell_map.arrays, {}))
    for plate, frame in frames.items():
        coordinates = cell_map.place(stack_vectors(frame["embedding"])) if len(frame) else None
        placed = frame.drop("embedding").with_columns(
            pl.Series(f"umap_{axis}", [] if coordinates is None else coordinates[:, n], dtype=pl.Float64)
            for n, axis in enumerate("xy")
        )
        _write_plate(platform, champion, "umap_versions", {"umap": placed}, plate, plates[plate])
    table = platform.lake.read("umap", **_run_key(champion))
    scores = platform.lake.scan("scores", **_run_key(champion)).select("Metadata_CellID", "gradcamo").collect()
    film = _training_film(platform, champion, again=config.refit)
    figure = umap_scatter(sample_cells(table, _MAX_MAP_CELLS).join(scores, on="Metadata_CellID", how="left"))
    return dg.MaterializeResult(
        metadata={
            "cells": len(table),
            "cells_fitted": len(cell_map.vectors),
            "plates_placed": len(frames),
            "model_version": champion.version,
            **show_picture(context, home, "map", figure, "UMAP of the embeddings by dose and by Grad-CAMO"),
            **(show_picture(context, home, "training", film, "The map, epoch by epoch") if film else {}),
        }
    )


def _training_film(platform: Platform, champion: ModelVersion, again: bool) -> bytes | None:
    """A GIF of the UMAP of validation cells by epoch, made once per version; None: the version was not trained here."""
    from gradcamo_assets.profiles.umap import umap_embedding
    from gradcamo_assets.profiles.well_profiles import stack_vectors
    from gradcamo_assets.training.mlflow_runs import EPOCH_EMBEDDINGS

    path = platform.home.reports / "_training" / f"{check_name(champion.name, 'model name')}-v{champion.version}.gif"
    if not again and (film := read_bytes(path)) is not None:
        return film
    logged = platform.registry.read_artifact(champion, EPOCH_EMBEDDINGS)
    cells = pl.read_parquet(logged) if logged else pl.DataFrame()
    if cells.is_empty():
        return None
    coordinates = umap_embedding(stack_vectors(cells["embedding"]))
    film = to_gif(map_by_epoch(cells.with_columns(umap_x=coordinates[:, 0], umap_y=coordinates[:, 1])))
    write_bytes(path, film)
    return film


@dg.asset(deps=[profiles], group_name="profiles", kinds={"copairs"}, automation_condition=ON_INPUT_CHANGE)
@explain_storage_errors
def replicability(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Mean average precision of retrieving replicate wells, per treatment and cell population."""
    from gradcamo_assets.profiles import replicate_map

    champion = platform.champion()
    table = replicate_map(platform.lake.read("profiles", **_run_key(champion)))
    platform.lake.write("replicability", table, **_run_key(champion))
    means = table.group_by("population").agg(pl.col("mean_average_precision").mean()).sort("population").iter_rows()
    return dg.MaterializeResult(
        metadata={
            "treatments": table.select("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit").n_unique(),
            "model_version": champion.version,
            **{f"mean_average_precision_{name}": float(mean) for name, mean in means},
        }
    )


@dg.asset(deps=["embeddings"], group_name="profiles", kinds={"scikit-learn"}, automation_condition=ON_INPUT_CHANGE)
@explain_storage_errors
def confounder_audit(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Accuracy of probes that predict treatment, site, well position and plate from embeddings, and chance level."""
    from gradcamo_assets.profiles import audit_confounders, select_population

    champion, lake = platform.champion(), platform.lake
    settings = platform.settings.profiles
    plates, todo = _plates_to_update(platform, champion, "confounder_versions", asdict(settings))
    before = lake.read("confounder_audit", **_run_key(champion))
    tables = [before.filter(pl.col("Metadata_Plate").is_in(plates.keys() - set(todo)))]
    samples = []
    for plate in plates:
        cells = _embedded_cells(platform, champion, plate)
        names = [name for name in settings.populations if name != "weighted"]
        sample = pl.concat(sample_cells(select_population(cells, name), settings.audit_cells) for name in names)
        samples.append(sample)
        if plate in todo:
            if settings.background:
                sample = _with_background(context, platform, champion, sample)
            tables.append(audit_confounders(sample, max_cells=settings.audit_cells))
    if len(plates) > 1:
        tables.append(audit_confounders(pl.concat(samples)))
    table = pl.concat(tables, how="vertical_relaxed")
    lake.write("confounder_audit", table, **_run_key(champion))
    for plate in todo:
        version = digest([plates[plate], champion.run_id])
        n = len(table.filter(Metadata_Plate=plate))
        lake.record_version("confounder_versions", version, plates[plate], n, plate=plate, **_run_key(champion))
    probes = table.filter(population="all", representation="embedding").select("target", "score")
    return dg.MaterializeResult(
        metadata={
            "model_version": champion.version,
            **settings_metadata(profiles=settings),
            **{f"probe_{name}": float(score) for name, score in probes.iter_rows()},
        }
    )
