"""Record the registry in the lake: its versions, and every move of the champion alias with time and reason."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import polars as pl
from filelock import FileLock

from gradcamo_assets.errors import BundleError
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry, ModelVersion

MOVED_IN_MLFLOW = "moved in MLflow"


def champion_moves(lake: Lake, model_name: str) -> pl.DataFrame:
    """Return the moves of a model's champion alias, oldest first."""
    return lake.read("promotions").filter(model_name=model_name, alias=CHAMPION).sort("promoted_at")


def record_champion(lake: Lake, registry: ModelRegistry, *, by: str, reason: str = MOVED_IN_MLFLOW) -> bool:
    """Append a row to ``promotions`` if the champion differs from the last recorded one; tell whether it does.

    Champions differ if their MLflow run or their version number differs.

    Connection errors of the registry are raised, so an unreachable server is never recorded as a move.
    """
    # The lock prevents a second row when the sensor and a publishing run see the same move.
    with _lock(lake):
        return _record_if_moved(lake, registry, by, reason)


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
    # Without the lock the sensor could record the move first, without its reason.
    with _lock(lake):
        _record_if_moved(lake, registry, "unknown", MOVED_IN_MLFLOW)
        registry.promote(version.version, CHAMPION)
        _record_if_moved(lake, registry, by, reason)


def _lock(lake: Lake) -> FileLock:
    lake.root.mkdir(parents=True, exist_ok=True)
    return FileLock(lake.root / ".champion.lock")


def _record_if_moved(lake: Lake, registry: ModelRegistry, by: str, reason: str) -> bool:
    champion = registry.by_alias(CHAMPION)
    now = (champion.run_id, champion.version) if champion else (None, None)
    moves, time = champion_moves(lake, registry.name), datetime.now(UTC).replace(tzinfo=None)
    before: tuple[str | None, int | None] = (None, None)
    if len(moves):
        before = moves["to_run"][-1], moves["to_version"][-1]
        # The time identifies and orders the moves, so it must increase even if the clock was set back.
        time = max(time, moves["promoted_at"][-1] + timedelta(microseconds=1))
    if before == now:
        return False
    row = {
        "model_name": registry.name,
        "alias": CHAMPION,
        "from_version": before[1],
        "to_version": now[1],
        "from_run": before[0],
        "to_run": now[0],
        "promoted_at": time,
        "promoted_by": by,
        "reason": reason,
    }
    lake.append("promotions", _frame("promotions", [row]))
    return True


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
