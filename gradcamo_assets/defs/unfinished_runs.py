"""Announce the folders that running jobs are about to write, so that ``prune`` does not delete them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradcamo_assets.home import Home
from gradcamo_assets.names import check_name, check_plate_name
from gradcamo_assets.storage import remove, write_json


@contextmanager
def announce_outputs(home: Home, run_id: str, store: Path, plate: str, site: int) -> Iterator[None]:
    """Announce that a run writes new versions in ``store`` (masks or crops) of a plate x site until the block ends.

    By then the lake contains the versions. The announcement of a killed run remains and counts until Dagster reports
    that the run has finished.
    """
    place = {"run": run_id, "store": store.name, "plate": check_plate_name(plate), "site": site}
    file = home.unfinished / f"{check_name(run_id, 'run')}.{store.name}.json"
    write_json(file, place)
    yield
    remove(file)
