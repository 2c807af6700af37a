"""``model_comparison`` and ``encoder_exploration``: versions and settings judged by accuracy and where they look."""

from dataclasses import replace
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field as Setting

from gradcamo_assets.cells import open_crops
from gradcamo_assets.defs.assets.model_assets import crop_paths, kept_cells, trained_model
from gradcamo_assets.defs.assets.qc_assets import _markdown
from gradcamo_assets.defs.launchpad import used
from gradcamo_assets.defs.partitions import AUTOMATIC
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.report import accuracy_against_score, layer_scores, paired_differences, to_markdown
from gradcamo_assets.storage import atomic_file
from gradcamo_assets.training.model_registry import CHALLENGER, CHAMPION

_MOST_VERSIONS = 12


@dg.asset(deps=["gradcamo_scores", trained_model], group_name="qc", kinds={"polars"}, automation_condition=AUTOMATIC)
def model_comparison(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Accuracy against where they look, by version on cells it did not learn from, and paired with the champion."""
    from gradcamo_assets.training.compare import differences_from_champion, held_out_cells, summarise_versions

    registry = platform.registry
    champion = registry.by_alias(CHAMPION)
    versions = [version for version in registry.versions()[-_MOST_VERSIONS:] if version != champion]
    versions += [champion] if champion else []
    cells = {version.version: held_out_cells(platform.lake, registry, version) for version in versions}
    layers = {row["model_version"]: row["layer"] for row in registry.version_rows()}
    name = pl.format("version {}, {}", "model_version", pl.col("model_version").replace_strict(layers, default="?"))
    points = summarise_versions(cells)
    figure = accuracy_against_score(points.with_columns(name=name))
    metadata: dict[str, Any] = {
        "versions": len(versions),
        "accuracy_against_on_target": dg.MetadataValue.md(to_markdown(figure, "Accuracy against share on target")),
        "side_by_side": dg.MetadataValue.md(_markdown(points)),
    }
    if champion:
        pairs = differences_from_champion(cells, champion.version)
        pairs = pairs.with_columns(name=pl.format("version {}", "model_version"))
        picture = to_markdown(paired_differences(pairs), "Other versions less the champion, on the same cells")
        metadata |= {
            "champion": champion.version,
            "differences": dg.MetadataValue.md(picture),
            "paired_with_the_champion": dg.MetadataValue.md(_markdown(pairs.drop("name"))),
        }
    return dg.MaterializeResult(metadata=metadata)


class ExplorationConfig(dg.Config):
    """What is tried. The wells are those of the version's own split."""

    version: int | None = Setting(default=None, description="Version to start from; empty means the champion.")
    plates: list[str] = Setting(default=[], description="Plates of its split to use; empty means all.")
    cells: int = Setting(default=1000, description="Cells a part at most, the same ones every time.")
    layers: list[str] = Setting(default=[], description="Dotted names to explain; empty means each stage's last block.")
    crop_sizes: list[int] = Setting(default=[], description="In-plane edges in voxels; empty means all, 3/4 and 1/2.")
    maskings: list[str] = Setting(default=["none", "target"], description="Of none, target, background.")
    epochs: int = Setting(default=8, description="Of each small training; 0 sweeps layers only.")


@dg.asset(deps=[trained_model], group_name="models", kinds={"pytorch"}, pool="training")
def encoder_exploration(
    context: dg.AssetExecutionContext, platform: Platform, config: ExplorationConfig
) -> dg.MaterializeResult:
    """Layers to explain, crop sizes and maskings to train with, each with its accuracy and where encoders then look."""
    from gradcamo_assets.networks.bundle import load_bundle
    from gradcamo_assets.training.evaluation import sample_cells, to_model_input
    from gradcamo_assets.training.explore import crop_sweep, find_stage_ends, layer_sweep
    from gradcamo_assets.training.split import PARTS
    from gradcamo_assets.training.training_run import common_geometry, labelled_crops

    registry = platform.registry
    wanted = [version for version in registry.versions() if version.version == config.version]
    version = wanted[0] if wanted else registry.by_alias(CHAMPION) or registry.by_alias(CHALLENGER)
    if version is None or (config.version and not wanted):
        raise GradcamoError(f"there is no version {config.version or 'yet'}", "Launch train_model, or name another.")
    model, bundle = load_bundle(registry.fetch(version))
    part_of = {well: part for part, wells in bundle.split.items() for well in wells}
    well = pl.concat_str("Metadata_Plate", "Metadata_Well", separator="/")
    cells = kept_cells(platform, config.plates).with_columns(
        split=well.replace_strict(part_of, default=None, return_dtype=pl.String)
    )
    cells = cells.filter(pl.col("treatment_class").is_in(bundle.classes))
    chosen = {part: sample_cells(cells.filter(split=part), config.cells) for part in PARTS}
    if not all(len(chosen[part]) for part in ("train", "test")):
        raise GradcamoError(f"the wells {version} learned from and was tested on have no crops", "Cut them again.")
    fields = [open_crops(path) for path in crop_paths(platform, pl.concat(chosen.values()))]
    common_geometry(fields)
    crops = {part: labelled_crops(found, fields, bundle.classes, bundle.channels) for part, found in chosen.items()}
    image, labels, _ = crops["test"][0]
    layers = config.layers or find_stage_ends(model, to_model_input(model, image[None], labels[None])[0], bundle.layer)
    tables = {"layers": layer_sweep(model, layers, crops["test"], bundle.classes)}
    figures = {"layers": layer_scores(tables["layers"])}
    metadata: dict[str, Any] = {"model_version": version.version}
    if config.epochs:
        edge = min(labels.shape[-2:])
        training = replace(platform.settings.training, encoder=bundle.encoder, epochs=config.epochs)
        tables["crops"] = crop_sweep(
            crops, bundle.classes, training, config.crop_sizes or [edge, edge * 3 // 4, edge // 2], config.maskings,
            work=platform.home.mlflow, report=context.log.info,
        )  # fmt: skip
        named = tables["crops"].with_columns(
            name=pl.format("{} voxels", "size"), part=pl.format("masking {}", "masking")
        )
        figures["crops"] = accuracy_against_score(named)
        metadata |= used(training=training)
    for name, table in tables.items():
        with atomic_file(platform.home.reports / f"exploration_{name}.csv") as path:
            table.write_csv(path)
        metadata[f"{name}_figure"] = dg.MetadataValue.md(to_markdown(figures[name], f"Sweep over {name}"))
        metadata[f"{name}_table"] = dg.MetadataValue.md(_markdown(table))
        metadata[f"{name}_file"] = dg.MetadataValue.path(f"reports/exploration_{name}.csv")
    return dg.MaterializeResult(metadata=metadata)
