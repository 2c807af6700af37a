"""The ``gradcamo`` command line. Every command is also available as a Python function."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.storage import exists
from gradcamo_assets.storage_errors import explained_storage_errors

_SHORTCUT = click.option(
    "--shortcut",
    type=click.Choice(["none", "background", "neighbour"]),
    default="none",
    show_default=True,
    help="Where the dose is visible: in the cell, or outside it, so that an encoder can cheat.",
)
_LABELS = click.option(
    "--labels",
    type=click.Choice(["well", "cell"]),
    default="well",
    show_default=True,
    help="One treatment per well, or per cell (a pooled screen).",
)
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)


class _Commands(click.Group):
    """Command group that reports GradcamoErrors, and errors of the disk, as one line on stderr, with exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            with explained_storage_errors():
                return super().invoke(ctx)
        except GradcamoError as error:
            click.echo(f"gradcamo: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gradcamo-assets")
def main() -> None:
    """Measure whether single-cell profiles describe their cell. Data are stored in GRADCAMO_HOME (default: data/)."""


@main.command()
@click.option(
    "--quick",
    is_flag=True,
    help="A first look, within a minute: 8 wells, 4 epochs; audit, profiles, map of cells and report are left out.",
)
@_SHORTCUT
@_LABELS
@_SEED
@click.option(
    "--cure",
    is_flag=True,
    help="With --shortcut background: cells show the dose too; four encoders, plain to cured, are tried on a second "
    "plate without the shortcut.",
)
def demo(quick: bool, shortcut: str, labels: str, seed: int, cure: bool) -> None:
    """Synthesise a small plate, run every asset on it, print the QC table per dose and site."""
    if cure and (quick or shortcut != "background"):
        raise click.UsageError("--cure goes with --shortcut background, and without --quick.")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from gradcamo_assets.defs.demo import demo_plates, run_demo

    run_demo(Home.from_environment(), *demo_plates(shortcut, labels, seed, cure, quick), quick=quick)


def _parse_shape(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int, int]:
    parts = value.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise click.BadParameter(f"expected Z,Y,X, for example 12,160,160, got {value!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--plate", default="synthetic", show_default=True, help="Name of the plate.")
@click.option("--wells", type=int, default=24, show_default=True)
@click.option("--sites", type=int, default=2, show_default=True)
@click.option(
    "--shape", callback=_parse_shape, default="12,160,160", show_default=True, help="Size Z,Y,X of a field, voxels."
)
@click.option("--channels", type=int, default=5, show_default=True, help="Number of stains, 4 to 6.")
@click.option("--doses", type=int, default=3, show_default=True)
@click.option("--cells", type=int, default=10, show_default=True, help="Mean number of cells per field.")
@click.option(
    "--background-shift",
    type=int,
    help="With --shortcut background: cells also show their class, and the background shows the class this many "
    "positions further on; 0: their own class.",
)
@_SHORTCUT
@_LABELS
@_SEED
def synth(directory: Path, plate: str, **options: object) -> None:
    """Write a synthetic OME-Zarr HCS plate with plate map and true masks to DIRECTORY."""
    from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate

    directory.mkdir(parents=True, exist_ok=True)
    config = SyntheticPlate(name=plate, **options)  # type: ignore[arg-type]
    click.echo(write_synthetic_plate(directory, config, progress=sys.stderr.isatty()))


_FORMAT = click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)


def _current_database() -> Path:
    """The path of the QC database, which is published again first if the home was moved since."""
    from gradcamo_assets.tables import Lake, is_published_from, publish

    home = Home.from_environment()
    if exists(home.database) and not is_published_from(Lake(home.lake), home.database):
        publish(Lake(home.lake), home.database)
    return home.database


@main.command()
@click.argument("query")
@_FORMAT
def sql(query: str, form: str) -> None:
    """Run a read-only QUERY on the QC database."""
    from gradcamo_assets.tables import render, run_sql

    render(run_sql(_current_database(), query), form)  # type: ignore[arg-type]


