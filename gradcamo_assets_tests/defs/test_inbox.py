"""The inbox of a moved or copied home, of a home with many plates, and during an ingestion."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from click.testing import CliRunner

from gradcamo_assets.cli import main
from gradcamo_assets.defs.automation.inbox_automation import nightly_ingest
from gradcamo_assets.defs.automation.jobs_and_sensors import inbox_sensor
from gradcamo_assets.home import Home
from gradcamo_assets.plates import IngestConfig, ingest_plate, load_plate, read_field
from gradcamo_assets.plates.companions import compute_signature
from gradcamo_assets.plates.failures import recorded_attempt
from gradcamo_assets.synthetic import write_synthetic_plate
from gradcamo_assets_tests.defs.conftest import TINY, Bench, make_bench
from gradcamo_assets_tests.defs.sensor_ticks import requested, tick
from gradcamo_assets_tests.plates.formats.exports import some_pixels, write_metaxpress

NIGHT = datetime(2026, 3, 1, 2, tzinfo=UTC)
YEARS = 10 * 365 * 86_400
PIXELS = some_pixels(shape=(2, 3, 24, 40))


def inbox(home: Home, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, tuple[str, str]]:
    """State and reason of each plate, as the command prints them."""
    monkeypatch.setenv("GRADCAMO_HOME", str(home.root))
    result = CliRunner().invoke(main, ["inbox", "--format", "json", *options])
    assert result.exit_code == 0, result.output
    return {row["plate"]: (row["state"], row["reason"]) for row in json.loads(result.output)}


@pytest.fixture(scope="module")
def three_plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an export and a plate by reference, both ingested, and a plate whose ingestion failed."""
    bench = make_bench(tmp_path_factory.mktemp("home"))
    export = write_metaxpress(bench.home.inbox / "export", PIXELS)
    tiny = write_synthetic_plate(bench.home.inbox, TINY)
    for source, config in ((export, IngestConfig()), (tiny, IngestConfig(ome_zarr="reference"))):
        ingest_plate(source, bench.home.plates, config)
    (bench.home.inbox / "bad.zarr").mkdir()
    assert not bench.ingest("bad").success
    bench.instance.dispose()
    shutil.rmtree(bench.home.dagster)
    return bench.home.root


def copied_without_times(home: Path, target: Path) -> None:
    shutil.copytree(home, target, copy_function=shutil.copyfile)


def moved(home: Path, target: Path) -> None:
    home.rename(target)


