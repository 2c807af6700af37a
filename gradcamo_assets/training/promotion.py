"""The registry as the lake knows it: versions, and every move of the champion alias with its time and reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
from filelock import FileLock

from gradcamo_assets.errors import BundleError
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.training.model_registry import CHAMPION, ModelRegistry, ModelVersion

SEEN_IN_MLFLOW = "moved in MLflow"


def champion_moves(lake: Lake, model_name: str) -> pl.DataFrame:
    """Moves of the champion alias of one model, oldest first."""
    return lake.read("promotions").filter(model_name=model_name, alias=CHAMPION).sort("promoted_at")


def record_champion(lake: Lake, registry: ModelRegistry, *, by: str, reason: str = SEEN_IN_MLFLOW) -> bool:
    """Append a row to ``promotions`` if the champion is not the one last recorded. Whether it moved.

    A champion is another one if its MLflow run is, or its number.

    Connection errors of the registry pass through, so that an unreachable server is never taken for a move.
    """
    # The sensor and a publishing run may see the same move at the same time; it is one row.
    with _lock(lake):
        return _record(lake, registry, by, reason)


def promote(lake: Lake, registry: ModelRegistry, version: ModelVersion, *, by: str, reason: str) -> None:
    """Make a version the champion and record who did it and why.

    Raises:
        BundleError: if its bundle is damaged; the champion stays who it was.
    """
    load_bundle(registry.fetch(version))
    # A sensor that saw the move first would record it without its reason.
    with _lock(lake):
        _record(lake, registry, "unknown", SEEN_IN_MLFLOW)
        registry.promote(version.version, CHAMPION)
        _record(lake, registry, by, reason)


def _lock(lake: Lake) -> FileLock:
    lake.root.mkdir(parents=True, exist_ok=True)
    return FileLock(lake.root / ".champion.lock")


def _record(lake: Lake, registry: ModelRegistry, by: str, reason: str) -> bool:
    champion = registry.by_alias(CHAMPION)
    now = (champion.run_id, champion.version) if champion else (None, None)
    moves, time = champion_moves(lake, registry.name), datetime.now(UTC).replace(tzinfo=None)
    before: tuple[str | None, int | None] = (None, None)
    if len(moves):
        before = moves["to_run"][-1], moves["to_version"][-1]
        # Moves are told apart and put in order by their time, wherever the clock has been set since.
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
    """A version by its number.

    Raises:
        BundleError: if there is none.
    """
    known = {found.version: found for found in registry.versions()}
    if number not in known:
        there = ", ".join(map(str, known)) or "none; launch train_model"
        raise BundleError(f"{registry.name} has no version {number}", f"There are: {there}.")
    return known[number]


def record_versions(lake: Lake, registry: ModelRegistry) -> int:
    """Make ``models`` hold the versions that the registry names now, none besides of this model. How many there are."""
    rows = _frame("models", registry.rows())
    others = lake.read("models").filter(pl.col("model_name") != registry.name)
    lake.replace("models", pl.concat([others, rows]))
    return len(rows)


def _frame(table: str, rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=lake_table(table).empty().schema)
