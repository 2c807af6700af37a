"""The ``gradcamo`` command: parses, calls, prints. Whatever it does can be done from Python too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home

_SHORTCUT = click.option(
    "--shortcut",
    type=click.Choice(["none", "background", "neighbour"]),
    default="none",
    show_default=True,
    help="Where the dose shows: in the cell, or outside it, so that an encoder can cheat.",
)
_LABELS = click.option(
    "--labels",
    type=click.Choice(["well", "cell"]),
    default="well",
    show_default=True,
    help="One treatment a well, or one a cell (a pooled screen).",
)
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)


class _Commands(click.Group):
    """Turns our errors into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GradcamoError as error:
            click.echo(f"gradcamo: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gradcamo-assets")
def main() -> None:
    """Does a single-cell profile look at its cell? Data lives under GRADCAMO_HOME (default: data/)."""


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


def _shape(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int, int]:
    parts = value.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise click.BadParameter("give Z,Y,X, for example 12,160,160")
    return int(parts[0]), int(parts[1]), int(parts[2])


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--plate", default="synthetic", show_default=True, help="Name of the plate.")
@click.option("--wells", type=int, default=24, show_default=True)
@click.option("--sites", type=int, default=2, show_default=True)
@click.option("--shape", callback=_shape, default="12,160,160", show_default=True, help="Z,Y,X of a field in voxels.")
@click.option("--channels", type=int, default=5, show_default=True, help="Stains, 4 to 6.")
@click.option("--doses", type=int, default=3, show_default=True)
@click.option("--cells", type=int, default=10, show_default=True, help="Cells a field, on average.")
@click.option(
    "--background-shift",
    type=int,
    help="With --shortcut background: cells show their class too, and the background that of the class so many places "
    "on; 0: their own.",
)
@_SHORTCUT
@_LABELS
@_SEED
def synth(directory: Path, plate: str, **options: object) -> None:
    """Write one synthetic OME-Zarr HCS plate with plate map and true masks into DIRECTORY."""
    from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate

    directory.mkdir(parents=True, exist_ok=True)
    config = SyntheticPlate(name=plate, **options)  # type: ignore[arg-type]
    click.echo(write_synthetic_plate(directory, config, progress=sys.stderr.isatty()))


_FORMAT = click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)


def _database() -> Path:
    """The QC database; published again where it reads the lake of another place, since the home was moved."""
    from gradcamo_assets.tables import Lake, publish, published_for

    home = Home.from_environment()
    if home.database.exists() and not published_for(Lake(home.lake), home.database):
        publish(Lake(home.lake), home.database)
    return home.database


@main.command()
@click.argument("query")
@_FORMAT
def sql(query: str, form: str) -> None:
    """Run a read-only QUERY on the QC database."""
    from gradcamo_assets.tables import render, run_sql

    render(run_sql(_database(), query), form)  # type: ignore[arg-type]


class _QcTable(click.ParamType):
    """The choices of ``qc_table``, looked up when they are needed: polars and DuckDB take half a second to import."""

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
@click.option("--plate", metavar="NAME", help="Only this plate.")
@_FORMAT
def qc(by: str, plate: str | None, form: str) -> None:
    """Print a ready-made QC table of the champion model, or the answer to a question."""
    from gradcamo_assets.tables import qc_table, render

    table = qc_table(_database(), by=by, plate=plate)
    render(table, form)  # type: ignore[arg-type]
    if table.is_empty():
        click.echo("No row. What the champion has yet to score: gradcamo sql 'SELECT * FROM stale_scores'", err=True)


