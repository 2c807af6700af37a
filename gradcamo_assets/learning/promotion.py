"""The registry as the lake knows it: versions, and every move of the champion alias with its time and reason."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
from filelock import FileLock

from gradcamo_assets.learning.registry import CHAMPION, ModelRegistry, ModelVersion
from gradcamo_assets.warehouse import Lake
from gradcamo_assets.warehouse.schema import lake_table

SEEN_IN_MLFLOW = "moved in MLflow"


def champion_moves(lake: Lake, model_name: str) -> pl.DataFrame:
    """Moves of the champion alias of one model, oldest first."""
    return lake.read("promotions").filter(model_name=model_name, alias=CHAMPION).sort("promoted_at")


def record_champion(lake: Lake, registry: ModelRegistry, *, by: str, reason: str = SEEN_IN_MLFLOW) -> bool:
    """Append a row to ``promotions`` if the champion is not the one last recorded. Whether it moved.

    Connection errors of the registry pass through, so that an unreachable server is never taken for a move.
    """
    champion = registry.by_alias(CHAMPION)
    now = champion.version if champion else None
    lake.root.mkdir(parents=True, exist_ok=True)
    # The sensor and a publishing run may see the same move at the same time; it is one row.
    with FileLock(lake.root / ".champion.lock"):
        moves = champion_moves(lake, registry.name)
        before = moves["to_version"][-1] if len(moves) else None
        if before == now:
            return False
        row = {
            "model_name": registry.name,
            "alias": CHAMPION,
            "from_version": before,
            "to_version": now,
            "promoted_at": datetime.now(UTC).replace(tzinfo=None),
            "promoted_by": by,
            "reason": reason,
        }
        lake.append("promotions", _frame("promotions", [row]))
    return True


def promote(lake: Lake, registry: ModelRegistry, version: ModelVersion, *, by: str, reason: str) -> None:
    """Make a version the champion and record who did it and why."""
    registry.promote(version.version, CHAMPION)
    record_champion(lake, registry, by=by, reason=reason)


def record_versions(lake: Lake, registry: ModelRegistry) -> int:
    """Write every registered version into ``models``. How many there are."""
    rows = registry.rows()
    if rows:
        lake.append("models", _frame("models", rows))
    return len(rows)


def _frame(table: str, rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=lake_table(table).empty().schema)
