"""Assets ``model_comparison`` and ``encoder_exploration``: accuracy and map scores of versions and of settings."""

from dataclasses import replace
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field as Setting

from gradcamo_assets.cells import open_crops
from gradcamo_assets.cells.cell_rows import sample_cells
from gradcamo_assets.csv_text import to_csv
from gradcamo_assets.defs.assets.model_assets import crop_paths, kept_cells, trained_model
from gradcamo_assets.defs.assets.qc_assets import markdown_table
from gradcamo_assets.defs.launchpad import settings_metadata
from gradcamo_assets.defs.partitions import ON_INPUT_CHANGE
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.report import accuracy_against_score, layer_scores, paired_differences
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.training.model_registry import CHALLENGER, CHAMPION

_MAX_VERSIONS = 12


@dg.asset(
    deps=["gradcamo_scores", trained_model], group_name="qc", kinds={"polars"}, automation_condition=ON_INPUT_CHANGE
)
@explain_storage_errors
def model_comparison(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Accuracy and map scores by version on held-out cells, and differences from the champion on the same cells."""
    from gradcamo_assets.training.compare import differences_from_champion, held_out_cells, summarise_versions

    registry = platform.registry
    champion = registry.by_alias(CHAMPION)
    versions = [version for version in registry.versions()[-_MAX_VERSIONS:] if version != champion]
    versions += [champion] if champion else []
    cells = {version.version: held_out_cells(platform.lake, registry, version) for version in versions}
    layers = {row["model_version"]: row["layer"] for row in registry.version_rows()}
    name = pl.format("version {}, {}", "model_version", pl.col("model_version").replace_strict(layers, default="?"))
    points = summarise_versions(cells)
    figure = accuracy_against_score(points.with_columns(name=name))
    metadata: dict[str, Any] = {
        "versions": len(versions),
        **show_picture(
            context, platform.home, "accuracy_against_on_target", figure, "Accuracy against share on target"
        ),
        "side_by_side": dg.MetadataValue.md(markdown_table(points)),
    }
    if champion:
        pairs = differences_from_champion(cells, champion.version)
        pairs = pairs.with_columns(name=pl.format("version {}", "model_version"))
        figure, alt = paired_differences(pairs), "Other versions less the champion, on the same cells"
        metadata |= {
            "champion": champion.version,
            **show_picture(context, platform.home, "differences", figure, alt),
            "paired_with_the_champion": dg.MetadataValue.md(markdown_table(pairs.drop("name"))),
        }
    return dg.MaterializeResult(metadata=metadata)


class ExplorationConfig(dg.Config):
    """Settings to try, on the wells of the version's data split."""

    version: int | None = Setting(default=None, description="Version to start from; default: the champion.")
    plates: list[str] = Setting(default=[], description="Plates of its data split to use; default: all.")
    cells: int = Setting(
        default=1000, description="Maximum number of cells per part of the split; the sample is reproducible."
    )
    layers: list[str] = Setting(
        default=[], description="Dotted names of layers to explain; default: the last block of each stage."
    )
    crop_sizes: list[int] = Setting(
        default=[], description="In-plane crop sizes, voxels; default: the full size, 3/4 and 1/2."
    )
    maskings: list[str] = Setting(
        default=["none", "target"], description="Maskings to train with: none, target, background."
    )
    epochs: int = Setting(default=8, description="Epochs of each training; 0: compare layers only.")


@dg.asset(deps=[trained_model], group_name="models", kinds={"pytorch"}, pool="training")
@explain_storage_errors
def encoder_exploration(
    context: dg.AssetExecutionContext, platform: Platform, config: ExplorationConfig
) -> dg.MaterializeResult:
    """Accuracy and map scores for several layers to explain, and for several crop sizes and maskings in training."""
    from gradcamo_assets.networks.bundle import load_bundle
    from gradcamo_assets.training.evaluation import to_model_input
    from gradcamo_assets.training.explore import crop_sweep, find_stage_ends, layer_sweep
    from gradcamo_assets.training.split import PARTS, part_of_well
    from gradcamo_assets.training.training_run import common_geometry, labelled_crops

    registry = platform.registry
    matching = [version for version in registry.versions() if version.version == config.version]
    version = matching[0] if matching else registry.by_alias(CHAMPION) or registry.by_alias(CHALLENGER)
    if config.version and not matching:
        raise GradcamoError(f"there is no version {config.version}", "Give the number of a registered version.")
    if version is None:
        raise GradcamoError("there is no registered version", "Launch train_model.")
    modules = platform.settings.encoders.modules
    model, bundle = load_bundle(registry.fetch(version), modules)
    cells = kept_cells(platform, config.plates).with_columns(split=part_of_well(bundle.split))
    cells = cells.filter(pl.col("treatment_class").is_in(bundle.classes))
    chosen = {part: sample_cells(cells.filter(split=part), config.cells) for part in PARTS}
    if not all(len(chosen[part]) for part in ("train", "test")):
        raise GradcamoError(
            f"the training or test wells of {version} have no crops", "Launch process_fields for their plates."
        )
    fields = [open_crops(path) for path in crop_paths(platform, pl.concat(chosen.values()))]
    common_geometry(fields)
    crops = {part: labelled_crops(cells, fields, bundle.classes, bundle.channels) for part, cells in chosen.items()}
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
            work=platform.home.mlflow, report=context.log.info, modules=modules,
        )  # fmt: skip
        named = tables["crops"].with_columns(
            name=pl.format("{} voxels", "size"), part=pl.format("masking {}", "masking")
        )
        figures["crops"] = accuracy_against_score(named)
        metadata |= settings_metadata(training=training)
    for name, table in tables.items():
        write_bytes(platform.home.reports / f"exploration_{name}.csv", to_csv(table).encode())
        metadata |= show_picture(context, platform.home, f"{name}_figure", figures[name], f"Sweep over {name}")
        metadata[f"{name}_table"] = dg.MetadataValue.md(markdown_table(table))
        metadata[f"{name}_file"] = dg.MetadataValue.path(f"reports/exploration_{name}.csv")
    return dg.MaterializeResult(metadata=metadata)
