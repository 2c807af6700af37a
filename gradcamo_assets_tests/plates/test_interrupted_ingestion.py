"""Ingestions that are killed, run concurrently, or fail."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates import ingest_plate, list_known_plates, load_plate, read_plate_record, sources
from gradcamo_assets.plates.staging import Staging, ingestion_progress, open_staging
from gradcamo_assets.synthetic import write_synthetic_plate
from gradcamo_assets_tests.plates.conftest import TINY
from gradcamo_assets_tests.plates.formats.exports import write_metaxpress

KILLS = 20


def _contents(plates: Path, excluded: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(plates)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(plates.rglob("*"))
        if path.is_file() and path.name not in excluded
    }


def _export(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    wells = [f"{row}{column:02d}" for row in "BC" for column in (2, 3, 4)]
    pixels = {
        (well, site): rng.integers(90, 4000, (3, 4, 96, 96)).astype(np.uint16) for well in wells for site in (1, 2)
    }
    write_metaxpress(folder, pixels)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["export", "ome-zarr"])
def test_a_killed_ingestion_is_completed_by_the_next(kind: str, tiny: Path, tmp_path: Path) -> None:
    source = _export(tmp_path / "inbox" / "killed") if kind == "export" else tiny
    calm, plates = tmp_path / "calm", tmp_path / "plates"
    start = time.perf_counter()
    ingest_plate(source, calm)
    undisturbed = time.perf_counter() - start
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["gradcamo_assets.plates", "ngio", "zarr", "tifffile", "scipy.ndimage"])
    dice = random.Random(7)
    killed = 0
    for _ in range(KILLS // 2):
        process = spawn.Process(target=ingest_plate, args=(source, plates))
        process.start()
        time.sleep(dice.uniform(0.02, 1.2 * undisturbed))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        # A plate that is known is complete.
        if read_plate_record(plates, source.name.removesuffix(".zarr")) is not None:
            assert load_plate(plates, source.name.removesuffix(".zarr")).fields
    assert killed >= KILLS // 4
    ingest_plate(source, plates)
    assert _contents(plates) == _contents(calm)


def test_finished_fields_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, plates = _export(tmp_path / "inbox" / "resumed"), tmp_path / "plates"
    stored: list[str] = []
    store_field = sources.ExportSource.store_field

    def full_disk(self: sources.ExportSource, field: sources.Field, *rest: object) -> None:
        if len(stored) == 5:
            raise OSError(28, "No space left on device")
        stored.append(field.path)
        store_field(self, field, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sources.ExportSource, "store_field", full_disk)
    with pytest.raises(OSError, match="No space"):
        ingest_plate(source, plates)
    assert read_plate_record(plates, "resumed") is None
    first, stored[:] = list(stored), [""] * 6
    ingest_plate(source, plates)
    assert len(first) == 5 and not set(first) & set(stored[6:]) and len(stored[6:]) == 7
    assert [path.name for path in plates.iterdir() if path.name.startswith(".")] == [".locks"]


def test_a_changed_source_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plates = tmp_path / "plates"
    with pytest.raises(OSError), open_staging(plates, "p", {"signature": "old"}) as staging:
        staging.finish("A01_s1", "A/01/0", {"row": 1}, {"sample": np.ones(2)})
        raise OSError
    with pytest.raises(OSError), open_staging(plates, "p", {"signature": "old"}) as staging:
        row, arrays = staging.finished("A01_s1") or ({}, {})
        assert row == {"row": 1} and arrays["sample"].tolist() == [1, 1]
        raise OSError
    with pytest.raises(OSError), open_staging(plates, "p", {"signature": "new"}) as staging:
        assert staging.finished("A01_s1") is None
        raise OSError


def test_one_ingestion_at_a_time_and_progress_queries_do_not_block_it(tmp_path: Path) -> None:
    def ingest_concurrently() -> None:
        with open_staging(tmp_path, "p", {}):
            pass

    assert ingestion_progress(tmp_path, "p") is None
    with ThreadPoolExecutor() as other:
        with open_staging(tmp_path, "p", {"fields": 7}) as staging:
            with pytest.raises(PlateError, match="another run"):
                other.submit(ingest_concurrently).result()
            assert staging.folder.is_dir()
            staging.finish("A01_s1", "A/01/0", {}, {"sample": np.ones(2)})
            assert ingestion_progress(tmp_path, "p") == (1, 7)
        assert ingestion_progress(tmp_path, "p") is None
        queries = [other.submit(ingestion_progress, tmp_path, "p") for _ in range(500)]
        assert {query.result() for query in queries} == {None}
        queries = [other.submit(ingestion_progress, tmp_path, "p") for _ in range(500)]
        for _ in range(10):
            ingest_concurrently()  # Raises if a query blocks it.
        assert all(query.exception() is None for query in queries)


class Killed(BaseException):
    """Stands for a kill: no handler catches it."""


@pytest.mark.slow
def test_a_publication_killed_at_any_step_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = write_synthetic_plate(tmp_path / "inbox", replace(TINY, wells=1, sites=1))
    calm = tmp_path / "calm"
    ingest_plate(tiny, tmp_path / "before")
    (tiny / "new.txt").write_text("another version")
    ingest_plate(tiny, calm)
    publish = Staging.publish
    left = [0]

    def dying(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return original(*args, **options)

        return call

    def publish_and_die(self: Staging, files: dict[str, bytes], signature: str) -> None:
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "touch"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            publish(self, files, signature)

    deaths = 0
    for step in range(20):
        plates = tmp_path / f"plates{step}"
        shutil.copytree(tmp_path / "before", plates)
        left[0] = step
        with monkeypatch.context() as patch:
            patch.setattr(Staging, "publish", publish_and_die)
            try:
                ingest_plate(tiny, plates)
                break
            except Killed:
                deaths += 1
        if list_known_plates(plates):
            assert read_plate_record(plates, "tiny") is not None, "a known plate has a record"
        ingest_plate(tiny, plates)
        assert _contents(plates) == _contents(calm)
    assert 6 <= deaths < 19


def test_a_kill_during_removal_of_the_staging_area_leaves_nothing_reusable(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plates = tmp_path / "plates"
    ingest_plate(tiny, plates)
    before = _contents(plates)

    def dies(folder: Path, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "discard", lambda self: (self._made_from.unlink(missing_ok=True), dies(self.folder)))
        with pytest.raises(Killed):
            ingest_plate(tiny, plates)
        shutil.rmtree(plates / ".tiny.ingesting" / "files")
        (plates / ".tiny.ingesting" / "commit.json").unlink()
    ingest_plate(tiny, plates)
    assert _contents(plates) == before
