"""What runs are about to make, written down before its files, so that ``prune`` leaves it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradcamo_assets.home import Home
from gradcamo_assets.names import check_name, check_plate_name
from gradcamo_assets.storage import remove, write_json


@contextmanager
def announced(home: Home, run_id: str, store: Path, plate: str, site: int) -> Iterator[None]:
    """Say that a run makes new versions in ``store`` (masks or crops) of a plate x site, until the lake names them.

    What a killed run said stays, and counts as long as Dagster does not know the run to have ended.
    """
    place = {"run": run_id, "store": store.name, "plate": check_plate_name(plate), "site": site}
    file = home.unfinished / f"{check_name(run_id, 'run')}.{store.name}.json"
    write_json(file, place)
    yield
    remove(file)