class _QcTable(click.ParamType):
    """The choices of ``qc_table``, imported on use, since polars and DuckDB take half a second to import."""

    name = "table"

    @property
    def _choice(self) -> click.Choice:
        from gradcamo_assets.tables.queries import QC_CHOICES

        return click.Choice(QC_CHOICES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._choice.convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._choice.get_metavar(param, ctx)


@main.command()
@click.option("--by", type=_QcTable(), default="dose,site", show_default=True)
@click.option("--plate", metavar="NAME", help="Show this plate only.")
@_FORMAT
def qc(by: str, plate: str | None, form: str) -> None:
    """Print a QC table or the answer to a question about the champion model."""
    from gradcamo_assets.tables import qc_table, render

    table = qc_table(_current_database(), by=by, plate=plate)
    render(table, form)  # type: ignore[arg-type]
    if table.is_empty():
        click.echo(
            "No rows. To see what the champion has not scored yet: gradcamo sql 'SELECT * FROM stale_scores'", err=True
        )


@main.command()
@click.option("--full", is_flag=True, help="Inspect the content of ingested plates' files, not only names and sizes.")
@click.option("--retry", metavar="PLATE", help="Forget the failures of PLATE, so that it is ingested again.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def inbox(full: bool, retry: str | None, form: str) -> None:
    """List the plates in the inbox with their state and the reason."""
    from datetime import UTC, datetime

    import polars as pl

    from gradcamo_assets.defs.automation.pending import read_inbox
    from gradcamo_assets.plates.failures import forget_failures
    from gradcamo_assets.plates.inbox import Depth
    from gradcamo_assets.tables import render

    home = Home.from_environment()
    now = datetime.now(UTC)
    depth: Depth = "contents" if full else "names"
    states = read_inbox(home, now, depth=depth).states
    if retry is not None:
        names = sorted({state.name for state in states})
        if retry not in names:
            remedy = f"Plates in the inbox: {', '.join(names) or 'none'}."
            raise GradcamoError(f"the inbox has no plate {retry!r}", remedy, path=home.inbox)
        forget_failures(home.plates, retry)
        states = read_inbox(home, now, depth=depth).states
    rows = [(state.name, state.state, state.reason) for state in states]
    columns = dict.fromkeys(["plate", "state", "reason"], pl.String)
    render(pl.DataFrame(rows, columns, orient="row"), form)  # type: ignore[arg-type]
    if form == "table":  # The table truncates long texts.
        click.echo("".join(f"\n{name}: {reason}" for name, _, reason in rows if len(reason) > 60))


@main.command()
@click.option("--plate", metavar="NAME", help="Plate to prune; with --scores, default: all plates.")
@click.option(
    "--crops", is_flag=True, help="Delete the stored pixels of the plate's crops; they are cut again where needed."
)
@click.option(
    "--scores", type=int, metavar="MODEL_VERSION", help="Delete the results of a version that is not the champion."
)
@click.option("--all", "everything", is_flag=True, help="Delete all data of a plate that is no longer in the inbox.")
@click.option(
    "--unused", is_flag=True, help="Delete outdated masks and crops, and results of models deleted from MLflow."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def prune(plate: str | None, crops: bool, scores: int | None, everything: bool, unused: bool, yes: bool) -> None:
    """Show the data to delete, ask for confirmation and delete them. The inbox is never changed."""
    if crops + (scores is not None) + everything + unused != 1:
        raise click.UsageError("Give exactly one of --crops, --scores MODEL_VERSION, --all and --unused.")
    if plate is None and scores is None and not unused:
        raise click.UsageError("Give --plate NAME.")
    from gradcamo_assets.defs import prune as pruning
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.defs.serve import open_instance
    from gradcamo_assets.tables import render

    platform = Platform()
    home, lake = platform.home, platform.lake
    if unused:
        plan = pruning.plan_unused(home, lake, platform.registry, open_instance(home))
    elif scores is not None:
        plan = pruning.plan_scores(home, lake, platform.registry, scores, plate)
    else:
        plan = (pruning.plan_crops if crops else pruning.plan_plate)(home, lake, str(plate))
    render(plan.table())
    if not yes:
        click.confirm("Delete this?", abort=True)
    plan.execute()
    click.echo("Deleted. The next publication (job refresh_qc) removes the rows from qc.duckdb.")


@main.command()
def publish() -> None:
    """Publish qc.duckdb from the lake now, for example after moving GRADCAMO_HOME."""
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.tables import publish as publish_lake

    platform = Platform()
    publication = publish_lake(platform.lake, platform.home.database)
    changes = ", ".join(publication.changed) or "no changes"
    click.echo(f"{platform.home.database}: {changes} ({publication.seconds:.1f} s)")


@main.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--reason", default="by hand", show_default=True, help="Reason, recorded in the table promotions.")
def promote(version: int, reason: str) -> None:
    """Make VERSION of the encoder the champion, also an older one. It scores the crops that it has not scored."""
    from getpass import getuser

    from gradcamo_assets.defs.automation.pending import scoring_state
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.training import promotion

    platform = Platform()
    lake, registry = platform.lake, platform.registry
    champion = promotion.find_version(registry, version)
    modules = platform.settings.encoders.modules
    promotion.promote(lake, registry, champion, by=getuser(), reason=reason, modules=modules)
    state = scoring_state(lake, registry, champion)
    click.echo(f"{champion} is champion.")
    if state.todo:
        click.echo(f"champion_model_sensor (gradcamo ui) rescores {len(state.todo)} plate x site:")
    else:
        click.echo("It has scored all crops; champion_model_sensor (gradcamo ui) publishes the QC database.")
    for plate in sorted({plate for plate, _ in state.todo}):
        click.echo(f"  {plate}: sites {', '.join(str(site) for name, site in state.todo if name == plate)}")
    for reason in sorted({f"{plate} cannot be scored: {reason}" for (plate, _), reason in state.refused.items()}):
        click.echo(f"  {reason}")


def _split_list(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return [part.strip() for part in value.split(",")] if value else None


@main.command()
@click.argument("encoder", metavar="MODULE:FUNCTION")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True)
@click.option(
    "--classes", callback=_split_list, required=True, metavar="A,B,...", help="Classes, in the order of the logits."
)
@click.option("--layer", help="Dotted name of the layer to explain; default: the one that FUNCTION returns.")
@click.option("--plate", help="Take channels, crop shape and voxel size from the crops of this plate.")
@click.option("--channels", callback=_split_list, metavar="A,B,...", help="Stains, in the order of the input channels.")
@click.option("--crop-shape", callback=_split_list, metavar="Z,Y,X", help="Crop size, voxels; Z is 1 for a 2D network.")
@click.option("--voxel-size", callback=_split_list, metavar="Z,Y,X", help="Voxel size, micrometres.")
def register(encoder: str, plate: str | None, **given: Any) -> None:
    """Register an encoder trained elsewhere. FUNCTION(channels, classes) builds it; --weights is a safetensors file."""
    from gradcamo_assets.cells import open_crops
    from gradcamo_assets.defs.field_results import crop_folder
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.names import check_plate_name
    from gradcamo_assets.training.register_model import register_weights

    platform = Platform()
    if plate is not None:
        rows = platform.lake.read("crops", plate=check_plate_name(plate)).drop_nulls("crop_index")
        if rows.is_empty():
            raise GradcamoError(
                "the plate has no crops", "Give --channels, --crop-shape and --voxel-size.", plate=plate
            )
        crops = open_crops(crop_folder(platform.home, rows.row(0, named=True)))
        defaults = {"channels": crops.channels, "crop_shape": crops.crop_shape, "voxel_size": crops.voxel_size}
        given |= {name: value for name, value in defaults.items() if given[name] is None}
    if missing := [
        f"--{name.replace('_', '-')}" for name in ("channels", "crop_shape", "voxel_size") if not given[name]
    ]:
        raise click.UsageError(f"Give --plate or {', '.join(missing)}.")
    try:
        given["crop_shape"] = [int(n) for n in given["crop_shape"]]
        # The crops of a plate may not state their size.
        given["voxel_size"] = [None if um is None else float(um) for um in given["voxel_size"]]
    except ValueError as error:
        raise click.UsageError(f"--crop-shape and --voxel-size must be numbers: {error}") from error
    version = register_weights(platform.registry, encoder, **given, modules=platform.settings.encoders.modules)
    click.echo(f"{version} is registered as challenger. To score with it: gradcamo promote {version.version}")


@main.command()
@click.option("--port", type=int, default=3000, show_default=True, help="Of the Dagster UI.")
@click.option("--mlflow-port", type=int, default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--behind-proxy", is_flag=True, help="A proxy with a login is in front of both ports; other hosts require it."
)
def ui(**options: Any) -> None:
    """Serve the Dagster UI (with its daemon) and the MLflow UI on loopback."""
    from gradcamo_assets.defs.serve import serve

    sys.exit(serve(Home.from_environment(), **options))