def moved_with_times(change: Callable[[float], float]) -> Callable[[Path, Path], None]:
    def move(home: Path, target: Path) -> None:
        home.rename(target)
        for path in (target, *target.rglob("*")):
            os.utime(path, (change(path.stat().st_mtime),) * 2)

    return move


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(moved, id="moved"),
        pytest.param(copied_without_times, id="copied, as by rsync without -t"),
        pytest.param(moved_with_times(int), id="to a file system with times of one second"),
        pytest.param(moved_with_times(lambda time: time - YEARS), id="its times ten years ago"),
        pytest.param(moved_with_times(lambda time: time + YEARS), id="its times ten years ahead"),
    ],
)
def test_plates_of_a_moved_home_are_known_unchanged_and_readable(
    move: Callable[[Path, Path], None], three_plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(three_plates, first)
    move(first, second)
    home = Home(second)
    for options in ((), ("--full",)):
        states = {plate: state for plate, (state, _) in inbox(home, monkeypatch, *options).items()}
        assert states == {"export": "known", "tiny": "known", "bad": "waiting"}
    shutil.rmtree(first, ignore_errors=True)
    other = make_bench(second)
    assert requested(tick(other, inbox_sensor)) == []
    plate = load_plate(home.plates, "export")
    for field in plate.fields:
        np.testing.assert_array_equal(read_field(plate, field), PIXELS[field.well, field.site])
    plate = load_plate(home.plates, "tiny")
    assert plate.path == home.inbox / "tiny.zarr" and read_field(plate, plate.fields[0]).any()
    records = {path: path.read_bytes() for path in home.plates.rglob("*") if path.is_file()}
    for old in (three_plates, first):
        assert [path for path, content in records.items() if str(old).encode() in content] == []


@contextmanager
def counted(*below: Path) -> Iterator[Counter[str]]:
    """Count the calls of open, listdir and stat for paths in these folders."""
    count: Counter[str] = Counter()
    places = tuple(map(str, below))
    asked = {"open": "open", "os.scandir": "list", "os.listdir": "list"}
    on = True

    def audit(event: str, arguments: tuple) -> None:
        if on and event in asked and isinstance(arguments[0], str | os.PathLike):
            count[asked[event]] += str(arguments[0]).startswith(places)

    def watched(name: str) -> Callable:
        real = getattr(os, name)

        def call(path: object, *rest: object, **options: object) -> object:
            count[name] += isinstance(path, str | os.PathLike) and str(path).startswith(places)
            return real(path, *rest, **options)

        return call

    sys.addaudithook(audit)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat"):
            patch.setattr(os, name, watched(name))
        try:
            yield count
        finally:
            on = False  # Audit hooks cannot be removed.


@pytest.mark.parametrize("ask", [inbox_sensor, nightly_ingest], ids=lambda asked: asked.name)
def test_listing_the_inbox_costs_the_same_for_any_number_of_known_plates(
    ask: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(tmp_path / "home", stored=ask is nightly_ingest)
    pixels = some_pixels(wells=("B02",), sites=1, shape=(1, 2, 8, 8))

    def cost(plates: int) -> Counter[str]:
        for number in range(len(list(bench.home.inbox.iterdir())), plates):
            ingest_plate(write_metaxpress(bench.home.inbox / f"p{number}", pixels), bench.home.plates)
        with counted(bench.home.inbox, bench.home.plates) as count:
            if ask is inbox_sensor:
                result = tick(bench, inbox_sensor)
                assert requested(result) == []
            else:
                with dg.build_schedule_context(
                    instance=bench.instance, scheduled_execution_time=NIGHT, resources={"platform": bench.platform}
                ) as context:
                    assert isinstance(nightly_ingest(context), dg.SkipReason)
        return count

    few, many = cost(5), cost(20)
    assert few == many
    assert many["list"] >= 2 and many["open"] == 0, "the inbox and the known plates are listed, no record is opened"
    assert sum(many.values()) < 10
    assert {state for state, _ in inbox(bench.home, monkeypatch).values()} == {"known"}


def _ingest_until_killed(source: Path, plates: Path, begun: Event) -> None:
    def wait_at_the_third_field(done: int, of: int) -> None:
        if done == 2:
            begun.set()
            signal.pause()

    with recorded_attempt(plates, "tiny", compute_signature(source)):
        ingest_plate(source, plates, progress=wait_at_the_third_field)


@pytest.mark.slow
def test_an_ongoing_ingestion_is_distinguished_from_a_killed_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    home = bench.home
    source = write_synthetic_plate(home.inbox, replace(TINY, wells=2))
    home.settings_file.write_text("[inbox]\nsettle_seconds = 0\n")
    assert inbox(home, monkeypatch)["tiny"][0] == "ready"
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_ingest_until_killed, args=(source, home.plates, begun))
    process.start()
    try:
        assert begun.wait(120)
        for options in ((), ("--full",)):
            state, reason = inbox(home, monkeypatch, *options)["tiny"]
            assert state == "ingesting" and "since 20" in reason
            assert "2 of 4 fields are done" in reason and "next try" not in reason
        assert requested(tick(bench, inbox_sensor)) == [], "it is not ingested twice"
        assert not bench.ingest("tiny").success
        assert inbox(home, monkeypatch)["tiny"][0] == "ingesting", "the first ingestion continues"
    finally:
        process.kill()
        process.join()
    state, reason = inbox(home, monkeypatch)["tiny"]
    assert state == "waiting" and "stopped without an error message" in reason and "next try" in reason
    assert inbox(home, monkeypatch, "--retry", "tiny")["tiny"][0] == "ready"
    assert requested(tick(bench, inbox_sensor)) == [("ingest_plates", "tiny")]
    assert bench.ingest("tiny").success
    assert inbox(home, monkeypatch)["tiny"] == ("known", "")