@main.command()
@click.option("--full", is_flag=True, help="Look into files of plates that are in, not only at names and sizes.")
@click.option("--retry", metavar="PLATE", help="Forget the failures of PLATE first: it is tried again.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def inbox(full: bool, retry: str | None, form: str) -> None:
    """List the plates in the inbox, what is to become of each, and why."""
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
            there = f"There are: {', '.join(names) or 'none'}."
            raise GradcamoError(f"the inbox holds no plate {retry!r}", there, path=home.inbox)
        forget_failures(home.plates, retry)
        states = read_inbox(home, now, depth=depth).states
    rows = [(state.name, state.state, state.reason) for state in states]
    columns = dict.fromkeys(["plate", "state", "reason"], pl.String)
    render(pl.DataFrame(rows, columns, orient="row"), form)  # type: ignore[arg-type]
    if form == "table":  # It cuts long texts.
        click.echo("".join(f"\n{name}: {reason}" for name, _, reason in rows if len(reason) > 60))


@main.command()
@click.option("--plate", metavar="NAME", help="The plate; with --scores, all plates where it is left out.")
@click.option("--crops", is_flag=True, help="Its crops; they can be cut again.")
@click.option("--scores", type=int, metavar="MODEL_VERSION", help="What a version that is not champion computed.")
@click.option("--all", "everything", is_flag=True, help="All of a plate that no longer lies in the inbox.")
@click.option("--unused", is_flag=True, help="Earlier masks and crops, and what models computed that MLflow has lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(plate: str | None, crops: bool, scores: int | None, everything: bool, unused: bool, yes: bool) -> None:
    """Show what would be deleted, ask, and delete it. Never from the inbox."""
    if crops + (scores is not None) + everything + unused != 1:
        raise click.UsageError("Give one of --crops, --scores MODEL_VERSION, --all and --unused.")
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
    plan.carry_out()
    click.echo("Deleted. The rows leave qc.duckdb with its next publication (job refresh_qc).")


@main.command()
def publish() -> None:
    """Publish qc.duckdb from the lake now; after a home was moved, too."""
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.tables import publish as publish_lake

    platform = Platform()
    done = publish_lake(platform.lake, platform.home.database)
    click.echo(f"{platform.home.database}: {', '.join(done.changed) or 'nothing has changed'} ({done.seconds:.1f} s)")


@main.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept in the table promotions.")
def promote(version: int, reason: str) -> None:
    """Make VERSION of the encoder the champion: an older one, too. What it has not scored is scored by it."""
    from getpass import getuser

    from gradcamo_assets.defs.automation.pending import scoring_state
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.training import promotion

    platform = Platform()
    lake, registry = platform.lake, platform.registry
    found = promotion.find_version(registry, version)
    promotion.promote(lake, registry, found, by=getuser(), reason=reason)
    state = scoring_state(lake, registry, found)
    click.echo(f"{found} is champion.")
    if state.todo:
        click.echo(f"champion_model_sensor (gradcamo ui) rescores {len(state.todo)} plate x site:")
    else:
        click.echo("Nothing is left to score; champion_model_sensor (gradcamo ui) publishes the QC database.")
    for plate in sorted({plate for plate, _ in state.todo}):
        click.echo(f"  {plate}: sites {', '.join(str(site) for name, site in state.todo if name == plate)}")
    for reason in sorted({f"{plate} is left out: {reason}" for (plate, _), reason in state.refused.items()}):
        click.echo(f"  {reason}")


def _listed(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return [part.strip() for part in value.split(",")] if value else None


@main.command()
@click.argument("encoder", metavar="MODULE:FUNCTION")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True)
@click.option("--classes", callback=_listed, required=True, metavar="A,B,...", help="Class of each logit, in order.")
@click.option("--layer", help="Dotted name of the layer to explain; by default the one FUNCTION names.")
@click.option("--plate", help="Take channels, crop shape and voxel size from the crops of this plate.")
@click.option("--channels", callback=_listed, metavar="A,B,...", help="Stains in the order of its input.")
@click.option("--crop-shape", callback=_listed, metavar="Z,Y,X", help="Voxels; Z is 1 for a 2D network.")
@click.option("--voxel-size", callback=_listed, metavar="Z,Y,X", help="Micrometres.")
def register(encoder: str, plate: str | None, **given: Any) -> None:
    """Register an encoder that was trained elsewhere: FUNCTION(channels, classes) builds it, safetensors fill it."""
    from gradcamo_assets.cells import open_crops
    from gradcamo_assets.defs.field_results import crop_folder
    from gradcamo_assets.defs.resources import Platform
    from gradcamo_assets.names import plate_name
    from gradcamo_assets.training.register_model import register_weights

    platform = Platform()
    if plate is not None:
        rows = platform.lake.read("crops", plate=plate_name(plate)).drop_nulls("crop_index")
        if rows.is_empty():
            raise GradcamoError(
                "the plate has no crops", "Give --channels, --crop-shape and --voxel-size.", plate=plate
            )
        crops = open_crops(crop_folder(platform.home, rows.row(0, named=True)))
        like = {"channels": crops.channels, "crop_shape": crops.images.shape[2:], "voxel_size": crops.voxel_size}
        given |= {name: value for name, value in like.items() if given[name] is None}
    if missing := [
        f"--{name.replace('_', '-')}" for name in ("channels", "crop_shape", "voxel_size") if not given[name]
    ]:
        raise click.UsageError(f"Give --plate, or {', '.join(missing)}.")
    try:
        given["crop_shape"] = [int(n) for n in given["crop_shape"]]
        given["voxel_size"] = [float(um) for um in given["voxel_size"]]
    except ValueError as error:
        raise click.UsageError(f"--crop-shape and --voxel-size are numbers: {error}") from error
    version = register_weights(platform.registry, encoder, **given)
    click.echo(f"{version} is registered as challenger. It scores after: gradcamo promote {version.version}")


@main.command()
@click.option("--port", type=int, default=3000, show_default=True, help="Of the Dagster UI.")
@click.option("--mlflow-port", type=int, default=5000, show_default=True)
def ui(port: int, mlflow_port: int) -> None:
    """Serve the Dagster UI (with its daemon) and the MLflow UI on loopback."""
    from gradcamo_assets.defs.serve import serve

    sys.exit(serve(Home.from_environment(), port=port, mlflow_port=mlflow_port))
