"""Store the pixels of the crops that a training reads, since it reads them at random."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gradcamo_assets.cells import store_pixels
from gradcamo_assets.home import Home
from gradcamo_assets.storage import remove

_LOG_INTERVAL_SECONDS = 30.0


@contextmanager
def pixels_for_training(
    home: Home, paths: Sequence[Path], run_id: str, report: Callable[[str], None], keep: bool
) -> Iterator[list[Path]]:
    """Yield the folders of the stored crops of some fields; store what is missing.

    Args:
        paths: recorded crops.
        run_id: the run that trains.
        report: called with lines about the progress.
        keep: keep the pixels beside the crops; otherwise they are removed at the end.

    Raises:
        CropError: if crops cannot be cut.
    """
    folder = home.training / run_id
    stored, logged_at = [], time.monotonic()
    try:
        for number, path in enumerate(paths, start=1):
            stored.append(store_pixels(path, None if keep else folder / str(number)))
            if time.monotonic() - logged_at > _LOG_INTERVAL_SECONDS:
                logged_at = time.monotonic()
                report(f"crops of {number} of {len(paths)} fields stored")
        yield stored
    finally:
        remove(folder)
