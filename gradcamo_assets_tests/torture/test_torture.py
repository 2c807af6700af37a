"""Kills at random moments of the whole pipeline, while a reader never stops, change no result.

``TORTURE_KILLS`` is the number of kills and ``TORTURE_SEED`` repeats the choices of a run, though not its timing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
import zarr

from gradcamo_assets.home import Home
from gradcamo_assets.storage import write_json
from gradcamo_assets.tables import LAKE_TABLES, Lake, published_files
from gradcamo_assets_tests.comparison import differences, frame_differences
from gradcamo_assets_tests.tables.published import contents
from gradcamo_assets_tests.torture import reader
from gradcamo_assets_tests.torture.platform_process import BETWEEN, PRELOADED, STAGES, bring_up_to_date, write_agenda
from gradcamo_assets_tests.two_plates import SETTINGS, fill_inbox, train_in_one_process

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("TORTURE_KILLS") or 100)
SEED = int(os.environ.get("TORTURE_SEED") or secrets.randbelow(10**6))
_MAX_SECONDS = 300
"""No process works longer than this; a longer one hangs."""
_RESULTS = ("plates", "masks", "crops", "fitted", "exports", "reports", "pictures", "unfinished", "training")
_BY_CONTENT = ("plates", "masks", "crops", "reports")
"""Folders whose files must be the same; others differ in the last digits of numbers."""
_TIMES = rb"\d{4}-\d\d-\d\d( \d\d:\d\d)?"


def train(root: Path) -> None:
    """Make a home with two plates in its inbox and a champion."""
    home = Home(root)
    fill_inbox(home)
    # Stored pixels are one more thing that a kill can leave incomplete.
    home.settings_file.write_text(SETTINGS.replace("[crops]\n", '[crops]\nstore = "always"\n'))
    train_in_one_process(home)


@dataclass
class State:
    """The results in a home, to compare with those of another."""

    lake: Lake
    database: dict[str, pl.DataFrame]
    files: dict[str, str]


@dataclass
class Platform:
    """A home, and the processes that bring it up to date one after the other."""

    home: Home
    agenda: Path
    longest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kills: Counter[str] = field(default_factory=Counter)

    @classmethod
    def like(cls, trained: Home, folder: Path) -> Platform:
        """A home with the inbox, the settings and the champion of another."""
        home = Home(folder / "home").create()
        for part in (home.inbox, home.mlflow):
            shutil.copytree(trained.root / part.name, part, dirs_exist_ok=True)
        shutil.copyfile(trained.settings_file, home.settings_file)
        return cls(home, folder / "agenda.json")

    def begin_round(self, number: int) -> None:
        """From the second round on, mirror the pixels of a field in the inbox and ingest its plate again."""
        if number:
            pixels = zarr.open_array(self.home.inbox / "one.zarr" / "A" / "01" / "0" / "0", mode="r+")
            pixels[:] = np.asarray(pixels[:])[..., ::-1]
        write_agenda(self.agenda, *([["ingest_plates", "one"]] if number else []))

    def work(self, dice: random.Random | None = None) -> str | None:
        """Run a process until it ends, or kill it at a random time if there are dice.

        Returns:
            The stage in which the process was killed; None: nothing is left to do.
        """
        receiver, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=bring_up_to_date, args=(self.home.root, self.agenda, sender))
        process.start()
        sender.close()
        stage, since, kill_at = BETWEEN, time.monotonic(), None
        deadline = since + _MAX_SECONDS
        while True:
            if not receiver.poll(max(0.0, (kill_at or deadline) - time.monotonic())):
                _kill(process)
                assert kill_at, f"{stage} hangs"
                while (message := _receive(receiver)) is not None:
                    stage = message
                self.kills[stage] += 1
                return stage
            if (message := _receive(receiver)) is None:
                break
            now = time.monotonic()
            self.longest[stage] = max(self.longest[stage], now - since)
            stage, since = message, now
            # Kill processes that reach a stage without a kill, and most that reach one with few.
            rare = self.kills[stage] * len(STAGES) <= self.kills.total()
            chance = 1.0 if not self.kills[stage] else 0.7 if rare else 0.15
            if dice and kill_at is None and dice.random() < chance:
                kill_at = now + dice.uniform(0, 1.1 * self.longest[stage])
        process.join(20)
        assert process.exitcode == 0, f"a run failed during {stage}; see above"
        return None

    def state(self, copy: Path) -> State:
        """The results now. The lake is copied to a folder."""
        shutil.copytree(self.home.lake, copy)
        return State(Lake(copy), contents(self.home.database), self._files())

    def _files(self) -> dict[str, str]:
        """Every file with results, and SHA-256 of its content without times."""
        files = {}
        for part in _RESULTS:
            for file in (self.home.root / part).rglob("*"):
                if file.is_file() and ".locks" not in file.parts:
                    content = re.sub(_TIMES, b"", file.read_bytes()) if part in _BY_CONTENT else b""
                    files[str(file.relative_to(self.home.root))] = hashlib.sha256(content).hexdigest()
        return files

    def differences(self, expected: State) -> list[str]:
        """Where the results differ from those of a home whose processes were not killed."""
        found = differences(expected.lake, Lake(self.home.lake), same_training=True)
        database = contents(self.home.database)
        found += [f"qc.duckdb lacks or adds {name}" for name in expected.database.keys() ^ database.keys()]
        for name, rows in expected.database.items():
            found += frame_differences(f"qc.duckdb {name}", rows, database[name])
        files = self._files()
        found += [f"left over: {name}" for name in files.keys() - expected.files.keys()]
        found += [f"missing: {name}" for name in expected.files.keys() - files.keys()]
        found += [f"other content: {name}" for name, hash in files.items() if expected.files.get(name, hash) != hash]
        return found

    def leftovers(self) -> list[str]:
        """Files that no command of the platform would ever delete, and runs that never end."""
        home, lake = self.home, Lake(self.home.lake)
        found = [
            str(path.relative_to(home.root))
            for path in home.root.iterdir()
            if path.name[0] == "." and path.name not in (".qc.duckdb.json", ".qc.duckdb.lock")
        ]
        published = published_files(home.database)
        for table in LAKE_TABLES:
            lake.vacuum(table, 0, published)
            used = {*lake.snapshot(table).files["path"], *published}
            for path in (lake.root / table).rglob("*"):
                log = re.fullmatch(r"\d{20}(\.checkpoint\.parquet|\.json)|_last_checkpoint", path.name)
                if path.is_file() and not (log if path.parent.name == "_delta_log" else str(path) in used):
                    found.append(str(path.relative_to(home.root)))
        with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
            running = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        return found + [f"run {run.run_id} of {run.job_name}" for run in running]


def _receive(receiver: Connection) -> str | None:
    """The next stage of a process, which must have one, or have ended: None."""
    try:
        return receiver.recv_bytes().decode()
    except EOFError:
        return None


def _kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode is not None, "a killed process did not end"


def test_random_kills_change_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"\nTORTURE_SEED={SEED} TORTURE_KILLS={KILLS}", flush=True)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    begin, dice, trained = time.monotonic(), random.Random(SEED), Home(tmp_path / "trained")
    training = multiprocessing.get_context("spawn").Process(target=train, args=(trained.root,))
    training.start()
    training.join()
    assert training.exitcode == 0
    calm, tried = (Platform.like(trained, tmp_path / name) for name in ("calm", "tried"))
    expected: list[State] = []
    counts, end, log = tmp_path / "counts.json", tmp_path / "end", tmp_path / "reader.log"
    with log.open("wb") as output:
        reading = subprocess.Popen(
            [sys.executable, "-m", reader.__name__, tried.home.root, counts, end], stdout=output, stderr=output
        )
    try:
        number, before = 0, -1
        while tried.kills.total() < KILLS:
            assert tried.kills.total() > before, "a round without a kill"
            before = tried.kills.total()
            if number < 3:  # The third round restores the pixels, but the map of cells was fitted in the first.
                calm.begin_round(number)
                assert calm.work() is None
                expected.append(calm.state(tmp_path / f"expected{number}"))
                write_json(counts, _right_counts(expected))
                tried.longest.update(calm.longest)
                print(f"{time.monotonic() - begin:5.0f} s  round {number} without kills", flush=True)
            tried.begin_round(number)
            while (stage := tried.work(dice if tried.kills.total() < KILLS else None)) is not None:
                print(f"{time.monotonic() - begin:5.0f} s  kill {tried.kills.total()} in {stage}", flush=True)
                assert reading.poll() is None, log.read_text()
            found = tried.differences(expected[number and 2 - number % 2])
            print(f"{time.monotonic() - begin:5.0f} s  round {number}: {len(found)} differences", flush=True)
            assert not found, "\n".join(found)
            number += 1
        end.touch()
        assert reading.wait(60) == 0, log.read_text()
    finally:
        reading.kill()
        reading.wait()
    print(
        "kills by stage:",
        *(f"{tried.kills[stage]:5}  {stage}" for stage in STAGES),
        f"read: {log.read_text()}",
        sep="\n",
    )
    assert not (left := tried.leftovers()), "\n".join(left)
    assert all(tried.kills[stage] for stage in STAGES) or 5 * len(STAGES) > KILLS


def _right_counts(expected: list[State]) -> dict[str, list[int]]:
    """By table, plate and site, the numbers of rows that a round ends with."""
    counts = defaultdict(set)
    for state in expected:
        for table in reader.COUNTED:
            rows = state.lake.read(table).with_columns(pl.lit(table).alias("table"))
            for *place, n in rows.group_by("table", "Metadata_Plate", "Metadata_Site").len().rows():
                counts["/".join(map(str, place))].add(n)
    return {place: sorted(numbers) for place, numbers in counts.items()}
