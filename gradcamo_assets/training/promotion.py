"""Record the registry in the lake: its versions, and every move of the champion alias with time and reason."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import polars as pl

from gradcamo_assets.errors import BundleError
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry, ModelVersion

MOVED_IN_MLFLOW = "moved in MLflow"


def champion_moves(lake: Lake, model_name: str) -> pl.DataFrame:
    """Return the moves of a model's champion alias, oldest first."""
    return _moves(lake.read("promotions"), model_name)


def _moves(rows: pl.DataFrame, model_name: str) -> pl.DataFrame:
    return rows.filter(model_name=model_name, alias=CHAMPION).sort("promoted_at")


def record_champion(lake: Lake, registry: ModelRegistry, *, by: str, reason: str = MOVED_IN_MLFLOW) -> bool:
    """Append a row to ``promotions`` if the champion differs from the last recorded one; tell whether it does.

    Champions differ if their MLflow run or their version number differs. Of several processes that see the same move,
    one records it.

    Connection errors of the registry are raised, so an unreachable server is never recorded as a move.
    """
    return _record(lake, registry, by, reason)


def promote(
    lake: Lake, registry: ModelRegistry, version: ModelVersion, *, by: str, reason: str, modules: Collection[str] = ()
) -> None:
    """Make a version the champion and record who promoted it and why.

    Args:
        modules: modules of which a bundle may name an encoder; see ``networks.encoders.build_encoder``.

    Raises:
        BundleError: if its bundle is damaged or cannot be loaded; the champion does not change.
    """
    load_bundle(registry.fetch(version), modules)
    _record(lake, registry, "unknown", MOVED_IN_MLFLOW)
    before = champion_moves(lake, registry.name)
    registry.promote(version.version, CHAMPION)
    _record(lake, registry, by, reason, before)


def _record(lake: Lake, registry: ModelRegistry, by: str, reason: str, before: pl.DataFrame | None = None) -> bool:
    """Record the champion if it moved. A move later than ``before`` that a sensor saw first gets the reason."""
    champion = registry.by_alias(CHAMPION)
    changed: list[bool] = []

    def add_move(rows: pl.DataFrame) -> pl.DataFrame:
        after = _with_move(rows, registry.name, champion, by, reason, before)
        changed[:] = [after is not None]
        return rows if after is None else after

    # Without a move there is nothing to commit.
    add_move(lake.read("promotions"))
    if changed[0]:
        lake.change("promotions", add_move)
    return changed[0]


def _with_move(
    rows: pl.DataFrame, model_name: str, champion: ModelVersion | None, by: str, reason: str,
    before: pl.DataFrame | None,
) -> pl.DataFrame | None:  # fmt: skip
    """The rows of ``promotions`` with the move to the present champion; None: they have it already."""
    now = (champion.run_id, champion.version) if champion else (None, None)
    moves, time = _moves(rows, model_name), datetime.now(UTC).replace(tzinfo=None)
    recorded: tuple[str | None, int | None] = (None, None)
    if len(moves):
        last = moves.row(-1, named=True)
        recorded = last["to_run"], last["to_version"]
        if recorded == now and before is not None and len(moves) > len(before) and last["reason"] == MOVED_IN_MLFLOW:
            is_last = pl.struct("model_name", "alias", "promoted_at") == pl.lit(
                {name: last[name] for name in ("model_name", "alias", "promoted_at")}
            )
            texts = {"promoted_by": by, "reason": reason}
            return rows.with_columns(
                pl.when(is_last).then(pl.lit(text)).otherwise(name).alias(name) for name, text in texts.items()
            )
        # The time identifies and orders the moves, so it must increase even if the clock was set back.
        time = max(time, last["promoted_at"] + timedelta(microseconds=1))
    if recorded == now:
        return None
    row = {
        "model_name": model_name,
        "alias": CHAMPION,
        "from_version": recorded[1],
        "to_version": now[1],
        "from_run": recorded[0],
        "to_run": now[0],
        "promoted_at": time,
        "promoted_by": by,
        "reason": reason,
    }
    return pl.concat([rows, _frame("promotions", [row])])


def find_version(registry: ModelRegistry, number: int) -> ModelVersion:
    """Return the version with a number.

    Raises:
        BundleError: if there is no such version.
    """
    versions = {version.version: version for version in registry.versions()}
    if number not in versions:
        remedy = f"Choose one of {', '.join(map(str, versions))}." if versions else "Launch train_model first."
        raise BundleError(f"{registry.name} has no version {number}", remedy)
    return versions[number]


def record_versions(lake: Lake, registry: ModelRegistry) -> int:
    """Replace this model's rows of ``models`` by the versions now in the registry; return their number."""
    rows = _frame("models", registry.version_rows())
    others = lake.read("models").filter(pl.col("model_name") != registry.name)
    lake.replace("models", pl.concat([others, rows]))
    return len(rows)


def _frame(table: str, rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=lake_table(table).empty().schema)
